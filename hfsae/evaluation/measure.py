"""The measuring: every batch is read once as it is, and once for everything that is put in an activation's place."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hfsae.autoencoder.outputs import SAEOutput
from hfsae.data import TokenBatch
from hfsae.evaluation.losses import prediction_losses
from hfsae.evaluation.predictions import Predictions
from hfsae.evaluation.spliced_model import model_inputs
from hfsae.evaluation.spliced_models import SplicedModels
from hfsae.evaluation.sums import Sums, add, reconstruction_sums
from hfsae.evaluation.text_batches import counted, rows
from hfsae.functional.finite import refuse_non_finite
from hfsae.hooks import HookPoint, capture
from hfsae.hooks.sites import Sites
from hfsae.hooks.tokens import of_tokens
from hfsae.progress import token_bar


@dataclass(eq=False)
class Measurement:
    """Something that is measured: an SAE, or what stands in its place.

    Args:
        reconstruct: From activations (N, d_in) at the sources, one behind the other, to what it makes of them.
        sources: Where it reads.
        target: Where it writes.
        device: Where it wants its activations.
        sums: What was measured so far.
    """

    reconstruct: Callable[[Tensor], SAEOutput]
    sources: tuple[HookPoint, ...]
    target: HookPoint
    device: torch.device
    sums: Sums = field(default_factory=dict)


MeasurementName: TypeAlias = tuple[str, str]
"""The name of an SAE, and whether it is measured itself or a baseline of it."""

_CLEAN = ("clean", None)


@torch.no_grad()
def measure(
    model: PreTrainedModel,
    measurements: Mapping[MeasurementName, Measurement],
    batches: Sequence[TokenBatch],
    means: Mapping[HookPoint, Tensor],
    predictions: Predictions,
    *,
    disable_tqdm: bool = False,
) -> None:
    """Adds everything that can be measured on some text to the sums of some measurements.

    All measurements that they concern share three runs: the clean run, the run with activations of 0, and the run with
    their mean.

    Args:
        model: The language model.
        measurements: What is measured, by name.
        batches: The text.
        means: For every place that a measurement writes to, the mean activation (d,) of other text.
        predictions: What the language model predicts.
        disable_tqdm: Whether to show no progress bar.
    """
    sources = [source for measurement in measurements.values() for source in measurement.sources]
    targets = [measurement.target for measurement in measurements.values()]
    sites = Sites.at(model, [*sources, *targets])
    spliced_models = None
    if predictions.of is not None:
        spliced_models = SplicedModels(model, sources, targets, model_inputs(model, batches[0]))
    n_runs = 1 + 2 * len(means) + len(measurements)
    total = sum(int(batch.keep.sum()) for batch in batches)
    with token_bar("evaluating", total, disable=disable_tqdm) as bar:
        for batch in batches:
            length = batch.input_ids.shape[1]
            for piece in _pieces(
                batch, spliced_models.sequences_at_once(length, n_runs) if spliced_models is not None else None
            ):
                if spliced_models is None:
                    with capture(model, sites) as read:
                        read.run(**model_inputs(model, piece))
                    activations = {place: read[place] for place in read.hook_points.values()}
                    for measurement in measurements.values():
                        _reconstruct(measurement, activations, piece, means)
                else:
                    _measure_batch(model, spliced_models, piece, measurements, means, predictions)
                bar.update(int(piece.keep.sum()))


def _pieces(batch: TokenBatch, sequences: int | None) -> Iterator[TokenBatch]:
    n_sequences = len(batch.input_ids)
    step = sequences or n_sequences
    return (rows(batch, slice(start, start + step)) for start in range(0, n_sequences, step))


def _reconstruct(
    measurement: Measurement,
    activations: Mapping[HookPoint, Tensor],
    batch: TokenBatch,
    means: Mapping[HookPoint, Tensor],
) -> Tensor:
    """Adds to a measurement's sums what needs no prediction; its reconstructions (N, d) of the tokens that count."""
    target = counted(activations[measurement.target], batch, measurement.target).to(measurement.device)
    read = _read(measurement, activations, batch)
    # What an autoencoder reads is its target: such rows are asked about once.
    rows_by_places = {measurement.sources: read, (measurement.target,): target}
    for places, rows_there in rows_by_places.items():
        refuse_non_finite(rows_there, f"the language model's activations at {' and '.join(map(str, places))}")
    output = measurement.reconstruct(read)
    assert output.reconstruction is not None and output.features is not None
    sums = reconstruction_sums(target, output.reconstruction, output.features, means[measurement.target])
    sums["n_sequences"] = torch.tensor(len(batch.input_ids), dtype=torch.float64)
    measurement.sums = add(measurement.sums, sums)
    return output.reconstruction


def _measure_batch(
    model: PreTrainedModel,
    spliced_models: SplicedModels,
    batch: TokenBatch,
    measurements: Mapping[MeasurementName, Measurement],
    means: Mapping[HookPoint, Tensor],
    predictions: Predictions,
) -> None:
    asked, positions, answers = predictions.question(batch)
    activations, clean = spliced_models.read(model_inputs(model, batch))
    inputs, seen = model_inputs(model, asked), activations
    if asked is not batch:  # where tokens are hidden the activations are others
        seen, clean = spliced_models.read(inputs)

    def at_predictions(final: Tensor) -> Tensor:
        return of_tokens(final, batch.input_ids.shape, "the last state").flatten(0, 1)[positions.to(final.device)]

    def run_with(place: HookPoint, replacement: Tensor) -> Tensor:
        """The run in which tokens that count have another activation; the others keep their own."""
        changed = seen[place].clone()
        of_tokens(changed, batch.input_ids.shape, place)[batch.keep.to(changed.device)] = replacement.to(changed)
        return at_predictions(spliced_models.write(inputs, place, changed))

    finals: dict[str, dict[tuple[str, Hashable], Tensor]] = {
        name: {_CLEAN: at_predictions(final)} for name, final in clean.items()
    }
    for place, mean in means.items():
        of_model = finals[spliced_models.model_of(place)]
        of_model["zero", place] = run_with(place, torch.zeros_like(mean))
        of_model["mean", place] = run_with(place, mean)
    for name, measurement in measurements.items():
        reconstruction = _reconstruct(measurement, activations, batch, means)
        if seen is not activations:
            output = measurement.reconstruct(_read(measurement, seen, batch))
            assert output.reconstruction is not None
            reconstruction = output.reconstruction
        finals[spliced_models.model_of(measurement.target)]["spliced", name] = run_with(
            measurement.target, reconstruction
        )

    for of_model, runs in finals.items():
        spliced = spliced_models.of[of_model]
        diverging = [run for run in runs if run[0] == "spliced"]
        nats, divergences = prediction_losses(
            runs, answers, spliced.logits, spliced.vocabulary, clean=_CLEAN, diverging=diverging
        )
        for name, measurement in measurements.items():
            if spliced_models.model_of(measurement.target) == of_model:
                sums = {
                    "n_predictions": torch.tensor(len(answers), dtype=torch.float64),
                    "clean_nats": nats[_CLEAN],
                    "spliced_nats": nats["spliced", name],
                    "zero_nats": nats["zero", measurement.target],
                    "mean_nats": nats["mean", measurement.target],
                    "kl_nats": divergences["spliced", name],
                }
                measurement.sums = add(measurement.sums, sums)


def _read(measurement: Measurement, activations: Mapping[HookPoint, Tensor], batch: TokenBatch) -> Tensor:
    """The rows (N, d_in) that a measurement reads."""
    parts = [counted(activations[place], batch, place).to(measurement.device) for place in measurement.sources]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)
