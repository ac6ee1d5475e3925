"""`KLFinish`: what the last steps of a run with `kl_tokens` read, and the term that they add to each SAE's loss.

Over them the loss is MSE + α · KL(untouched model ‖ model with the reconstruction in place). In each step KL pulls
`kl_weight` times as hard at the reconstruction as MSE does. That is the ratio of the lengths of their gradients there,
in scaled space. The paper (arXiv:2503.17272) makes the terms equally large, which lets KL pull several times as hard.
What else an architecture's loss has stays as it is.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hfsae.arguments.training_arguments import SAETrainingArguments
from hfsae.autoencoder.model import SparseAutoencoder
from hfsae.autoencoder.outputs import Downstream, StepState
from hfsae.data import TokenBatch, TokenBlocks
from hfsae.data.activation_sources import check_finite
from hfsae.evaluation.predictions import predictions_of
from hfsae.evaluation.text_batches import counted
from hfsae.evaluation.together import are_set
from hfsae.functional import at_least_float32
from hfsae.hooks import HookPoint
from hfsae.in_model import SAEHookPoints
from hfsae.inputs.base_model import BaseModel
from hfsae.inputs.streams import window_tokens
from hfsae.kl_finish.divergence import Divergence, DivergenceMeter, Reading
from hfsae.kl_finish.sequence_batches import SequenceBatches

logger = logging.getLogger(__name__)

# α is never above the error over so many nats: what is left of a smaller divergence is rounding.
_LEAST_NATS = 1e-6
# Sequences of the whole finish are shuffled at once, up to so many tokens.
_WINDOW_TOKENS = 1 << 18
# Tokens that a step is tried on before the run, to say how long the others will take.
_TRIED_TOKENS = 1024

_NEEDS = "kl_tokens runs the language model over whole sequences of text"


def kl_steps(args: SAETrainingArguments, processes: int) -> int:
    """Optimiser steps at the end of a run on so many processes that look at the model's predictions; 0 for none."""
    total, per_step = args.total_steps_on(processes), args.training_tokens / args.total_steps_on(processes)
    if not args.kl_tokens:
        return 0
    steps = args.kl_tokens * total if args.kl_tokens <= 1 else args.kl_tokens / per_step
    return min(max(1, round(steps)), total)


def refuse_kl_finish(args: SAETrainingArguments, processes: int, *, own_activations: bool) -> None:
    """Raises where a run with `kl_tokens` cannot have it, before anything is loaded.

    Args:
        args: The run's arguments.
        processes: Number of processes.
        own_activations: Whether the user brings activations.

    Raises:
        ValueError: Says why, and what to do.
    """
    if not args.kl_tokens:
        return
    if own_activations or args.activation_cache is not None:
        what = "activations of your own have" if own_activations else "an activation cache has"
        raise ValueError(f"{_NEEDS}, and {what} neither: train from the model and its text, or leave kl_tokens out.")
    if processes > 1 and args.sae_placement != "replicate":
        raise ValueError(
            f"{_NEEDS} with every SAE in its place, and with sae_placement={args.sae_placement!r} a process has some "
            "of them only: use sae_placement='replicate', or leave kl_tokens out."
        )


class _Read(NamedTuple):
    """One batch of a step: rows by hook point, and the readings of its pieces."""

    rows: dict[str, Tensor]
    readings: list[Reading]


class _Moved(NamedTuple):
    """What a batch says of one SAE.

    Attributes:
        nats: () a token.
        gradient: (N, d_out) of it with respect to the reconstruction.
        rows: (N, d_in) that the SAE read for it; None where those are the batch itself.
    """

    nats: Tensor
    gradient: Tensor
    rows: Tensor | None


