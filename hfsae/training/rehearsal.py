"""The evaluation that ends a run, tried on one batch before its first step: hours later it would be too late."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from hfsae.arguments.training_arguments import SAETrainingArguments
from hfsae.data import TokenBatch
from hfsae.evaluation.rehearsal import rehearse
from hfsae.inputs import streams
from hfsae.inputs.base_model import BaseModel, move_base_model
from hfsae.inputs.text_splits import Texts
from hfsae.modeling import SAE


def rehearse_evaluation(
    args: SAETrainingArguments,
    base: BaseModel,
    texts: Texts,
    saes: Mapping[str, SAE],
    *,
    held_out: Mapping[str, Tensor],
    device: torch.device,
    rank: int,
    processes: int,
) -> None:
    """Measures the SAEs of this process on one batch of its share of the text; nothing stays behind.

    Args:
        args: The run's arguments.
        base: The language model, which comes back to where it lay.
        texts: The parts of the text.
        saes: The SAEs by name, not trained yet.
        held_out: Activations by hook point that are not trained on, where there are such already.
        device: Where the language model will be measured in.
        rank: This process.
        processes: The number of processes that share the text.

    Raises:
        ValueError: If it cannot be done; says why.
    """
    before = base.model.device
    try:
        blocks = streams.token_blocks(args, texts.evaluation, base, repeat=False, rank=rank, world_size=processes)
        move_base_model(base, device)
        batch = _counting(blocks)
        other = held_out or (batch if texts.calibration is None else _other_text(args, base, texts))
        rehearse(saes, base.model, batch, other, base.tokenizer)
    except Exception as error:
        message = f"{type(error).__name__}: {error}".rstrip(".")
        raise ValueError(
            f"the evaluation that follows training was tried on one batch, and it failed: {message}. Mend that, or "
            "train without an evaluation: eval_tokens=0."
        ) from error
    finally:
        move_base_model(base, before)


def _other_text(args: SAETrainingArguments, base: BaseModel, texts: Texts) -> TokenBatch:
    one_at_a_time = replace(args, lm_batch_sequences=1)
    return _counting(streams.token_blocks(one_at_a_time, texts.calibration, base, repeat=False))


def _counting(blocks: streams.TokenBlocks) -> TokenBatch:
    """The first batch that holds a token that counts."""
    for batch in blocks:
        if batch.keep.any():
            return batch
    raise ValueError("the text holds no token that counts: every one is left out.")
