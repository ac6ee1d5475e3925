"""A language model whose activations matter to it, SAEs in it, and batches of its tokens."""

from functools import cache

import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from hfsae import SAE, TopKSAEConfig
from hfsae.data import TokenBatch

WIDTH = 16
VOCABULARY = 48
PLACE = "transformer.h.1.output"


@cache
def language_model() -> PreTrainedModel:
    """A random GPT-2 of three blocks, its weights so large that taking an activation away costs many nats.

    Token 0 is all its special tokens.
    """
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY, "n_positions": 32, "n_embd": WIDTH, "n_layer": 3, "n_head": 2}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0, initializer_range=0.5))
    return model.eval()


@cache
def batches(n_batches: int = 3, rows: int = 4, length: int = 12, seed: int = 0) -> list[TokenBatch]:
    """What the model itself says, so that it has something to lose when its activations are replaced.

    In each batch the last row is padded from its middle on; position 0 and token 0 are left out.
    """
    ids = _spoken(n_batches * rows, length, torch.Generator().manual_seed(seed))
    made = []
    for part in ids.split(rows):
        mask = torch.ones_like(part)
        part[-1, length // 2 :] = mask[-1, length // 2 :] = 0
        keep = mask.bool() & (part != 0)
        keep[:, 0] = False
        made.append(TokenBatch(part, mask, keep))
    return made


@torch.no_grad()
def _spoken(rows: int, length: int, generator: torch.Generator) -> torch.Tensor:
    ids = torch.randint(0, VOCABULARY, (rows, 1), generator=generator)
    while ids.shape[1] < length:
        logits = language_model()(ids, use_cache=False).logits[:, -1]
        ids = torch.cat([ids, torch.multinomial((2 * logits).softmax(-1), 1, generator=generator)], dim=1)
    return ids


def tokens_of(made: list[TokenBatch]) -> int:
    return sum(int(batch.keep.sum()) for batch in made)


def make_sae(hook_point: str = PLACE, *, k: int = 4, n_features: int = 40, seed: int = 1, **fields) -> SAE:
    """A random TopK SAE."""
    torch.manual_seed(seed)
    return SAE.from_config(
        TopKSAEConfig(d_in=WIDTH, n_features=n_features, k=k, hook_point=hook_point, **fields)
    ).eval()


def identity_sae(hook_point: str = PLACE) -> SAE:
    """x̂ = x, to float precision."""
    config = TopKSAEConfig(d_in=WIDTH, n_features=2 * WIDTH, k=2 * WIDTH, hook_point=hook_point)
    sae = SAE.from_config(config).eval()
    with torch.no_grad():
        signs = torch.cat([torch.eye(WIDTH), -torch.eye(WIDTH)])
        sae.encoder.weight.copy_(signs)
        sae.W_dec.copy_(signs)
    return sae


def constant_sae(vector: torch.Tensor, hook_point: str = PLACE) -> SAE:
    """x̂ = vector, whatever comes."""
    sae = make_sae(hook_point)
    with torch.no_grad():
        sae.encoder.bias.fill_(-1e6)
        sae.b_dec.copy_(vector)
    return sae
