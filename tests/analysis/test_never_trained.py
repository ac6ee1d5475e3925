"""Tokens that never occurred in training are found by the weights; which ones these are the training text tells."""

import copy
import math
from collections import Counter

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hfsae import SAE, TopKSAEConfig, feature_effects, logit_effects, untrained_tokens
from hfsae.analysis import FeatureCollection, collect_features
from hfsae.analysis.shading import shaded_features
from hfsae.data import load_text
from tests.hooks.families import build
from tests.models_on_disk import TINY_LM


@pytest.fixture(scope="module")
def real():
    """The language model of the repository, the tokens that its training text lacks, and those that it has rarely."""
    model = AutoModelForCausalLM.from_pretrained(TINY_LM).eval()
    tokenizer = AutoTokenizer.from_pretrained(TINY_LM)
    counts = Counter[int]()
    for ids in tokenizer(list(load_text("python-stdlib", split="train")["text"]), verbose=False)["input_ids"]:
        counts.update(ids)
    counts[tokenizer.eos_token_id] += 1  # stood in front of each document
    rare = [token for token in range(len(tokenizer)) if counts[token] < 50]
    return model, tokenizer, [token for token in rare if not counts[token]], rare


@pytest.fixture(scope="module")
def sae() -> SAE:
    torch.manual_seed(0)
    return SAE.from_config(TopKSAEConfig(d_in=128, n_features=64, k=8, hook_point="resid_post.3")).eval()


def test_they_are_exactly_the_tokens_that_the_training_text_lacks(real):
    model, _, never, _ = real
    assert len(never) == 105 and untrained_tokens(model).tolist() == never


def test_no_list_of_effects_holds_one_and_all_say_how_many_there_are(real, sae, tmp_path):
    model, tokenizer, never, _ = real
    effects = logit_effects(sae, model, k=4096)
    kept = sorted(set(range(4096)) - set(never))
    for row in [*effects.promoted.tolist(), *effects.suppressed.tolist()]:
        assert sorted(row) == kept
    assert effects.left_out is not None and effects.left_out.tolist() == never
    assert effects.counts is not None and set(effects.counts.sum(1).tolist()) == {len(kept)}
    collection = collect_features(sae, model, tokenizer, ["def main(self):\n    return 1"], disable_tqdm=True)
    collection.save(tmp_path)
    note = "105 tokens that the model was never trained on are left out."
    assert FeatureCollection.load(tmp_path).left_out_note == collection.left_out_note == note
    lines = list(shaded_features(sae, model, tokenizer, "def main(self):", top=2, color=False))
    assert lines[-1] == f"of the promoted tokens {note}"
    measured = feature_effects(sae, model, tokenizer, "def main(", n_exact=3, k=4096)
    assert all({token for token, _ in one.raised} == set(kept) for one in measured.features[:3])


def test_tokens_that_the_model_rules_out_are_in_no_list(real, sae):
    """Their logits are −inf with and without a feature: the difference is NaN, which `topk` takes for the largest."""
    model, tokenizer, never, _ = real
    out = [next(token for token in range(start, 4096) if token not in never) for start in (100, 700)]
    plain = logit_effects(sae, model, k=4096)
    handle = model.get_output_embeddings().register_forward_hook(
        lambda *given: given[2].index_fill(-1, torch.tensor(out), -torch.inf)
    )
    try:
        effects = logit_effects(sae, model, k=4096)
        measured = feature_effects(sae, model, tokenizer, "def main(", n_exact=3, k=4096)
    finally:
        handle.remove()
    for row, known in zip(effects.promoted.tolist(), plain.promoted.tolist(), strict=True):
        assert row[:50] == [token for token in known if token not in out][:50]
        assert set(row) == set(known) - set(out)
    assert effects.promoted_by.isfinite().all() and effects.counts is not None
    assert set(effects.counts.sum(1).tolist()) == {4096 - len(never) - 2}
    for one in measured.features[:3]:
        assert not {token for token, _ in one.raised} & set(out)
        assert all(math.isfinite(change) for _, change in one.raised)


def test_of_older_collections_nothing_is_said(real, sae):
    model, tokenizer, *_ = real
    collection = collect_features(sae, model, tokenizer, ["def main(self):"], disable_tqdm=True)
    older = {name: tensor for name, tensor in collection.tensors().items() if name != "logits.left_out"}
    assert FeatureCollection.from_tensors(collection.about, older).left_out_note == ""


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "opt", "mamba"])
def test_a_model_that_was_never_trained_has_none(family):
    assert untrained_tokens(build(family)).tolist() == []


def test_rows_that_fill_a_vocabulary_up_are_found_and_a_few_alike_are_not(real):
    """transformers gives new rows the mean of the others and next to no spread; half precision rounds them."""
    model, _, _, rare = real
    larger = copy.deepcopy(model)
    with torch.no_grad():  # tokens that occurred once, and in one text, stand together too
        larger.lm_head.weight[rare] = torch.randn(len(rare), 128)
    assert untrained_tokens(larger).tolist() == []
    with torch.no_grad():
        larger.lm_head.weight[7:10] = larger.lm_head.weight[7]
    assert untrained_tokens(larger).tolist() == []
    larger.resize_token_embeddings(4101)
    assert untrained_tokens(larger).tolist() == list(range(4096, 4101))
    assert untrained_tokens(larger.to(torch.bfloat16)).tolist() == list(range(4096, 4101))
