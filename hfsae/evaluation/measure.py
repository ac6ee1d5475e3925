"""The measuring: every batch is read once as it is, and once for everything that is put in an activation's place."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from hfsae.data import TokenBatch
from hfsae.evaluation.losses import next_token_losses
from hfsae.evaluation.replay import Replay, model_inputs
from hfsae.evaluation.sums import Sums, add, reconstruction_sums
from hfsae.evaluation.text import rows
from hfsae.hooks import HookPoint
from hfsae.hooks.tokens import of_tokens
from hfsae.outputs import SAEOutput


@dataclass
class Subject:
    """Something that is measured: an SAE, or what stands in its place.

    Args:
        reconstruct: From activations (N, d_in) at `source` to what it makes of them.
        source: Where it reads.
        target: Where it writes.
        device: Where it wants its activations.
        sums: What was measured so far.
    """

    reconstruct: Callable[[Tensor], SAEOutput]
    source: HookPoint
    target: HookPoint
    device: torch.device
    sums: Sums = field(default_factory=dict)


SubjectName: TypeAlias = tuple[str, str]
"""The name of an SAE, and whether it is measured itself or a baseline of it."""

_CLEAN = ("clean", None)


@torch.no_grad()
def measure(
    model: PreTrainedModel,
    subjects: Mapping[SubjectName, Subject],
    batches: Sequence[TokenBatch],
    means: Mapping[HookPoint, Tensor],
    *,
    disable_tqdm: bool = False,
) -> None:
    """Adds everything that can be measured on some text to the sums of some subjects.

    The clean run, and the runs with the activations at a place replaced by 0 and by their mean, are shared by all
    subjects that they concern.

    Args:
        model: The language model.
        subjects: What is measured, by name.
        batches: The text.
        means: For every place that a subject writes to, the mean activation (d,) of other text.
        disable_tqdm: Whether to show no progress bar.
    """
    replay = Replay(
        model,
        (subject.source for subject in subjects.values()),
        (subject.target for subject in subjects.values()),
        model_inputs(model, batches[0]),
    )
    n_runs = 1 + 2 * len(means) + len(subjects)
    total = sum(int(batch.keep.sum()) for batch in batches)
    with tqdm(total=total, unit="tok", desc="evaluating", disable=disable_tqdm) as bar:
        for batch in batches:
            length = batch.input_ids.shape[1]
            for piece in _pieces(batch, replay.sequences_at_once(length, n_runs)):
                _measure_batch(replay, model_inputs(model, piece), piece, subjects, means)
                bar.update(int(piece.keep.sum()))


def _pieces(batch: TokenBatch, sequences: int | None) -> Iterator[TokenBatch]:
    n_sequences = len(batch.input_ids)
    step = sequences or n_sequences
    return (rows(batch, slice(start, start + step)) for start in range(0, n_sequences, step))


def _measure_batch(
    replay: Replay,
    inputs: Mapping[str, Tensor],
    batch: TokenBatch,
    subjects: Mapping[SubjectName, Subject],
    means: Mapping[HookPoint, Tensor],
) -> None:
    predicting, following = _predictions(batch)
    activations, final = replay.read(inputs)

    def at_predictions(final: Tensor) -> Tensor:
        return of_tokens(final, batch.input_ids.shape, "the last state").flatten(0, 1)[predicting.to(final.device)]

    def run_with(place: HookPoint, replacement: Tensor) -> Tensor:
        """The run in which tokens that count have another activation; the others keep their own."""
        changed = activations[place].clone()
        of_tokens(changed, batch.input_ids.shape, place)[batch.keep.to(changed.device)] = replacement.to(changed)
        return at_predictions(replay.write(inputs, place, changed))

    finals: dict[tuple[str, Hashable], Tensor] = {_CLEAN: at_predictions(final)}
    for place, mean in means.items():
        finals["zero", place] = run_with(place, torch.zeros_like(mean))
        finals["mean", place] = run_with(place, mean)
    for name, subject in subjects.items():
        source, target = (
            of_tokens(activations[place], batch.input_ids.shape, place)[batch.keep.to(activations[place].device)].to(
                subject.device
            )
            for place in (subject.source, subject.target)
        )
        output = subject.reconstruct(source)
        assert output.reconstruction is not None and output.features is not None
        sums = reconstruction_sums(target, output.reconstruction, output.features, means[subject.target])
        subject.sums = add(subject.sums, sums)
        finals["spliced", name] = run_with(subject.target, output.reconstruction)

    diverging = [run for run in finals if run[0] == "spliced"]
    nats, divergences = next_token_losses(
        finals, following, replay.logits, replay.vocabulary, clean=_CLEAN, diverging=diverging
    )
    for name, subject in subjects.items():
        sums = {
            "n_sequences": torch.tensor(len(batch.input_ids), dtype=torch.float64),
            "n_predictions": torch.tensor(len(following), dtype=torch.float64),
            "clean_nats": nats[_CLEAN],
            "spliced_nats": nats["spliced", name],
            "zero_nats": nats["zero", subject.target],
            "mean_nats": nats["mean", subject.target],
            "kl_nats": divergences["spliced", name],
        }
        subject.sums = add(subject.sums, sums)


def _predictions(batch: TokenBatch) -> tuple[Tensor, Tensor]:
    """The flat positions whose prediction counts, and the tokens that followed them.

    A prediction counts where the predicted token exists and the token at the position was not left out.
    """
    counts = torch.zeros_like(batch.keep)
    counts[:, :-1] = batch.keep[:, :-1] & batch.attention_mask[:, 1:].bool()
    following = batch.input_ids.roll(-1, dims=1)
    return counts.flatten().nonzero().squeeze(1), following[counts]
