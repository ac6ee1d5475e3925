"""The text that a run is measured on: this process's share of it, and a trial on one batch before training.

Hours later it would be too late to learn that the evaluation fails.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from hfsae.arguments.training_arguments import SAETrainingArguments
from hfsae.autoencoder.model import SparseAutoencoder
from hfsae.data import TokenBatch, TokenBlocks
from hfsae.evaluation.rehearsal import rehearse
from hfsae.inputs.base_model import BaseModel, move_base_model
from hfsae.inputs.streams import token_blocks
from hfsae.inputs.text_splits import Texts


def rehearse_evaluation(
    args: SAETrainingArguments,
    base: BaseModel,
    texts: Texts,
    saes: Mapping[str, SparseAutoencoder],
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
        blocks = token_blocks(args, texts.evaluation, base, repeat=False, rank=rank, world_size=processes)
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
    return _counting(token_blocks(one_at_a_time, texts.calibration, base, repeat=False))


def _counting(blocks: TokenBlocks) -> TokenBatch:
    """The first batch that holds a token that counts."""
    for batch in blocks:
        if batch.keep.any():
            return batch
    raise ValueError("the text holds no token that counts: every one is left out.")
