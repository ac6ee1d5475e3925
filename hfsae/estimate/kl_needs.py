"""What the KL finish of a run needs: passes of the whole language model, and backwards above the SAEs."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from hfsae.arguments.training_arguments import SAETrainingArguments
from hfsae.estimate.machine import Work
from hfsae.evaluation.together import are_set
from hfsae.hooks import HookPoint
from hfsae.hooks.layout import DecoderLayout
from hfsae.in_model import SAEHookPoints
from hfsae.kl_finish.finish import kl_steps, reads_and_writes_at

# A pass forwards, and one backwards that leaves the model's weights out, are as many products.
_FORWARDS_AND_BACKWARDS = 2


@dataclass(frozen=True)
class KLNeeds:
    """What a KL finish needs.

    Args:
        batches: Batches of a process.
        flops_per_token: Of the language model: the untouched pass, and those with SAEs in it.
        kept_blocks: Blocks whose inner activations a backward pass needs, at most.
    """

    batches: float
    flops_per_token: float
    kept_blocks: int

    def of_batch(self, one_pass: Work, flops: float) -> Work:
        """What a batch takes, from what a pass up to the last hook point, of so many operations a token, takes."""
        return one_pass * (self.flops_per_token / flops)


def kl_needs(
    args: SAETrainingArguments, model: PreTrainedModel, hook_points: Mapping[str, SAEHookPoints], processes: int
) -> KLNeeds | None:
    """What the KL finish of a run needs; None where it has none.

    Args:
        args: The run's arguments.
        model: The language model; its weights are not looked at.
        hook_points: Where each SAE reads and writes, by name.
        processes: Number of processes.

    Raises:
        ValueError: If an SAE cannot have one; says why.
    """
    if not (steps := kl_steps(args, processes)):
        return None
    layout = DecoderLayout.find(model)
    blocks: list[nn.Module] = list(layout.blocks) if layout is not None else [model]
    reached = [_blocks_below(reads_and_writes_at(name, points)[1], layout) for name, points in hook_points.items()]
    below = [min(reached)] if are_set(hook_points.values()) else reached
    config = model.config.get_text_config()
    head = 2.0 * config.hidden_size * config.vocab_size
    attention = 2.0 * args.context_length * config.hidden_size
    each = [2.0 * sum(p.numel() for p in block.parameters() if p.ndim > 1) + attention for block in blocks]
    # Logits of the untouched model are made beside those of each other pass, piece by piece.
    behind = [_FORWARDS_AND_BACKWARDS * (sum(each[start:]) + head) + head for start in below]
    return KLNeeds(
        batches=steps * args.gradient_accumulation_steps,
        flops_per_token=sum(each) + sum(behind),
        kept_blocks=len(blocks) - min(below),
    )


def _blocks_below(place: HookPoint, layout: DecoderLayout | None) -> int:
    """How many blocks a pass leaves out, since nothing that is written to a place changes them."""
    layer = None if layout is None else layout.layer_of(place.path)
    if layout is None or layer is None:
        return 0
    return layer + 1 if place == HookPoint(layout.block_path(layer), "output") else layer
