"""What a change to a language model does to what it says of a text: divergence, perplexity, and which tokens gain.

All figures are means over the predictions that count. They are of tokens that exist, at positions that the SAE does
not leave out, as in an evaluation.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hfsae.attachment import refuse_swapped
from hfsae.autoencoder import SparseAutoencoder
from hfsae.data import TokenBatch
from hfsae.evaluation.losses import without_impossible
from hfsae.evaluation.predictions import Predictions, predictions_of
from hfsae.evaluation.spliced_model import model_inputs
from hfsae.evaluation.text_batches import Text, read_batches
from hfsae.functional.precision import own_precision
from hfsae.hooks.quiet import evaluating

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Change = Callable[[], AbstractContextManager[Any]]

# Log-probabilities are made of so many numbers at once.
_PIECE = 1 << 24


@dataclass(frozen=True)
class TextEffect:
    """A changed language model against the plain one, on a text.

    Attributes:
        n_predictions: Predictions that count.
        kl: Mean KL divergence of the changed model's predictions from the plain one's, KL(plain ‖ changed), in nats.
        top_changed: Share of predictions whose most likely token is another one.
        loss: Mean cross-entropy of the plain model, in nats.
        changed_loss: That of the changed one.
        probabilities: (vocabulary,) float64, each token's mean probability in the plain model.
        changed_probabilities: The same in the changed one.
    """

    n_predictions: int
    kl: float
    top_changed: float
    loss: float
    changed_loss: float
    probabilities: Tensor
    changed_probabilities: Tensor

    @property
    def perplexity(self) -> float:
        """Of the plain model, exp(loss)."""
        return math.exp(self.loss)

    @property
    def changed_perplexity(self) -> float:
        """Of the changed model; infinite where a float cannot hold it."""
        return math.exp(self.changed_loss) if self.changed_loss < 700 else math.inf

    def of_tokens(self, token_ids: Sequence[int]) -> tuple[float, float]:
        """The mean probability that one of some tokens comes next: in the plain model, and in the changed one."""
        ids = torch.as_tensor(list(token_ids))
        return float(self.probabilities[ids].sum()), float(self.changed_probabilities[ids].sum())

    def most_moved(self, k: int, *, raised: bool) -> list[int]:
        """The tokens whose mean probability rises most, or falls most; the strongest first.

        Args:
            k: How many tokens.
            raised: Whether it rises.

        Raises:
            ValueError: If k is negative.
        """
        if k < 0:
            raise ValueError(f"k is {k}: expected 0 tokens or more.")
        shift = self.changed_probabilities - self.probabilities
        best = shift.topk(min(k, len(shift)), largest=raised)
        return best.indices[best.values > 0 if raised else best.values < 0].tolist()


@torch.no_grad()
@own_precision()
def text_effects(
    model: PreTrainedModel,
    sae: SparseAutoencoder,
    data: Text,
    changes: Mapping[Any, Change],
    *,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    max_tokens: int = 20_000,
    batch_size: int = 16,
    reference: Change | None = None,
) -> dict[Any, TextEffect]:
    """Runs a model over a text, plain and with each of some changes in place.

    Args:
        model: A causal LM.
        sae: The SAE; its config says how the text is cut, and which tokens count.
        data: The text, as `hfsae.evaluate_sae` takes it.
        changes: What is entered around the model's call, by any key.
        tokenizer: Needed for texts.
        max_tokens: Tokens that count.
        batch_size: Sequences a batch.
        reference: What is entered for the plain run; None leaves the model as it is.

    Raises:
        ValueError: If the text holds no token that counts, or the model does not predict the next token.
    """
    refuse_swapped(sae, model)
    batches = read_batches(data, tokenizer, model, {"": sae.config}, max_tokens=max_tokens, batch_size=batch_size)
    with evaluating(model):
        predictions = predictions_of(model, batches[0])
        if predictions.of != "next":
            raise ValueError(f"{type(model).__name__} predicts no next token, so steering has no effect on one.")
        sums = {key: _Sums() for key in changes}
        for batch in batches:
            plain = _logits(model, batch, predictions, reference)
            for key, change in changes.items():
                sums[key].add(*plain, _logits(model, batch, predictions, change)[0])
    return {key: found.means() for key, found in sums.items()}


def _logits(
    model: PreTrainedModel, batch: TokenBatch, predictions: Predictions, change: Change | None
) -> tuple[Tensor, Tensor]:
    """Logits (n, vocabulary) of the predictions that count, and the tokens (n,) that were right."""
    question = predictions.question(batch)
    if change is None:
        logits = model(**model_inputs(model, batch), use_cache=False).logits
    else:
        with change():
            logits = model(**model_inputs(model, batch), use_cache=False).logits
    answers = question.answers.to(logits.device)
    return logits.flatten(0, 1)[question.positions.to(logits.device)], answers


class _Sums:
    """Sums over predictions, in float64."""

    def __init__(self) -> None:
        self.n = 0
        self.kl = self.moved = self.loss = self.changed_loss = 0.0
        self.probabilities: Tensor | float = 0.0
        self.changed: Tensor | float = 0.0

    def add(self, plain: Tensor, answers: Tensor, changed: Tensor) -> None:
        rows = max(1, _PIECE // plain.shape[1])
        for some, right, other in zip(plain.split(rows), answers.split(rows), changed.split(rows), strict=True):
            before, after = some.double().log_softmax(-1), other.double().log_softmax(-1)
            probability = before.exp()
            self.n += len(some)
            self.kl += float((probability * without_impossible(before - after, before)).sum())
            self.moved += float((before.argmax(-1) != after.argmax(-1)).sum())
            self.loss -= float(before.gather(1, right[:, None]).sum())
            self.changed_loss -= float(after.gather(1, right[:, None]).sum())
            self.probabilities = self.probabilities + probability.sum(0).cpu()
            self.changed = self.changed + after.exp().sum(0).cpu()

    def means(self) -> TextEffect:
        assert isinstance(self.probabilities, Tensor) and isinstance(self.changed, Tensor)
        n = self.n
        return TextEffect(
            n_predictions=n,
            kl=self.kl / n,
            top_changed=self.moved / n,
            loss=self.loss / n,
            changed_loss=self.changed_loss / n,
            probabilities=self.probabilities / n,
            changed_probabilities=self.changed / n,
        )
