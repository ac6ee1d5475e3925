"""What a language model predicts, and so which loss tells what a change to its activations costs.

* A causal model predicts the token after every position: next-token cross-entropy.
* A masked model looks at both sides of a token, and predicts tokens that its mask token stands for. So a share of the
  tokens is hidden, and the cross-entropy is that of the hidden ones.
* Others predict no tokens: there is no such loss, and it is said why.

Which of them a model is shows itself: two texts that differ in their last token are read. Where the model is causal,
what it predicts before that token is the same in both.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from hfsae.data import TokenBatch
from hfsae.evaluation.spliced_model import agree, model_inputs, rounding_of
from hfsae.hooks.tokens import of_tokens

NEXT_TOKEN = "next-token cross-entropy"
"""What records call the loss of a causal model."""

MASKED_SHARE = 0.15
"""Of the tokens that count, so many are hidden from a masked language model, as in its training."""

# Of the largest logit: what a change of the last token may change before it by the order of additions alone.
_LEAST_TOLERANCE = 1e-4


class Question(NamedTuple):
    """What a language model is asked about a batch.

    Attributes:
        batch: What it reads.
        positions: int64 (n,), the flat positions whose prediction counts.
        answers: int64 (n,), the tokens that are right there.
    """

    batch: TokenBatch
    positions: Tensor
    answers: Tensor


@dataclass(frozen=True)
class Predictions:
    """Which tokens a language model predicts.

    Attributes:
        of: `"next"` for a causal model, `"masked"` for one that sees both sides, None for one that predicts none.
        mask_token_id: What hides a token.
        why: Why there are no predictions.
    """

    of: Literal["next", "masked"] | None
    mask_token_id: int | None = None
    why: str | None = None

    def question(self, batch: TokenBatch) -> Question:
        """What to ask about a batch; the same for equal sequences, whatever batch they stand in."""
        if self.of == "masked":
            return _masked_question(batch, self.mask_token_id)
        return _next_question(batch)

    def __str__(self) -> str:
        if self.of == "next":
            return NEXT_TOKEN
        if self.of is None:
            return f"no CE: {self.why}"
        return (
            f"masked-LM cross-entropy: the mask token (id {self.mask_token_id}) hides {MASKED_SHARE:.0%} of the "
            "tokens that count in a sequence, at least one, chosen by the SHA-256 of its token ids, and they are "
            "predicted; activations are replaced at every token that counts, the hidden ones too"
        )


@torch.no_grad()
def predictions_of(model: PreTrainedModel, batch: TokenBatch, mask_token_id: int | None = None) -> Predictions:
    """Which tokens a model predicts, as one sequence of a batch shows.

    Args:
        model: A language model in evaluation mode.
        batch: Of text that it can read.
        mask_token_id: The tokenizer's; None takes that of the model's config, where there is one.
    """
    name, config = type(model).__name__, model.config.get_text_config()
    longest = int(batch.attention_mask.sum(1).argmax())
    one = TokenBatch(*(part[longest : longest + 1] for part in batch))
    last = int(one.attention_mask[0].nonzero()[-1])
    ids = one.input_ids.repeat(2, 1)
    ids[1, last] = _another(int(ids[1, last]), config)
    output: Any = model(**model_inputs(model, TokenBatch(ids, one.attention_mask.repeat(2, 1), one.keep.repeat(2, 1))))
    logits = getattr(output, "logits", None)
    if not isinstance(logits, Tensor) or logits.dim() != 3 or logits.shape[-1] < config.vocab_size:
        return Predictions(None, why=f"{name} gives no prediction of tokens")
    if len(logits) != len(ids) or logits.shape[1] < ids.shape[1]:
        return Predictions(None, why=f"{name} gives no prediction for each token")
    logits = of_tokens(logits, ids.shape, "its logits")
    before = logits[:, :last]
    if not before.numel() or agree(before[0], before[1], rounding_of(logits, _LEAST_TOLERANCE)):
        return Predictions("next")
    if not set(_masked_models()) & {base.__name__ for base in type(model).__mro__}:
        return Predictions(None, why=f"{name} looks at what follows a token too, and is no masked language model")
    mask_token_id = getattr(config, "mask_token_id", None) if mask_token_id is None else mask_token_id
    if mask_token_id is None:
        return Predictions(None, why=f"the mask token of {name} is not known: pass its tokenizer")
    return Predictions("masked", mask_token_id)


def _another(token_id: int, config: Any) -> int:
    """Another token than this one that is no padding either."""
    others = ((token_id + step) % config.vocab_size for step in (1, 2))
    return next(other for other in others if other != getattr(config, "pad_token_id", None))


def _masked_models() -> Iterator[str]:
    for names in MODEL_FOR_MASKED_LM_MAPPING_NAMES.values():
        yield from [names] if isinstance(names, str) else names


def _next_question(batch: TokenBatch) -> Question:
    """A prediction counts where the predicted token exists and the token at the position was not left out."""
    counts = torch.zeros_like(batch.keep)
    counts[:, :-1] = batch.keep[:, :-1] & batch.attention_mask[:, 1:].bool()
    following = batch.input_ids.roll(-1, dims=1)
    return Question(batch, counts.flatten().nonzero().squeeze(1), following[counts])


def _masked_question(batch: TokenBatch, mask_token_id: int | None) -> Question:
    hidden = torch.zeros_like(batch.keep)
    for row, (ids, mask, keep) in enumerate(zip(*batch, strict=True)):
        counting = keep.nonzero().squeeze(1)
        if len(counting):
            chosen = torch.randperm(len(counting), generator=_seeded_by(ids[mask.bool()]))
            hidden[row, counting[chosen[: max(1, round(MASKED_SHARE * len(counting)))]]] = True
    ids = batch.input_ids.masked_fill(hidden, mask_token_id or 0)
    return Question(batch._replace(input_ids=ids), hidden.flatten().nonzero().squeeze(1), batch.input_ids[hidden])


def _seeded_by(ids: Tensor) -> torch.Generator:
    digest = hashlib.sha256(ids.cpu().numpy().astype("<i8").tobytes()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))
