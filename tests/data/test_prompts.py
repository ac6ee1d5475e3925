"""Prompts begin as the text did that an SAE was trained on."""

import pytest
import torch

from hfsae.data import TokenBlocks
from hfsae.data.prompts import tokenize
from tests.data.tiny import language_model, llama_like, make_tokenizer, pythia_like, text_dataset


def bert_like():
    """CLS and SEP, no BOS and no EOS; the word `w<i>` has id i + 4."""
    specials = ("[PAD]", "[CLS]", "[SEP]", "[MASK]")
    roles = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    return make_tokenizer(specials=specials, **roles)


@pytest.mark.parametrize(
    ("tokenizer", "prepend_bos", "ids"),
    [
        (pythia_like, None, [4, 2]),
        (pythia_like, False, [4, 2]),
        (pythia_like, True, [0, 4, 2]),
        (llama_like, None, [0, 5, 3]),
        (llama_like, False, [5, 3]),
        (llama_like, True, [0, 5, 3]),
        (bert_like, True, [1, 7, 5]),
        (bert_like, False, [7, 5]),
    ],
)
def test_a_prompt_has_the_tokens_that_a_block_of_the_same_text_has(tokenizer, prepend_bos, ids):
    made = tokenize("w3 w1", tokenizer(), prepend_bos=prepend_bos)
    assert made["input_ids"].tolist() == [ids] and made["attention_mask"].tolist() == [[1] * len(ids)]
    options = {"context_length": 12, "batch_size": 1, "mix_documents": False, "repeat": False}
    words = text_dataset(2).map(lambda _: {"text": "w3 w1"})
    (block,) = list(TokenBlocks(words, tokenizer(), prepend_bos=prepend_bos, **options))
    assert block.input_ids.tolist() == [ids]


def test_a_prompt_that_begins_with_it_gets_no_second_one():
    assert tokenize("<s> w1", llama_like(), prepend_bos=True)["input_ids"].tolist() == [[0, 3]]


@pytest.mark.parametrize("side", ["left", "right"])
def test_several_prompts_are_padded_on_the_tokenizers_side_and_a_model_reads_them_as_it_reads_each(side):
    tokenizer, model = pythia_like(), language_model()
    tokenizer.padding_side = side
    made = tokenize(["w3 w1 w5", "w2"], tokenizer, prepend_bos=True)
    assert made["attention_mask"].tolist() == [[1] * 4, [0, 0, 1, 1] if side == "left" else [1, 1, 0, 0]]
    tokens = made["attention_mask"][1].bool()
    assert made["input_ids"][1][tokens].tolist() == [0, 3]
    written = model.generate(**made, max_new_tokens=1, do_sample=False, pad_token_id=0) if side == "left" else None
    if written is not None:
        alone = model.generate(**tokenize("w2", tokenizer, prepend_bos=True), max_new_tokens=1, do_sample=False)
        assert torch.equal(written[1, -1], alone[0, -1])


def test_what_cannot_be_a_prompt_is_refused():
    with pytest.raises(ValueError, match="the prompt '' has no token"):
        tokenize(["w1", ""], pythia_like(), prepend_bos=False)
    with pytest.raises(ValueError, match="needs a tokenizer with a BOS or CLS token"):
        tokenize("w1", make_tokenizer(eos_token="<eos>"), prepend_bos=True)
