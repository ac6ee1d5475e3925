"""What a graph explains: logits at the last token, or the difference of two."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hfsae.circuits.replacement import LocalReplacement

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# How far logits may be from a multiple of what the LM head gives before they count as capped.
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Targets:
    """The logit nodes of a graph, each a vector that reads the state before the LM head.

    The value of one is `vectors[i] · hidden + constants[i]`: a logit less the mean of all logits, which changes no
    probability, or the difference of two logits.

    Attributes:
        tokens: The token of each; of a difference the first.
        against: The token that is subtracted; None where that is the mean.
        vectors: (T, d).
        constants: (T,).
        weights: (T,), how much each counts: its probability, or 1 for a difference.
    """

    tokens: list[int]
    against: list[int | None]
    vectors: Tensor
    constants: Tensor
    weights: Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def values(self) -> str:
        """What a value is, in words."""
        return "a difference of two logits" if self.against[0] is not None else "a logit less the mean of all"


def choose_targets(
    replacement: LocalReplacement,
    *,
    max_logits: int = 10,
    min_probability: float = 0.95,
    targets: Sequence[str | int] | None = None,
    contrast: tuple[str | int, str | int] | None = None,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
) -> Targets:
    """The logits to explain.

    Args:
        replacement: The model at the prompt.
        max_logits: The most probable tokens, so many at most.
        min_probability: As many of them as together have this probability.
        targets: These tokens instead, as texts of one token or as ids.
        contrast: Two tokens, whose logits' difference is the only target.
        tokenizer: Reads texts.

    Raises:
        ValueError: If a text is not one token, an id is none of the model's, or two ways are asked for at once.
    """
    probabilities = replacement.logits.float().softmax(-1)
    against: list[int | None]
    if targets is not None and contrast is not None:
        raise ValueError("targets and contrast both say what is explained: give one of them.")
    if contrast is not None:
        if isinstance(contrast, str) or len(contrast) != 2:
            raise ValueError(f"contrast is {contrast!r}: expected two tokens, of which the second is subtracted.")
        one, other = (_token_id(token, tokenizer, len(probabilities)) for token in contrast)
        if one == other:
            raise ValueError(f"contrast names the same token twice, {contrast[0]!r}: there is no difference.")
        tokens = [one]
        against = [other]
    elif targets is not None:
        if not targets:
            raise ValueError("targets is empty: name a token, or leave it out for the most probable ones.")
        tokens = list(dict.fromkeys(_token_id(token, tokenizer, len(probabilities)) for token in targets))
        against = [None] * len(tokens)
    else:
        if max_logits < 1 or not 0 < min_probability <= 1:
            raise ValueError(f"max_logits={max_logits} and min_probability={min_probability} choose no token.")
        best = probabilities.topk(min(max_logits, len(probabilities)))
        enough = int((best.values.cumsum(0) < min_probability).sum()) + 1
        tokens = best.indices[:enough].tolist()
        against = [None] * len(tokens)
    return target_vectors(replacement, tokens, against)


@torch.no_grad()
def target_vectors(replacement: LocalReplacement, tokens: list[int], against: list[int | None]) -> Targets:
    """The targets of tokens that are chosen.

    Args:
        replacement: The model at the prompt.
        tokens: The tokens.
        against: What each is compared with: a token, or None for the mean; all of one kind.
    """
    head = replacement.model.get_output_embeddings()
    assert isinstance(head, torch.nn.Linear)
    factor = logit_factor(replacement)
    bias = head.bias if head.bias is not None else torch.zeros_like(head.weight[:, 0])
    if against[0] is None:
        subtracted, subtracted_bias = head.weight.mean(0, keepdim=True), bias.mean()
    else:
        subtracted, subtracted_bias = head.weight[list(against)], bias[list(against)]
    vectors, constants = factor * (head.weight[tokens] - subtracted), factor * (bias[tokens] - subtracted_bias)
    probabilities = replacement.logits.float().softmax(-1)[tokens].cpu()
    weights = probabilities if against[0] is None else torch.ones(len(tokens), dtype=torch.float32)
    return Targets(tokens, against, vectors.detach(), constants.detach(), weights)


@torch.no_grad()
def logit_factor(replacement: LocalReplacement) -> float:
    """What the model multiplies its LM head's result by; 1 with a note where it caps logits, which is not linear."""
    head = replacement.model.get_output_embeddings()
    assert isinstance(head, torch.nn.Linear)
    raw, logits = head.forward(replacement.own_hidden), replacement.logits
    factor = float((raw * logits).sum() / raw.square().sum())
    if (logits - factor * raw).abs().max() <= _TOLERANCE * logits.abs().max():
        return 1.0 if abs(factor - 1) < _TOLERANCE else factor
    note = "The model caps its logits after the LM head: the graph is of logits before that."
    if note not in replacement.notes:
        replacement.notes.append(note)
    return 1.0


def _token_id(token: str | int, tokenizer: "PreTrainedTokenizerBase | None", vocabulary: int) -> int:
    if isinstance(token, str):
        if tokenizer is None:
            raise ValueError(f"the target {token!r} is a text: pass the tokenizer, or the token's id.")
        ids: list[int] = tokenizer(token, add_special_tokens=False)["input_ids"]  # type: ignore[assignment]
        if len(ids) != 1:
            raise ValueError(f"the target {token!r} is {len(ids)} tokens: a logit belongs to one. Name one token.")
        return ids[0]
    if isinstance(token, bool) or not 0 <= token < vocabulary:
        raise ValueError(f"the target {token} is no token: there are 0 to {vocabulary - 1}.")
    return token
