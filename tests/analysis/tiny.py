"""A language model, its tokenizer, an SAE in it, documents, and what its features do on them written out longhand."""

import random
from functools import cache
from typing import NamedTuple

import torch
from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase

from hfsae import SAE, TopKSAEConfig
from tests.data.tiny import WORDS, language_model, pythia_like

CONTEXT = 12
N_FEATURES = 40


class Setting(NamedTuple):
    sae: SAE
    model: GPT2LMHeadModel
    tokenizer: PreTrainedTokenizerBase


@cache
def setting(**fields) -> Setting:
    """Sequences of 12 tokens, position 0 of which is left out; the EOS has id 0, the word `w<i>` has id i + 1."""
    torch.manual_seed(1)
    config = TopKSAEConfig(
        d_in=16,
        n_features=N_FEATURES,
        k=4,
        hook_point="transformer.h.1.output",
        context_length=CONTEXT,
        **fields,
    )
    return Setting(SAE.from_config(config).eval(), language_model(), pythia_like())


@cache
def texts(n: int = 30, seed: int = 0) -> list[str]:
    """Documents of 1 to 30 of ten words, so that short contexts come again; some documents twice, one empty."""
    words = random.Random(seed)
    made = [" ".join(f"w{words.randrange(10)}" for _ in range(words.randint(1, 30))) for _ in range(n)]
    return [*made, "", *made[:5]]


class Token(NamedTuple):
    """A token that counts, with its dense features."""

    document: int
    position: int
    piece: list[int]
    column: int
    features: torch.Tensor


@torch.no_grad()
def read_longhand(documents: list[str], given: Setting) -> list[Token]:
    """One piece at a time, through torch's own hooks."""
    tokens = []
    for number, text in enumerate(documents):
        ids = [int(word[1:]) + 1 for word in text.split()]
        assert all(token <= WORDS for token in ids)
        for start in range(0, len(ids), CONTEXT):
            piece = ids[start : start + CONTEXT]
            hidden = given.model(torch.tensor([piece]), output_hidden_states=True).hidden_states[2][0]
            for column in range(1, len(piece)):
                features = given.sae.encode(hidden[column])
                tokens.append(Token(number, start + column, piece, column, features))
    return tokens
