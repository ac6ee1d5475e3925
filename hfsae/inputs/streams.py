"""What a run reads: blocks of its text, and the stream of shuffled activations."""

import logging
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel

from hfsae.arguments.training_arguments import SAETrainingArguments
from hfsae.data import (
    ActivationStream,
    DatasetActivations,
    IteratorActivations,
    LMActivations,
    NonFiniteActivationsError,
    RowSource,
    TensorActivations,
    TextSource,
    TokenBlocks,
    default_window_tokens,
)
from hfsae.data.activation_sources import check_finite
from hfsae.data.left_out import placeholder_ids
from hfsae.data.narrow import LowPrecision
from hfsae.data.stored import as_rows
from hfsae.evaluation.calibration import read_rows
from hfsae.evaluation.text_batches import say_shortfall, take
from hfsae.functional.screening import has_bfloat16_units
from hfsae.hooks import HookPoint
from hfsae.hooks.quantised import holds_quantised_weights
from hfsae.inputs.base_model import BaseModel
from hfsae.inputs.text_splits import Texts
from hfsae.processes import all_or_none, process

logger = logging.getLogger(__name__)

# The key of activations that a user brings without naming hook points.
OWN_ACTIVATIONS = "activations"
_CHUNK_ROWS = 8192
# Blocks of so many tokens are mixed, which take 34 MB.
_MIXED_TOKENS = 2**21
# One row in so many of activations that were brought is kept for calibration.
_HELD_OUT_SHARE = 50


def token_blocks(args: SAETrainingArguments, dataset: Any, base: BaseModel, **options: Any) -> TokenBlocks:
    """Blocks of a part of the text, cut as the arguments say."""
    return TokenBlocks(
        dataset,
        base.tokenizer,
        context_length=args.context_length,
        batch_size=args.lm_batch_sequences,
        prepend_bos=args.prepend_bos,
        exclude_special_tokens=args.exclude_special_tokens,
        further_ids=placeholder_ids(base.model.config),
        exclude_positions=args.exclude_positions,
        **TextSource.of_arguments(vars(args)).reading,
        **options,
    )


