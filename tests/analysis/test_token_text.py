from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from hfsae.analysis import TokenTexts
from tests.data.tiny import pythia_like

TINY_LM = Path(__file__).parent.parent.parent / "examples" / "tiny_lm"


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(TINY_LM)


@settings(max_examples=100)
@given(text=st.text(max_size=20))
def test_the_texts_of_all_tokens_together_are_the_text(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    assert "".join(TokenTexts(tokenizer)(ids)) == text


def test_a_character_of_several_tokens_is_shown_whole_with_the_last_of_them(tokenizer):
    ids = tokenizer("a é漢")["input_ids"]
    texts = TokenTexts(tokenizer)(ids)
    assert texts[-1] == "漢" and texts[-3:-1] == ["", ""] and "é" in texts


def test_half_a_character_is_shown_as_such(tokenizer):
    start, *_ = tokenizer("漢")["input_ids"]
    assert TokenTexts(tokenizer)([start]) == ["\ufffd"]


def test_spaces_in_front_of_words_and_special_tokens_are_shown():
    assert TokenTexts(pythia_like())([3, 0, 4]) == [" w2", " <eos>", " w3"]
