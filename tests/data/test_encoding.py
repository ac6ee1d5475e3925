"""From documents to tokens, with tokenizers of every make."""

from pathlib import Path

import pytest
from datasets import Dataset

from hfsae import evaluate_sae
from hfsae.analysis.document_sequences import as_dataset
from hfsae.data import TokenBlocks
from hfsae.data.encoding import special_token_ids, text_encoder
from hfsae.data.prompts import tokenize
from tests.analysis.tiny import setting
from tests.data.tiny import pythia_like


def test_tokenizers_of_mistral_common_are_read():
    """AutoTokenizer gives them for Mistral's models where that package is installed."""
    package = pytest.importorskip("mistral_common", reason="Mistral's own tokenizers need mistral-common")
    from transformers.tokenization_mistral_common import MistralCommonBackend

    (path,) = (Path(package.__file__).parent / "data").glob("tekken_240911.json")
    tokenizer = MistralCommonBackend(str(path))
    assert special_token_ids(tokenizer) == list(range(1000))  # Tekken keeps its first thousand ids
    text = Dataset.from_dict({"text": ["one two three"] * 8})
    batch = next(TokenBlocks(text, tokenizer, context_length=5, batch_size=1, mix_documents=False))
    assert batch.input_ids[0].tolist() == tokenizer.encode("one two three")[: batch.input_ids.shape[1]]
    assert batch.keep[0].tolist() == [False] + [True] * (batch.input_ids.shape[1] - 1)


def test_half_of_a_character_is_shown_with_what_stands_around_it():
    """Texts that were cut in the middle of an emoji hold such ones, and no tokenizer takes them."""
    with pytest.raises(ValueError, match=r"'\\ud83d' in 'w1 w2 \\ud83d w3', which no tokenizer reads"):
        tokenize(["w1", "w1 w2 \ud83d w3"], pythia_like(), prepend_bos=False)
    with pytest.raises(TypeError, match="TextEncodeInput"):
        text_encoder(pythia_like())(["w1", 3], None)


def test_lists_that_make_no_dataset_of_texts_are_refused_wherever_they_are_read():
    """They ended in an error of datasets, which names no text."""
    sae, model, tokenizer = setting()
    for read in (lambda texts: evaluate_sae(sae, model, texts, tokenizer), as_dataset):
        with pytest.raises(ValueError, match=r"'\\ud83d' in 'w1 w2 \\ud83d w3', which no tokenizer reads"):
            read(["w1", "w1 w2 \ud83d w3"])
        with pytest.raises(TypeError, match="(text|document) 1 of the list is"):
            read(["w1", 3])