class KLFinish:
    """The steps at the end of a run in which SAEs also learn to keep the language model's predictions.

    Args:
        args: The run's arguments.
        base: The language model, on its device, from which a source of activations reads.
        blocks: The training text, this process's share; it belongs to the finish.
        hook_points: Where each SAE reads and writes, by name. A set of transcoders stands in the model at once, other
            SAEs one at a time.
        process: The rank of this process and the number of processes.
        mean: Averages a tensor over the processes.

    Attributes:
        steps: How many there are.
        first_step: Steps of the run before them.

    Raises:
        ValueError: If the model or an SAE cannot be trained so; says why.
    """

    def __init__(
        self,
        args: SAETrainingArguments,
        base: BaseModel,
        blocks: TokenBlocks,
        hook_points: Mapping[str, SAEHookPoints],
        process: tuple[int, int],
        *,
        mean: Callable[[Tensor], Tensor],
    ):
        processes = process[1]
        self.steps, self._process = kl_steps(args, processes), process
        self.first_step = args.total_steps_on(processes) - self.steps
        self._args, self._model, self._hook_points, self._mean = args, base.model, dict(hook_points), mean
        self._together = are_set(hook_points.values())
        self._batches = args.gradient_accumulation_steps
        places = {name: reads_and_writes_at(name, points) for name, points in hook_points.items()}
        self._start = blocks.state_dict()
        first = next(blocks)
        blocks.load_state_dict(self._start)
        self._blocks = blocks
        if predictions_of(base.model, first).of != "next":
            raise ValueError(
                f"{_NEEDS} and compares what it predicts next, which {type(base.model).__name__} does not: leave "
                "kl_tokens out."
            )
        self._meter = DivergenceMeter(
            *(base.model, places, first),
            sequences=args.lm_batch_sequences,
            longest=blocks.context_length,
            autocast=base.read_in == torch.bfloat16 != base.model.dtype,
        )
        self._sequences: SequenceBatches | None = None
        self._read: list[_Read] = []

    # -- the place in the text ----------------------------------------------------------------------------------------
    @property
    def is_open(self) -> bool:
        """Whether the text is read here, and no more by the stream of shuffled activations."""
        return self._sequences is not None

    def open_at(self, place: dict[str, Any]) -> None:
        """Begins to read, where a source of activations has ended.

        Args:
            place: What the source's `state_dict` gave.
        """
        self._blocks.load_state_dict(place)
        self._sequences = self._new_sequences()

    def state_dict(self) -> dict[str, Any]:
        """Where the next step begins to read, in values that JSON can hold."""
        assert self._sequences is not None
        return {"sequences": self._sequences.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to where `state_dict` was called, or to a place before the finish, which is not open then."""
        self._sequences = None
        if "sequences" in state:
            self._sequences = self._new_sequences()
            self._sequences.load_state_dict(state["sequences"])

    def _new_sequences(self) -> SequenceBatches:
        args, (rank, processes) = self._args, self._process
        window = window_tokens(args, processes)
        if window:  # token ids take little room
            window = max(window, min(_WINDOW_TOKENS, self.steps * self._batches * args.train_batch_tokens))
        return SequenceBatches(self._blocks, args.train_batch_tokens, window_tokens=window, seed=args.seed, rank=rank)

    # -- a step -------------------------------------------------------------------------------------------------------
    def next_batches(self) -> list[dict[str, Tensor]]:
        """The rows by hook point of each batch of a step; what `terms` will look at.

        Raises:
            NonFiniteActivationsError: If there is NaN or infinity among them.
        """
        assert self._sequences is not None
        self._read = [self._read_batch(next(self._sequences)) for _ in range(self._batches)]
        return [batch.rows for batch in self._read]

    def _read_batch(self, batch: TokenBatch) -> _Read:
        readings = [self._meter.read(piece) for piece in self._meter.pieces(batch)]
        rows = {
            str(place): at_least_float32(
                torch.cat([counted(one.activations[place], one.batch, place) for one in readings])
            )
            for place in readings[0].activations
        }
        check_finite(rows)
        return _Read(rows, readings)

    def terms(
        self, saes: Mapping[str, SparseAutoencoder], states: Mapping[str, StepState]
    ) -> dict[str, list[Downstream]]:
        """The terms of each SAE's loss for the batches that were read last, one a batch.

        Args:
            saes: The SAEs by name, as they are before the step.
            states: The step as each of them sees it.
        """
        errors = {name: torch.zeros((), dtype=torch.float32, device=sae.device) for name, sae in saes.items()}
        found: dict[str, list[_Moved]] = {name: [] for name in saes}
        pulls: dict[str, list[Tensor]] = {name: [] for name in saes}
        for batch in self._read:
            written = {}
            for name, sae in saes.items():
                written[name], error = self._made(sae, self._hook_points[name], batch.rows, states[name])
                errors[name] = errors[name] + error / len(self._read)
            moved = self._of_all(batch, saes, states) if self._together else self._of_each(batch, written)
            for name, one in moved.items():
                found[name].append(one)
                there = self._hook_points[name].rows(batch.rows) if one.rows is None else one.rows
                there, gradient = (tensor.to(saes[name].device) for tensor in (there, one.gradient))
                pulls[name].append(saes[name].scaled_gradient(gradient.to(there), there).square().sum())
        return {name: self._weighted(errors[name], torch.stack(pulls[name]).mean(), found[name]) for name in saes}

    def _weighted(self, error: Tensor, pull: Tensor, found: list[_Moved]) -> list[Downstream]:
        """The terms of one SAE, which pull `kl_weight` times as hard as its error over all batches and processes.

        Args:
            error: () its mean squared error in scaled space. That of N tokens has a gradient of length 2 √(error / N).
            pull: () the squared length of KL's gradient there, the mean over batches.
            found: What each batch says.
        """
        args = self._args
        error, pull = self._mean(error), self._mean(pull.to(error))
        pull = pull.clamp(min=torch.finfo(pull.dtype).tiny)  # 0 / 0 would be no number
        alpha = args.kl_weight * (4 * error / args.train_batch_tokens / pull).sqrt()
        alpha = alpha.clamp(max=error / _LEAST_NATS)
        return [
            Downstream(
                loss=alpha * one.nats.to(alpha),
                gradient=alpha * one.gradient.to(alpha),
                kl=one.nats.to(alpha),
                activations=one.rows,
            )
            for one in found
        ]

    def _of_each(self, batch: _Read, written: Mapping[str, Tensor]) -> dict[str, _Moved]:
        """Nats a token, gradients and rows of SAEs that stand in the model one at a time."""
        found = {}
        for name, reconstruction in written.items():
            sizes = [int(one.batch.keep.sum()) for one in batch.readings]
            parts = zip(batch.readings, reconstruction.split(sizes), strict=True)
            nats, gradient, _ = _joined(name, [self._meter.of_one(one, name, part) for one, part in parts])
            found[name] = _Moved(nats, gradient, None)
        return found

    def _of_all(
        self, batch: _Read, saes: Mapping[str, SparseAutoencoder], states: Mapping[str, StepState]
    ) -> dict[str, _Moved]:
        """The same of SAEs that stand in the model at once, each with the rows that it has read there."""

        def write(name: str, x: Tensor) -> Tensor:
            sae = saes[name]
            with self._autocast(sae):
                return sae.training_reconstruction(at_least_float32(x.to(sae.device)), states[name].progress)

        moved = [self._meter.of_all(one, write) for one in batch.readings]
        return {name: _joined(name, moved) for name in saes}

    @torch.no_grad()
    def _made(
        self, sae: SparseAutoencoder, points: SAEHookPoints, rows: Mapping[str, Tensor], state: StepState
    ) -> tuple[Tensor, Tensor]:
        """What an SAE writes for rows, (N, d_out), and its mean squared error, (), in scaled space."""
        target = points.target_rows(rows)
        with self._autocast(sae):
            output = sae(
                points.rows(rows).to(sae.device),
                None if target is None else target.to(sae.device),
                state=replace(state, auxk_alpha=0.0),
            )
        error = output.statistics.squared_error
        return output.reconstruction, output.losses["mse"] if error is None else error

    def _autocast(self, sae: SparseAutoencoder) -> torch.autocast:
        return torch.autocast(sae.device.type, torch.bfloat16, enabled=self._args.bf16)

    # -- before the run -----------------------------------------------------------------------------------------------
    def rehearse(self, widths: Mapping[str, int], *, says: bool = True) -> None:
        """Tries a part of a step, with 0 for every reconstruction, and says what all of them will cost.

        Args:
            widths: The size of the activations at each hook point.
            says: Whether this process does.
        """
        tokens = min(_TRIED_TOKENS, self._args.train_batch_tokens)
        seconds = 0.0
        for _ in range(2):  # the first time pays for everybody's setup
            self._blocks.load_state_dict(self._start)
            batch = next(SequenceBatches(self._blocks, tokens))
            begun = time.perf_counter()
            self._try(self._read_batch(batch), widths)
            seconds = time.perf_counter() - begun
        self._blocks.load_state_dict(self._start)
        a_step = seconds * self._batches * self._args.train_batch_tokens / tokens
        passes = 1 if self._together else len(self._hook_points)
        if not says:
            return
        logger.warning(
            "KL finish: the last %s of %s steps run the language model over whole sequences, and %s more, forwards "
            "and backwards above the SAEs: about %.2g s a step beside the SAEs' own, %s in all.",
            f"{self.steps:,}",
            f"{self.first_step + self.steps:,}",
            "once" if passes == 1 else f"{passes} times",
            a_step,
            _duration(a_step * self.steps),
        )

    def _try(self, batch: _Read, widths: Mapping[str, int]) -> None:
        nothing = {name: widths[points.target] for name, points in self._hook_points.items()}
        if self._together:
            for one in batch.readings:
                self._meter.of_all(one, lambda name, x: x.new_zeros(len(x), nothing[name]))
        else:
            n_rows = len(next(iter(batch.rows.values())))
            device = self._model.device
            self._of_each(
                batch,
                {
                    name: torch.zeros(n_rows, width, dtype=torch.float32, device=device)
                    for name, width in nothing.items()
                },
            )


def reads_and_writes_at(name: str, points: SAEHookPoints) -> tuple[HookPoint, HookPoint]:
    """Where an SAE reads and where it writes.

    Raises:
        ValueError: If it has several places.
    """
    if len(points.read_names) > 1:
        called = f"SAE {name!r}" if name else "the SAE"
        raise ValueError(
            f"kl_tokens puts a reconstruction into one place, but {called} reads several ({points.reads}), as "
            "crosscoders and cross-layer transcoders do: leave kl_tokens out."
        )
    return HookPoint.parse(points.reads), HookPoint.parse(points.target)


def _joined(name: str, parts: list[Divergence]) -> _Moved:
    """Nats a token, their gradient (N, d_out), and the rows that were read, from the pieces of a batch."""
    gradient = torch.cat([part.gradients[name] for part in parts])
    nats = torch.stack([part.nats for part in parts]).sum()
    read = at_least_float32(torch.cat([part.read[name] for part in parts]))
    return _Moved(nats / len(gradient), gradient / len(gradient), read)


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.2g} min" if seconds < 3600 else f"{seconds / 3600:.2g} h"
