"""Activations of other text: their mean is what CE mean puts in x's place, and baselines are fitted on them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

import torch
import torch.distributed as distributed
from torch import Tensor
from transformers import PreTrainedModel

from hfsae.data import TokenBatch
from hfsae.evaluation.spliced_model import model_inputs
from hfsae.evaluation.text_batches import counted
from hfsae.functional.finite import refuse_non_finite
from hfsae.hooks import HookPoint, capture, resolve_hook_point
from hfsae.processes import all_or_none

Calibration: TypeAlias = Mapping[str, Tensor]
"""Activations (N, d) of text that is not evaluated, by hook point."""


def given_rows(
    calibration: Calibration, model: PreTrainedModel, places: Mapping[HookPoint, int]
) -> dict[HookPoint, Tensor]:
    """The caller's activations by resolved hook point.

    Args:
        calibration: By any name that `resolve_hook_point` takes; a single row serves as the mean.
        model: The language model.
        places: The hook points that are needed, with the size of the activations there.

    Raises:
        ValueError: If there are none for a place, they do not fit, or they hold NaN or infinity.
    """
    given = {resolve_hook_point(model, name): rows for name, rows in calibration.items()}
    for place, size in places.items():
        if place not in given:
            raise ValueError(f"calibration holds activations of {', '.join(map(str, given))}, none of {place}.")
        shape = tuple(given[place].shape)
        if len(shape) != 2 or shape[1] != size or shape[0] < 1:
            raise ValueError(f"the calibration activations of {place} have shape {shape}; expected (N, {size}).")
        refuse_non_finite(given[place], f"the calibration activations of {place}")
    return {place: given[place] for place in places}


@torch.no_grad()
def read_rows(
    model: PreTrainedModel, batches: Sequence[TokenBatch], places: Iterable[HookPoint], *, of_first_process: bool
) -> dict[HookPoint, Tensor]:
    """Activations (N, d) of the tokens that count, in float32, as the model computes them.

    Args:
        model: The language model.
        batches: Text that is not evaluated.
        places: Where to read.
        of_first_process: Whether all processes get what the first one read, so that they measure the same things.

    Raises:
        ValueError: If the model gives NaN or infinity.
    """
    parts: dict[HookPoint, list[Tensor]] = {place: [] for place in places}
    with all_or_none(of_first_process), capture(model, list(parts)) as activations:
        for batch in batches:
            activations.run(**model_inputs(model, batch))
            for place, read in parts.items():
                read.append(counted(activations[place], batch, place).float())
        rows = {place: torch.cat(read) for place, read in parts.items()}
        for place, read in rows.items():
            refuse_non_finite(read, f"the language model's activations at {place}")
    return {place: _broadcast(read) for place, read in rows.items()} if of_first_process else rows


def means_of(known: Mapping[HookPoint, Tensor]) -> dict[HookPoint, Tensor]:
    """The mean (d,) of the rows (N, d) of every place, summed up in float64."""
    return {place: rows.double().mean(0).float() for place, rows in known.items()}


def _broadcast(rows: Tensor) -> Tensor:
    """The first process's rows, on every process."""
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    n_rows = torch.tensor(len(rows), device=device)
    distributed.broadcast(n_rows, src=0)
    shared = rows.to(device) if distributed.get_rank() == 0 else rows.new_empty(int(n_rows), rows.shape[1]).to(device)
    distributed.broadcast(shared, src=0)
    return shared.to(rows.device)
