import copy

import pytest
from transformers import AutoTokenizer

from hfsae.data.tokenizer_identity import tokenizer_sha256
from tests.data.tiny import pythia_like
from tests.models_on_disk import TINY_LM, tokenizer


class Slow:
    """A tokenizer without the library tokenizers."""

    special_tokens_map = {"eos_token": "</s>"}

    def __init__(self, vocabulary):
        self.vocabulary = vocabulary

    def get_vocab(self):
        return self.vocabulary


def test_a_tokenizer_that_is_loaded_again_or_was_used_is_the_same():
    again = AutoTokenizer.from_pretrained(TINY_LM)
    again(["def f", "x"], max_length=1, truncation=True)
    assert tokenizer_sha256(again) == tokenizer_sha256(tokenizer()) != tokenizer_sha256(pythia_like())


@pytest.mark.parametrize("change", [{"chat_template": "{{ messages }}"}, {"eos_token": "w1"}])
def test_templates_and_special_tokens_make_another_one(change):
    other = copy.deepcopy(pythia_like())
    for name, value in change.items():
        setattr(other, name, value)
    assert tokenizer_sha256(other) != tokenizer_sha256(pythia_like())


def test_without_the_library_the_vocabulary_tells():
    one, same, other = Slow({"a": 0, "b": 1}), Slow({"b": 1, "a": 0}), Slow({"a": 1, "b": 0})
    assert tokenizer_sha256(one) == tokenizer_sha256(same) != tokenizer_sha256(other)  # type: ignore[arg-type]