def training_blocks(
    args: SAETrainingArguments, dataset: Any, base: BaseModel, accelerator: Accelerator | None = None
) -> TokenBlocks:
    """This process's share of the training text, over and over; without an accelerator all of it."""
    rank, processes = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    return token_blocks(
        args,
        dataset,
        base,
        shuffle=args.shuffle_documents and hasattr(dataset, "__len__"),
        mixed_tokens=min(_MIXED_TOKENS, args.training_tokens // processes) if args.shuffle_documents else 0,
        seed=args.seed,
        rank=rank,
        world_size=processes,
        repeat=True,
        wanted_tokens=args.training_tokens // processes,
    )


def model_source(args: SAETrainingArguments, base: BaseModel, blocks: TokenBlocks, places: list[str]) -> RowSource:
    """Activations of the language model at every place, in one pass."""
    source = LMActivations(
        base.model,
        blocks,
        places,
        dtype=getattr(torch, args.activation_dtype),
        prefetch=args.prefetch_batches,
        autocast_dtype=_narrow_dtype(args, base.model),
    )
    base.read_in = source.precision
    if base.read_in != base.model.dtype:
        read, measured = (str(dtype).removeprefix("torch.") for dtype in (base.read_in, base.model.dtype))
        logger.info("the language model reads training text in %s; what is measured of it is in %s.", read, measured)
    return source


def _narrow_dtype(args: SAETrainingArguments, model: PreTrainedModel) -> torch.dtype | None:
    return torch.bfloat16 if runs_in_bfloat16(args, model, model.device) else None


def runs_in_bfloat16(args: SAETrainingArguments, model: PreTrainedModel, device: torch.device) -> bool:
    """Whether the language model's products run in bfloat16.

    They do where it was asked for. They also do on a device with units for it, where neither the model nor its
    activations were asked for in more. Quantised products choose their own precision.
    """
    left_open = args.model_dtype == "auto" and args.activation_dtype == "bfloat16" and model.dtype == torch.float32
    return args.bf16 or (left_open and not holds_quantised_weights(model) and _has_units(device))


def _has_units(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return device.type == "cpu" and has_bfloat16_units()


def calibration_rows(
    args: SAETrainingArguments,
    base: BaseModel,
    texts: Texts,
    places: Iterable[str],
    *,
    of_first_process: bool = False,
    exact: bool = True,
) -> dict[str, Tensor]:
    """Activations of text that is neither trained nor evaluated on, by hook point: (N, d_in) each; none where the
    arguments want none.

    With `of_first_process` every process calls this and all get what the first one read, to the bit. Where they need
    not be `exact`, they are read as training text is: what is measured needs the model's own precision, thresholds do
    not.
    """
    if texts.calibration is None:
        return {}
    with all_or_none(of_first_process):
        blocks = token_blocks(args, texts.calibration, base, repeat=False)
        batches = list(take(blocks, args.tokens_for_calibration))
    if process()[0] == 0:
        say_shortfall(batches, args.tokens_for_calibration, "calibration")
    points = {place: HookPoint.parse(place) for place in dict.fromkeys(places)}  # in the same order everywhere
    narrow = LowPrecision(base.model, points.values(), None if exact else _narrow_dtype(args, base.model))
    with narrow.entered():
        rows = read_rows(base.model, batches, points.values(), of_first_process=of_first_process)
    return {name: rows[point] for name, point in points.items()}


def own_source(activations: Any, accelerator: Accelerator) -> RowSource:
    """Activations that the user brings: tables by hook point, a `datasets.Dataset`, or an iterable of batches."""
    rank, world_size = accelerator.process_index, accelerator.num_processes
    if isinstance(activations, dict):
        return TensorActivations(activations, chunk_rows=_CHUNK_ROWS, rank=rank, world_size=world_size)
    if hasattr(activations, "column_names"):
        columns = _columns(activations)
        return DatasetActivations(activations, columns, chunk_rows=_CHUNK_ROWS, rank=rank, world_size=world_size)
    return IteratorActivations(activations)


def hold_out(activations: Any, args: SAETrainingArguments) -> tuple[Any, dict[str, Tensor]]:
    """Keeps the last rows of activations for calibration; of an iterator nothing can be kept.

    Returns:
        What is left, and the rows by hook point.

    Raises:
        NonFiniteActivationsError: If there is NaN or infinity among the kept rows.
    """
    if isinstance(activations, Tensor | np.ndarray):
        activations = {OWN_ACTIVATIONS: activations}
    if isinstance(activations, dict):
        rows = min(len(tensor) for tensor in activations.values())
    elif hasattr(activations, "select"):
        rows = len(activations)
    else:
        return activations, {}
    kept = min(args.tokens_for_calibration, rows // _HELD_OUT_SHARE)
    if kept == 0:
        return activations, {}
    if isinstance(activations, dict):
        train = {name: tensor[: rows - kept] for name, tensor in activations.items()}
        return train, _finite({name: as_rows(tensor[rows - kept :]) for name, tensor in activations.items()})
    last = activations.select(range(rows - kept, rows)).with_format("torch")[:]
    held_out = _finite({name: last[column] for name, column in _columns(activations).items()})
    return activations.select(range(rows - kept)), held_out


def _finite(held_out: dict[str, Tensor]) -> dict[str, Tensor]:
    try:
        check_finite(held_out)
    except NonFiniteActivationsError as error:
        raise NonFiniteActivationsError(f"of the last rows, which calibrate the SAEs: {error}") from error
    return held_out


def _columns(activations: Any) -> dict[str, str]:
    """The columns of a dataset of activations by the hook points that they are named after."""
    names = activations.column_names
    return {OWN_ACTIVATIONS: names[0]} if len(names) == 1 else {name: name for name in names}


def total_batches(args: SAETrainingArguments, processes: int) -> int:
    """How many batches each of so many processes takes from its stream in a run."""
    return args.total_steps_on(processes) * args.gradient_accumulation_steps


def window_tokens(args: SAETrainingArguments, processes: int) -> int:
    """Tokens in a window of a run on so many processes, no more than the run has; 0 where nothing is shuffled."""
    if args.shuffle_window_tokens is not None:
        return min(args.shuffle_window_tokens, total_batches(args, processes) * args.train_batch_tokens)
    return default_window_tokens(args.training_tokens // processes, args.train_batch_tokens)


def make_stream(
    args: SAETrainingArguments, source: RowSource, accelerator: Accelerator, batches: int | None = None
) -> ActivationStream:
    """The shuffled stream of a run over any source, of so many batches; None for all of the run."""
    processes = accelerator.num_processes
    window = window_tokens(args, processes)
    return ActivationStream(
        source,
        batch_tokens=args.train_batch_tokens,
        window_tokens=window or args.train_batch_tokens,
        total_batches=total_batches(args, processes) if batches is None else batches,
        seed=args.seed,
        rank=accelerator.process_index,
        dtype=getattr(torch, args.activation_dtype),
        shuffle=window > 0,
        device=accelerator.device,
    )


class PeekableStream:
    """A stream whose first batches can be looked at and are still given out: SAEs start from tokens they train on.

    Args:
        stream: An `ActivationStream`.
    """

    def __init__(self, stream: ActivationStream):
        self._stream = stream
        self._seen: list[tuple[dict[str, Any], dict[str, Tensor]]] = []

    def peek(self, batches: int) -> list[dict[str, Tensor]]:
        """The next batches, which `next` will give out again; fewer where the stream ends."""
        while len(self._seen) < batches:
            state = self._stream.state_dict()
            batch = next(self._stream, None)
            if batch is None:
                break
            self._seen.append((state, batch))
        return [batch for _, batch in self._seen[:batches]]

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return self

    def __next__(self) -> dict[str, Tensor]:
        return self._seen.pop(0)[1] if self._seen else next(self._stream)

    def state_dict(self) -> dict[str, Any]:
        """Where the next batch comes from."""
        return self._seen[0][0] if self._seen else self._stream.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to where `state_dict` was called."""
        self._seen.clear()
        self._stream.load_state_dict(state)

    def source_state(self) -> dict[str, Any]:
        """Where the source stands, behind everything that was read of it."""
        return self._stream.source_state()

    def close(self) -> None:
        """Closes the stream."""
        self._stream.close()
