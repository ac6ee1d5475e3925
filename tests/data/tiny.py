"""Tokenizers, datasets and a language model small enough to make for every test, and how batches are compared."""

from collections.abc import Iterable
from pathlib import Path

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from hfsae.data import TokenBatch

WORDS = 40
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|> "
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }} <end>{% endgeneration %}"
    "{% else %}{{ message['content'] }}{% endif %} {% endfor %}"
)


def make_tokenizer(
    *, specials: tuple[str, ...] = ("<eos>",), adds_bos: bool = False, **roles: str
) -> PreTrainedTokenizerFast:
    """A tokenizer of the words `w0`, `w1`, ...; special tokens have the first ids, so the first of them has id 0."""
    vocabulary = {token: i for i, token in enumerate([*specials, *(f"w{i}" for i in range(WORDS))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(list(specials))
    if adds_bos:
        bos = roles["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, vocabulary[bos])]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **roles)


def pythia_like() -> PreTrainedTokenizerFast:
    """BOS and EOS are the same token, with id 0; the word `w<i>` has id i + 1."""
    return make_tokenizer(bos_token="<eos>", eos_token="<eos>")


def llama_like() -> PreTrainedTokenizerFast:
    """BOS has id 0 and begins every text, EOS has id 1; the word `w<i>` has id i + 2."""
    return make_tokenizer(specials=("<s>", "</s>"), adds_bos=True, bos_token="<s>", eos_token="</s>")


def chat_tokenizer(template: str | None = CHAT_TEMPLATE) -> PreTrainedTokenizerFast:
    """A tokenizer with a chat template, which by default marks what the assistant says."""
    tokenizer = make_tokenizer(specials=("<eos>", "<|user|>", "<|assistant|>", "<end>"), eos_token="<eos>")
    tokenizer.chat_template = template
    return tokenizer


def documents(*lengths: int) -> list[str]:
    """Documents of so many words; together they count w0, w1, ... up, so that every token's place can be told."""
    texts, start = [], 0
    for length in lengths:
        texts.append(" ".join(f"w{word % WORDS}" for word in range(start, start + length)))
        start += length
    return texts


def text_dataset(*lengths: int) -> Dataset:
    return Dataset.from_dict({"text": documents(*lengths)})


def language_model(**options: int) -> GPT2LMHeadModel:
    """A random GPT-2 with 3 layers of 16 dimensions that knows the tokenizers' words."""
    torch.manual_seed(0)
    sizes = {"vocab_size": WORDS + 4, "n_positions": 64, "n_embd": 16, "n_layer": 3, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(**sizes | options, bos_token_id=0, eos_token_id=0)).eval()


def language_model_without_weights(folder: Path) -> Path:
    """A folder with `language_model` and its tokenizer whose weights are gone: whoever loads them has an OSError."""
    language_model().save_pretrained(folder)
    pythia_like().save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    return folder


def assert_equal(batches: Iterable[TokenBatch], others: Iterable[TokenBatch]) -> None:
    """Both give the same batches, bit for bit."""
    batches, others = list(batches), list(others)
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(batch, other, strict=True))
