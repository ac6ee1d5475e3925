"""How far a language model's predictions move where SAEs stand in it, with the gradient for what they write."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from hfsae.data import TokenBatch
from hfsae.evaluation.losses import without_impossible
from hfsae.evaluation.spliced_model import SplicedModel, model_inputs
from hfsae.evaluation.text_batches import counted
from hfsae.evaluation.together import Replaced
from hfsae.functional import at_least_float32
from hfsae.functional.gradients import weights_frozen
from hfsae.hooks import HookPoint
from hfsae.hooks.quantised import gradients_reach_through
from hfsae.hooks.tokens import of_tokens

# Logits are made and used up in pieces of this many numbers, but of no fewer rows than keep the product efficient.
_CPU_PIECE, _ACCELERATOR_PIECE, _LEAST_ROWS = 1 << 20, 1 << 25, 64


class Reading(NamedTuple):
    """One piece of text as the untouched model reads it.

    Attributes:
        batch: The text.
        activations: (batch, seq, d) by place.
        positions: int64 (n,), flat, whose predictions are compared: tokens that count and have a successor.
        final: (n, ...), of which logits are made.
        memory: What `SplicedModel.write` needs to leave out the blocks below.
    """

    batch: TokenBatch
    activations: dict[HookPoint, Tensor]
    positions: Tensor
    final: Tensor
    memory: dict[nn.Module, Any]


class Divergence(NamedTuple):
    """What a piece of text says of the SAEs that stand in the model.

    Attributes:
        nats: () float64, summed over positions.
        gradients: (N, d_out) by SAE, of the sum with respect to what each writes at tokens that count.
        read: (N, d_in) by SAE, what each has read there.
    """

    nats: Tensor
    gradients: dict[str, Tensor]
    read: dict[str, Tensor]


class DivergenceMeter:
    """Compares a causal language model with itself where reconstructions stand in it: KL(untouched ‖ spliced).

    Gradients go through the model above the places, whose weights stay as they are.

    Args:
        model: In evaluation mode.
        places: Where each SAE reads and where it writes, by name.
        batch: A first piece of text.
        sequences: How many are read at once, at most.
        longest: Tokens in the longest sequence that will be read.
        autocast: Whether the model's products are made in bfloat16.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        places: Mapping[str, tuple[HookPoint, HookPoint]],
        batch: TokenBatch,
        *,
        sequences: int,
        longest: int,
        autocast: bool,
    ):
        self._model, self._places, self._autocast = model, dict(places), autocast
        self._sequences = sequences
        sources, targets = ([pair[side] for pair in places.values()] for side in (0, 1))
        inputs = model_inputs(model, _lengthened(batch, longest))
        with self._entered(gradients=False):
            self._spliced = SplicedModel(model, sources, targets, inputs)
        self._replaced = Replaced(model, self._places)

    @contextmanager
    def _entered(self, *, gradients: bool) -> Iterator[None]:
        with torch.autocast(self._model.device.type, torch.bfloat16, enabled=self._autocast):
            through = gradients_reach_through(self._model) if gradients else nullcontext()
            with torch.set_grad_enabled(gradients), through:
                yield

    def pieces(self, batch: TokenBatch) -> list[TokenBatch]:
        """A piece of text in parts that are read at once."""
        step = min(self._sequences, self._spliced.sequences_at_once(batch.input_ids.shape[1], 2) or self._sequences)
        starts = range(0, len(batch.input_ids), step)
        return [TokenBatch(*(part[start : start + step] for part in batch)) for start in starts]

    def read(self, batch: TokenBatch) -> Reading:
        """The untouched model over a piece of text."""
        with self._entered(gradients=False):
            activations, final = self._spliced.read(model_inputs(self._model, batch))
            positions = _predicting(batch)
            chosen = _at(final, batch, positions)
        return Reading(batch, activations, positions, chosen, self._spliced.memory)

    def of_one(self, reading: Reading, name: str, reconstruction: Tensor) -> Divergence:
        """With what one SAE writes, (N, d_out) at the tokens that count, in its place."""
        source, target = self._places[name]
        x = reading.activations[target]
        leaf = reconstruction.detach().to(x.device).requires_grad_()
        self._spliced.memory = reading.memory
        with self._entered(gradients=True), weights_frozen(self._model):
            there = x.clone()
            of_tokens(there, reading.batch.input_ids.shape, target)[reading.batch.keep.to(x.device)] = leaf.to(x.dtype)
            final = self._spliced.write(model_inputs(self._model, reading.batch), target, there)
            nats, gradients = self._compared(reading, final, [leaf])
        read = counted(reading.activations[source], reading.batch, source)
        return Divergence(nats, {name: gradients[0]}, {name: read})

    def of_all(self, reading: Reading, write: Callable[[str, Tensor], Tensor]) -> Divergence:
        """With every SAE in its place at once, each reading what the ones before it left.

        Args:
            reading: The untouched model's.
            write: From a name and the rows (N, d_in) that it reads to those (N, d_out) that it writes, with gradients.
        """
        read: dict[str, Tensor] = {}
        written: dict[str, Tensor] = {}

        def noted(name: str, x: Tensor) -> Tensor:
            read[name] = x.detach()
            made = write(name, x)
            written[name] = made if made.requires_grad else made.requires_grad_()
            return written[name]

        with self._entered(gradients=True), weights_frozen(self._model):
            with self._replaced.by(noted, reading.batch):
                final = self._spliced.run(model_inputs(self._model, reading.batch))
            nats, gradients = self._compared(reading, final, list(written.values()))
        return Divergence(nats, dict(zip(written, gradients, strict=True)), read)

    def _compared(self, reading: Reading, final: Tensor, written: list[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        spliced = _at(final, reading.batch, reading.positions)
        nats, gradient = kl_and_gradient(reading.final, spliced, self._spliced.logits, self._spliced.vocabulary)
        return nats, torch.autograd.grad(spliced, written, gradient)


def kl_and_gradient(
    clean: Tensor, spliced: Tensor, logits: Callable[[Tensor], Tensor], vocabulary: int
) -> tuple[Tensor, Tensor]:
    """Σ over positions of KL(clean ‖ spliced), and its gradient with respect to `spliced`, without all logits at once.

    Args:
        clean: (n, ...), of which `logits` makes (n, vocabulary).
        spliced: The same.
        logits: Makes them of some rows.
        vocabulary: Number of logits a position has.

    Returns:
        () float64, and the shape of `spliced`.
    """
    piece = (_CPU_PIECE if clean.device.type == "cpu" else _ACCELERATOR_PIECE) // vocabulary
    nats, gradients = torch.zeros((), dtype=torch.float64, device=clean.device), []
    if not len(clean):  # a sequence of which the last token alone counts
        return nats, torch.zeros_like(spliced)
    for known, moved in zip(*(side.split(max(piece, _LEAST_ROWS)) for side in (clean, spliced)), strict=True):
        leaf = moved.detach().requires_grad_()
        made = logits(leaf)
        with torch.no_grad():
            reference = F.log_softmax(at_least_float32(logits(known)), dim=-1)
            log = F.log_softmax(at_least_float32(made), dim=-1)
            probability = reference.exp()
            change = without_impossible(reference - log, reference)
            nats += change.mul_(probability).sum(dtype=torch.float64)
            by_logit = (log.exp_() - probability).to(made.dtype)
        gradients += torch.autograd.grad(made, leaf, by_logit)
    return nats, torch.cat(gradients)


def _at(final: Tensor, batch: TokenBatch, positions: Tensor) -> Tensor:
    return of_tokens(final, batch.input_ids.shape, "the last state").flatten(0, 1)[positions.to(final.device)]


def _predicting(batch: TokenBatch) -> Tensor:
    """Where an evaluation looks at predictions too: the token counts, and there is one behind it."""
    counts = torch.zeros_like(batch.keep)
    counts[:, :-1] = batch.keep[:, :-1] & batch.attention_mask[:, 1:].bool()
    return counts.flatten().nonzero().squeeze(1)


def _lengthened(batch: TokenBatch, longest: int) -> TokenBatch:
    """The first sequence, repeated until it is as long as any that will come."""
    ids = batch.input_ids[:1, : int(batch.attention_mask[0].sum())]
    ids = ids.repeat(1, -(-longest // ids.shape[1]))[:, :longest]
    return TokenBatch(ids, torch.ones_like(ids), torch.ones_like(ids, dtype=torch.bool))
