"""What a run needs before anything is loaded: memory, exactly where tensors are known, and a guess of its time.

The language model and the SAEs are built without weights. Memory counts what training holds at its fullest moment: the
language model, the shuffled window, and weights, gradients and Adam's moments of every SAE. The workspace is that of
one step, since SAEs are stepped one after another. The workspaces are upper guesses; everything else is counted. Time
is a guess of arithmetic, bytes moved and exchanged, and what Python and the tokeniser take
(`hfsae.estimate.machine`).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import nn
from transformers import PreTrainedModel

from hfsae.arguments.sae_settings import config_from_arguments, hook_points_from_arguments, refuse_unread, revival_of
from hfsae.arguments.training_arguments import SAETrainingArguments
from hfsae.data.narrow import NarrowWeights
from hfsae.estimate.kl_needs import kl_needs
from hfsae.estimate.machine import Machine, Work
from hfsae.functional.encode import CHUNK_BYTES, CPU_BREAK_EVEN
from hfsae.hooks import HookPoint, SideBySide
from hfsae.hooks.layout import DecoderLayout
from hfsae.hooks.width import width
from hfsae.hub.markdown import duration
from hfsae.in_model import SAEHookPoints, names_of
from hfsae.inputs import streams
from hfsae.inputs.base_model import named_models, planned_model
from hfsae.inputs.starts import Starts
from hfsae.kl_finish.finish import refuse_kl_finish
from hfsae.modeling import SAE
from hfsae.parallel.placement import Placement, planned_placement

# Tensors of tokens × hidden size that a block of the language model holds at once: the stream, its norm, queries,
# keys, values, attention's output, and the widened MLP before and after its activation.
_STREAMS_IN_A_BLOCK = 14
# The same for a step of an SAE in float32: the batch, centred, scaled, reconstruction, error and gradients.
_STREAMS_IN_A_STEP = 10
# Dense tensors of tokens × features that a step on the dense path holds at once.
_DENSE_IN_A_STEP = 5
# Such tensors that auxk holds where all features are dead; of them, the dead ones' share.
_DENSE_IN_AUXK = 2.5
# Work of a step in encoder products (2·d·n a token): what is measured on a CPU.
_SPARSE_PRODUCTS, _DENSE_PRODUCTS = 1.4, 5.6
# Share of the speed of one large matrix product that a whole language model, and a whole step, reach.
_MODEL_EFFICIENCY, _STEP_EFFICIENCY = 0.5, 0.8
# Seconds that Python and launches take: of a block in a pass of the language model, and of a step (12 ms for the eight
# blocks of a GPT-2, 3 to 5 ms for a step, measured beside a GPU; a CPU's operations are not launched, but called).
_BLOCK_SECONDS, _STEP_SECONDS = 5e-4, 3e-3
# Tokens a second that a thread makes of text, at most.
_TOKENISED = 1e6
# A step of the KL finish makes every reconstruction twice: once before its gradient is known.
_KL_STEP = 1.4
# How often a step reads or writes weights, gradients and moments: products, clipping, Adam.
_PASSES_OVER_STATE = 3
# How often a row is written or read on its way: into the window, out of it and into float32, by the step.
_PASSES_OVER_ROWS = 5


@dataclass(frozen=True)
class SAENeeds:
    """What one SAE of a run needs in a process that trains it.

    Args:
        parameters: Numbers that are trained, in all processes together.
        state_bytes: Weights, gradients and Adam's two moments, in float32.
        workspace_bytes: Of one step, at most.
        flops_per_token: Of one step, in all processes together.
        step: What a step takes of a process that trains it.
    """

    parameters: int
    state_bytes: int
    workspace_bytes: int
    flops_per_token: float
    step: Work


@dataclass(frozen=True)
class Estimate:
    """What a run needs on each of its devices.

    Args:
        model_parameters: Of the language model; 0 where a cache is read.
        model_bytes: Its weights, with the narrow copies that a CPU reads with.
        model_workspace_bytes: Of one pass, at most.
        model_flops_per_token: Of a pass up to the last hook point.
        window_bytes: Of the shuffled activations.
        saes: By name.
        training_tokens: Tokens trained on, over all processes.
        steps: Optimiser steps, times the batches of each.
        reading: What the tokens of a batch take of a process until the SAEs have them.
        kl: How many batches the KL finish has, and what those take instead; None for no finish.
        placement: How the processes share the SAEs.
    """

    model_parameters: int
    model_bytes: int
    model_workspace_bytes: int
    model_flops_per_token: float
    window_bytes: int
    saes: dict[str, SAENeeds]
    training_tokens: int
    steps: float
    reading: Work
    placement: Placement
    kl: tuple[float, Work] | None = None

    @property
    def held_together(self) -> list[SAENeeds]:
        """What one process trains: all SAEs, or what the fullest process owns where they are spread."""
        owners = self.placement.owners({name: needs.parameters for name, needs in self.saes.items()})
        ranks = range(self.placement.processes)
        shares = [[self.saes[name] for name in self.placement.trained_by(rank, owners)] for rank in ranks]
        return max(shares, key=lambda share: sum(needs.state_bytes for needs in share))

    @property
    def fixed_bytes(self) -> int:
        """What is there whatever SAEs are trained."""
        return self.model_bytes + self.window_bytes

    @property
    def peak_bytes(self) -> int:
        """Memory of a device at its fullest moment."""
        return self.fixed_bytes + _held(self.held_together, self.model_workspace_bytes)

    def seconds(self, machine: Machine) -> float:
        """A guess at the time of the training, evaluation aside.

        Args:
            machine: What each process has.
        """
        batch = sum((needs.step for needs in self.held_together), self.reading)
        finish = self.kl[0] if self.kl is not None else 0
        return (self.steps - finish) * batch.seconds(machine) + self.kl_seconds(machine)

    def kl_seconds(self, machine: Machine) -> float:
        """The same of the KL finish alone."""
        if self.kl is None:
            return 0.0
        return self.kl[0] * sum((needs.step * _KL_STEP for needs in self.held_together), self.kl[1]).seconds(machine)

    def groups(self, memory_bytes: int) -> list[list[str]]:
        """The SAEs in groups, in their order, each of which fits into a memory beside all else.

        Raises:
            MemoryError: If one does not fit by itself, or they are spread over processes and do not fit.
        """
        if not self.placement.shares_saes:
            if self.peak_bytes <= memory_bytes:
                return [list(self.saes)]
            raise MemoryError(
                f"{len(self.saes)} SAEs spread over {self.placement.processes} processes need {_gb(self.peak_bytes)} "
                f"in one of them, and {_gb(memory_bytes)} are free: launch more processes, or train fewer SAEs at a "
                "time."
            )
        groups: list[list[str]] = []
        room = memory_bytes - self.fixed_bytes
        for name, needs in self.saes.items():
            if _held([needs], self.model_workspace_bytes) > room:
                raise MemoryError(
                    f"training {name or 'the SAE'} needs {_gb(self.fixed_bytes + needs.state_bytes)} with the window "
                    f"and the language model, and {_gb(memory_bytes)} are free: take fewer features, a smaller "
                    "shuffle_window_tokens, or an activation cache, which needs no language model."
                )
            together = [*(self.saes[other] for other in groups[-1]), needs] if groups else [needs]
            if groups and _held(together, self.model_workspace_bytes) <= room:
                groups[-1].append(name)
            else:
                groups.append([name])
        return groups

    def report(self, memory_bytes: int, machine: Machine) -> str:
        """The estimate as lines for a terminal.

        Args:
            memory_bytes: What the device has to give.
            machine: What each process has.
        """
        saes = self.held_together
        seconds = self.seconds(machine)
        state = sum(sae.state_bytes for sae in saes)
        rows = {
            "language model": f"{_count(self.model_parameters)} parameters, {_gb(self.model_bytes)}",
            "one pass of it": f"at most {_gb(self.model_workspace_bytes)}",
            "shuffled window": _gb(self.window_bytes),
            "SAEs": f"{len(self.saes)}, {_count(sum(sae.parameters for sae in self.saes.values()))} parameters",
            "weights": _gb(state // 4),
            "gradients": _gb(state // 4),
            "optimiser state": _gb(state // 2),
            "one step": f"at most {_gb(max(sae.workspace_bytes for sae in saes))}",
            "peak memory": f"{_gb(self.peak_bytes)} of {_gb(memory_bytes)}" + self._verdict(memory_bytes),
            "tokens/s, a guess": f"{self.training_tokens / seconds:,.0f}",
            "time, a guess": f"{duration(seconds)} for {self.training_tokens:,} tokens",
        }
        if self.kl is not None:
            rows["of them KL finish"] = f"{duration(self.kl_seconds(machine))} for {self.kl[0]:,.0f} batches"
        return "\n".join(f"{title:<18} {value}" for title, value in rows.items())

    def _verdict(self, memory_bytes: int) -> str:
        if self.peak_bytes <= memory_bytes:
            return ""
        try:
            return f": too much at once, {len(self.groups(memory_bytes))} groups would fit"
        except MemoryError:
            return ": too much"


def _held(saes: list[SAENeeds], model_workspace_bytes: int) -> int:
    """States of all, workspace of whatever runs at a time."""
    workspaces = [model_workspace_bytes, *(sae.workspace_bytes for sae in saes)]
    return sum(sae.state_bytes for sae in saes) + max(workspaces)


def estimate(
    args: SAETrainingArguments,
    saes: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    model: PreTrainedModel | None = None,
    device_type: str = "cpu",
    processes: int = 1,
) -> Estimate:
    """What a run with these arguments will need; no weights are loaded and no text is read.

    Args:
        args: The run's arguments.
        saes: Of each SAE by name, the arguments that are its own; None for what `args` says alone.
        model: The language model, where it is an object; else only the config of the one that `args` names is read.
        device_type: `"cpu"` or `"cuda"`: which arithmetic a step takes.
        processes: Number of processes, each with a device.

    Raises:
        ValueError: If the arguments do not fit each other or the model.
        OSError: If a config is not there, of the model or of an SAE to start from.

    Example:
        >>> from hfsae import SAETrainingArguments
        >>> args = SAETrainingArguments(model_name_or_path="examples/tiny_lm", hook_point="resid_post.1")
        >>> estimate(args).saes[""].parameters
        526464
    """
    refuse_kl_finish(args, processes, own_activations=False)
    placement = planned_placement(args.sae_placement, processes)
    skeleton = planned_model(args, named_models(args, model))
    each = Starts().of_run(args, saes or {"": {}})
    refuse_unread(args.given(), list(each.values()))
    found = {name: hook_points_from_arguments(own, skeleton) for name, own in each.items()}
    places = names_of(points for of_sae in found.values() for points in of_sae)
    widths = {place: width(skeleton, place) for place in places}
    read_at = [HookPoint.parse(name) for name in widths]
    needs = {
        name if len(of_sae) == 1 else f"{name} {points.reads}".strip(): _needs(
            each[name], points, widths, device_type, placement
        )
        for name, of_sae in found.items()
        for points in of_sae
    }
    window = streams.window_tokens(args, processes) or args.train_batch_tokens
    row_bytes = sum(widths.values()) * getattr(torch, args.activation_dtype).itemsize
    batch = args.train_batch_tokens
    rows = Work(moved=batch * row_bytes * _PASSES_OVER_ROWS)
    rows += Work(exchanged=batch * row_bytes * (placement.row_shares - 1))
    common = {
        "window_bytes": window * row_bytes,
        "saes": needs,
        "training_tokens": args.training_tokens,
        "steps": args.training_tokens / (batch * processes),
        "placement": placement,
    }
    if args.activation_cache is not None:
        return Estimate(0, 0, 0, 0.0, reading=rows, **common)
    itemsize, config = skeleton.dtype.itemsize, skeleton.config.get_text_config()
    tokens = args.lm_batch_sequences * args.context_length
    parameters = sum(parameter.numel() for parameter in skeleton.parameters())
    read = tokens * sum(widths.values())
    workspace = (tokens * config.hidden_size * _STREAMS_IN_A_BLOCK + read) * itemsize
    blocks, flops = _model_work(skeleton, read_at, args.context_length)
    points = {f"{name} {i}": one for name, of_sae in found.items() for i, one in enumerate(of_sae)}
    kl = kl_needs(args, skeleton, points, processes)
    narrow = streams.runs_in_bfloat16(args, skeleton, torch.device(device_type))
    copied = 0
    if narrow and device_type == "cpu" and skeleton.dtype == torch.float32:
        copied = NarrowWeights(skeleton, read_at, torch.bfloat16).copied_bytes
    one_pass = Work(
        **{"narrow" if narrow else "flops": tokens * flops / _MODEL_EFFICIENCY},
        moved=blocks * workspace + flops / 2 * itemsize,  # streams of every block, and every weight once
        waited=blocks * _BLOCK_SECONDS + tokens / _TOKENISED,
    )
    return Estimate(
        model_parameters=parameters,
        model_bytes=parameters * itemsize + copied,
        model_workspace_bytes=workspace * (1 if kl is None else max(1, kl.kept_blocks)),
        model_flops_per_token=flops,
        reading=rows + one_pass * (batch / tokens),
        kl=None if kl is None else (kl.batches, kl.of_batch(one_pass * (batch / tokens), flops)),
        **common,
    )


def _model_work(model: PreTrainedModel, places: list[HookPoint], context_length: int) -> tuple[int, float]:
    """Blocks up to the last place, and operations per token: two a matrix entry, and attention over half the context.

    Of a mixture of experts it counts every expert, which is too much.
    """
    if isinstance(model, SideBySide):
        own = {name: [model.own(place) for place in places if model.part_of(place) == name] for name in model.models}
        each = [_model_work(one, own[name], context_length) for name, one in model.models.items()]
        return sum(blocks for blocks, _ in each), sum(flops for _, flops in each)
    layout = DecoderLayout.find(model)
    blocks: list[nn.Module] = list(layout.blocks) if layout is not None else [model]
    reached = [layout.layer_of(place.path) for place in places] if layout is not None else []
    if reached and None not in reached:
        blocks = blocks[: 1 + max(layer for layer in reached if layer is not None)]
    matrices = sum(parameter.numel() for block in blocks for parameter in block.parameters() if parameter.ndim > 1)
    attention = len(blocks) * 2 * context_length * model.config.get_text_config().hidden_size
    return len(blocks), 2.0 * matrices + attention


def _needs(
    args: SAETrainingArguments,
    hook_points: SAEHookPoints,
    widths: Mapping[str, int],
    device_type: str,
    placement: Placement,
) -> SAENeeds:
    config = config_from_arguments(args, hook_points, widths)
    with torch.device("meta"):
        sae = SAE.from_config(config)
    revival = revival_of(sae, args.revival)
    parameters = sum(parameter.numel() for parameter in sae.parameters())
    parts = placement.feature_parts
    tokens = args.train_batch_tokens * placement.row_shares
    n = config.n_features // parts
    active = sae.n_groups * config.k if hasattr(config, "k") else args.target_l0 or sae.n_groups * args.k  # type: ignore
    passes, encoder = sae.encoder_passes, sae.encoder.weight.numel()
    matrices = encoder + sum(rows.numel() for rows in sae.decoder_weights)
    sparse = passes > 1 or (device_type == "cpu" and active <= n * CPU_BREAK_EVEN)
    dense_bytes = 4 * tokens * n
    # Pre-activations and what is picked from them; or everything.
    wide = 2 * min(dense_bytes, CHUNK_BYTES) if sparse else _DENSE_IN_A_STEP * dense_bytes
    wide += _DENSE_IN_AUXK * dense_bytes if revival in ("auxk", "repoint") else 0
    flops = matrices * (_SPARSE_PRODUCTS if sparse else _DENSE_PRODUCTS) + 2 * (passes - 1) * encoder
    wide += 4 * encoder * (passes > 1)  # rows that read and write have two gradients before they are added up
    state_bytes = 4 * 4 * (parameters // parts)
    rows_bytes = 4 * tokens * max(config.d_in, config.d_out)
    return SAENeeds(
        parameters=parameters,
        state_bytes=state_bytes,
        workspace_bytes=int(wide + rows_bytes * _STREAMS_IN_A_STEP + 48 * tokens * active),
        flops_per_token=flops,
        step=Work(
            flops=(tokens * flops / parts + sae.operations_on_weights) / _STEP_EFFICIENCY,
            moved=_PASSES_OVER_STATE * state_bytes + (2 * passes if sparse else _DENSE_IN_A_STEP) * dense_bytes,
            exchanged=placement.bytes_exchanged(sae, tokens, active),
            waited=_STEP_SECONDS,
        ),
    )


def free_memory(device: torch.device) -> int:
    """Bytes that a device has to give now."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e7 else f"{size / 1e6:.2f} MB"


def _count(number: int) -> str:
    if number < 1000:
        return str(number)
    power = min(int(math.log10(number) // 3), 4)
    return f"{number / 1000**power:.3g}{' kMBT'[power]}"
