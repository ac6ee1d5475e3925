"""The tiny language model as it is shipped in `examples/tiny_lm/`."""

from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from tests.examples.tiny_lm_measures import card_row, longhand_cross_entropy, token_ids

SHIPPED = Path(__file__).parents[2] / "examples" / "tiny_lm"


@cache
def shipped_tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(SHIPPED)


def test_the_shipped_model_is_a_float32_gpt2_below_six_megabytes() -> None:
    assert (SHIPPED / "model.safetensors").stat().st_size <= 6_000_000
    with safe_open(SHIPPED / "model.safetensors", "pt") as weights:
        assert {weights.get_tensor(name).dtype for name in weights.keys()} == {torch.float32}
    assert AutoModelForCausalLM.from_pretrained(SHIPPED).config.model_type == "gpt2"


@pytest.mark.slow
def test_the_shipped_model_is_far_better_than_the_best_unigram_model_of_the_very_text() -> None:
    model = AutoModelForCausalLM.from_pretrained(SHIPPED)
    ids = token_ids(SHIPPED, "held_out", at_least=40 * 256 + 1)
    nats, predicted = longhand_cross_entropy(model, ids, n_windows=40)
    shares = np.array(list(Counter(ids[1 : predicted + 1]).values())) / predicted
    entropy = -(shares * np.log(shares)).sum()
    assert nats < entropy - 1.0


@pytest.mark.slow
def test_the_shipped_card_states_what_the_model_scores_on_the_held_out_files_of_this_python() -> None:
    model = AutoModelForCausalLM.from_pretrained(SHIPPED)
    nats, _ = longhand_cross_entropy(model, token_ids(SHIPPED, "held_out"))
    # Another version of Python has somewhat other sources.
    assert card_row(SHIPPED, "this model")[0] == pytest.approx(nats, abs=0.1)


@pytest.mark.slow
def test_the_shipped_held_out_split_is_long_enough_to_evaluate_and_calibrate_on() -> None:
    assert len(token_ids(SHIPPED, "held_out", at_least=400_000)) >= 400_000


def test_the_shipped_card_has_the_front_matter_of_a_model() -> None:
    data = ModelCard.load(SHIPPED / "README.md").data.to_dict()
    assert data["license"] == "apache-2.0"
    assert data["library_name"] == "transformers"
    assert data["pipeline_tag"] == "text-generation"


@settings(max_examples=200)
@given(st.text(st.characters(codec="utf-8") | st.sampled_from(" \t\n\r.,'!?_0aé"), max_size=60))
def test_the_shipped_tokenizer_gives_every_text_back(text: str) -> None:
    tokenizer = shipped_tokenizer()
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_shipped_tokenizer_has_a_line_break_and_its_indentation_in_one_token() -> None:
    tokenizer = shipped_tokenizer()
    ids = tokenizer("if x:\n        return None\n")["input_ids"]
    assert [tokenizer.decode([token]) for token in ids] == ["if", " x", ":", "\n        ", "return", " None", "\n"]


def test_the_shipped_model_begins_and_ends_texts_with_one_token() -> None:
    config, tokenizer = AutoModelForCausalLM.from_pretrained(SHIPPED).config, shipped_tokenizer()
    assert tokenizer.bos_token == tokenizer.eos_token == "<|endoftext|>"
    assert config.bos_token_id == config.eos_token_id == tokenizer.bos_token_id
    assert tokenizer("<|endoftext|>")["input_ids"] == [tokenizer.bos_token_id]
