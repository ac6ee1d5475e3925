"""One SAE in training, with everything that belongs to it alone: optimiser, schedules, λ, dead features, statistics.

A run is a set of learners fed from one stream. Nothing is shared between them, so an SAE ends the same whether it is
trained alone or beside others.
"""

import math
from contextlib import nullcontext
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from hfsae.modeling import SAE
from hfsae.outputs import SAEOutput, StepState
from hfsae.training.arguments import SAETrainingArguments
from hfsae.training.dead_features import FiringCounter, resample
from hfsae.training.optimisation import build_optimiser, clip, remove_parallel_gradient, renormalise
from hfsae.training.schedules import auto_learning_rate, learning_rate_at, warmup_factor
from hfsae.training.sharding import ShardedSAE, load_whole, placed_like, whole
from hfsae.training.sparsity import SparsityCoefficient

# After a resampling the learning rate rises again over so many steps: revived features have no Adam history.
_REWARM_STEPS = 50
# The longest dead-feature window is the first part of a run, or the tokens on which the average feature fires so many
# times if those are more, but no more than the second part, or than some steps of a short run.
#
# Too long a window leaves no time to come back: of 2 M tokens with 4,096 features and auxk, windows of a tenth, 1/34
# and 1/68 of the run left 8.5, 1.1 and 0.15 % that never fired on 65,536 held-out tokens (topk, k = 32), and explained
# 0.924, 0.924 and 0.925 of the variance. Too short a one takes rare features for dead ones: of 1.4 M tokens with 2,048
# features at k = 8, windows of 1/10, 1/23 and 1/64 left 12, 5 and 24 % (matryoshka), 3.9, 1.1 and 3.1 % (topk).
_DEAD_WINDOW_PART, _LONGEST_DEAD_WINDOW_PART = 64, 10
_DEAD_WINDOW_FIRINGS = 256
_DEAD_WINDOW_STEPS = 4
# A feature that fires on a smaller share of the tokens of a sampling window is logged as rare.
_RARE = 1e-5
# Off the CPU, the list of dead features is read back only so often: reading it waits for the device.
_DEAD_REFRESH_STEPS = 16


@dataclass(frozen=True)
class Plan:
    """What a learner does and when, worked out from the arguments for one SAE."""

    total_steps: int
    tokens_per_step: int
    learning_rate: float
    warmup_steps: int
    decay_steps: int
    lr_end: float
    revival: str
    dead_window: int
    resample_steps: frozenset[int]
    sparsity_coefficient: float
    sparsity_warmup_steps: int
    target_l0: float | None

    @classmethod
    def make(cls, args: SAETrainingArguments, sae: SAE, processes: int) -> "Plan":
        """Resolves every 'auto' and every share of the run."""
        total = args.total_steps_on(processes)
        tokens_per_step = args.train_batch_tokens * args.gradient_accumulation_steps * processes
        peak = args.learning_rate
        if isinstance(peak, str):
            peak = auto_learning_rate(sae.config.n_features, total)
        warmup = args.warmup_steps if args.warmup_steps >= 1 else round(args.warmup_steps * total)
        lr_end = args.lr_end if args.lr_end is not None else (peak if args.lr_start is None else args.lr_start) / 10
        coefficient, target = _sparsity(args, sae)
        density = (target or getattr(sae.config, "k", args.k)) / sae.config.n_features
        revival = sae.default_revival if args.revival == "auto" else args.revival
        return cls(
            total_steps=total,
            tokens_per_step=tokens_per_step,
            learning_rate=float(peak),
            warmup_steps=min(int(warmup), total - 1),
            decay_steps=round(args.lr_decay_fraction * total),
            lr_end=lr_end,
            revival=revival,
            dead_window=min(args.dead_feature_window, _longest_dead_window(total, tokens_per_step, density)),
            resample_steps=_resample_steps(args, total, tokens_per_step) if revival == "resample" else frozenset(),
            sparsity_coefficient=coefficient,
            sparsity_warmup_steps=round(args.sparsity_warmup_fraction * total),
            target_l0=target,
        )


def _sparsity(args: SAETrainingArguments, sae: SAE) -> tuple[float, float | None]:
    """λ at the start, and the L0 to steer to; architectures without a penalty have neither."""
    default = sae.default_sparsity_coefficient
    if default is None:
        return 0.0, None
    if args.sparsity_coefficient is not None:
        return args.sparsity_coefficient, None
    return default, args.target_l0 if args.target_l0 is not None else float(args.k)


def _longest_dead_window(total_steps: int, tokens_per_step: int, density: float) -> int:
    """Tokens without firing that are too many in this run, where the average feature fires on such a share of them."""
    run = total_steps * tokens_per_step
    enough = max(run // _DEAD_WINDOW_PART, round(_DEAD_WINDOW_FIRINGS / density))
    return max(min(enough, run // _LONGEST_DEAD_WINDOW_PART), _DEAD_WINDOW_STEPS * tokens_per_step)


def _resample_steps(args: SAETrainingArguments, total: int, tokens_per_step: int) -> frozenset[int]:
    """The steps before which dead features are resampled: every so many tokens, the last no later than half-way."""
    every = args.resample_every or total * tokens_per_step // 10
    interval = max(1, round(every / tokens_per_step))
    return frozenset(range(interval, total // 2 + 1, interval))


class Learner:
    """Trains one SAE, step by step.

    Args:
        name: Its name in the run.
        sae: The SAE, initialised, on its device.
        args: The run's arguments.
        accelerator: The run's accelerator.
    """

    def __init__(self, name: str, sae: SAE, args: SAETrainingArguments, accelerator: Accelerator):
        self.name = name
        self.args = args
        self.sae = sae
        self.plan = Plan.make(args, sae, accelerator.num_processes)
        self._accelerator = accelerator
        device = self._device = sae.device
        # Else this process steps on the rows of all.
        self._replicated = args.sae_placement == "replicate"
        if args.sae_placement == "shard" and accelerator.num_processes > 1:
            self._wrapped = ShardedSAE(sae, accelerator)
        else:
            self._wrapped = accelerator.prepare_model(sae) if self._replicated else sae
        self.optimiser = build_optimiser(
            sae, lr=self.plan.learning_rate, betas=(args.adam_beta1, args.adam_beta2), eps=args.adam_epsilon
        )
        self.coefficient = SparsityCoefficient(
            self.plan.sparsity_coefficient,
            total_steps=self.plan.total_steps,
            warmup_steps=self.plan.sparsity_warmup_steps,
            target_l0=self.plan.target_l0,
            device=device,
        )
        self.firing = FiringCounter(
            sae.config.n_features,
            window=self.plan.dead_window,
            sampling_steps=args.feature_sampling_window,
            device=device,
        )
        self.starts = {
            parameter: whole(tensor).float().mean().item()
            for parameter, tensor in sae.named_parameters()
            if parameter != "b_dec" and tensor.shape == (sae.config.n_features,)
        }
        self._last_resampling: int | None = None
        self._dead: Tensor | None = None
        self._n_dead = 0
        self._sums = _LogSums()

    def step(self, batches: list[Tensor], step: int) -> None:
        """One optimiser step over the batches of gradient accumulation, each (N, d_in)."""
        batches = [batch.to(self._device, non_blocking=True) for batch in batches]
        if step in self.plan.resample_steps:
            self._resample(batches[0], step)
        self.sae.train()
        rate = self.learning_rate(step)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self._refresh_dead(step)
        state = StepState(
            step=step,
            sparsity_coefficient=self.coefficient.at(step),
            dead=self._dead,
            n_dead=self._n_dead,
            auxk_alpha=self.args.auxk_alpha if self.plan.revival == "auxk" else 0.0,
            target_l0=self.plan.target_l0,
            world_size=self._accelerator.num_processes if self._replicated else 1,
        )
        outputs = [self._forward_backward(x, state, i, len(batches)) for i, x in enumerate(batches)]
        if self.sae.unit_decoder_rows:
            remove_parallel_gradient(self.sae.W_dec)
        clip(self.sae, self.args.max_grad_norm)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        if self.sae.unit_decoder_rows:
            renormalise(self.sae.W_dec)
        self._after(outputs, state)

    def _forward_backward(self, x: Tensor, state: StepState, index: int, count: int) -> SAEOutput:
        """Adds the gradient of batch `index` of `count`, as its share of the mean over all of them."""
        # Gradients of all but the last batch are only added up here; the last one's backward exchanges the sum.
        alone = index < count - 1 and hasattr(self._wrapped, "no_sync")
        with self._accelerator.no_sync(self._wrapped) if alone else nullcontext():
            # Not Accelerate's own autocast: it would replace the `forward` of an SAE that the user keeps.
            with torch.autocast(x.device.type, torch.bfloat16, enabled=self.args.bf16):
                output = self._wrapped(x, state=state)
            assert output.loss is not None
            self._accelerator.backward(output.loss / count if count > 1 else output.loss)
        return output

    def _after(self, outputs: list[SAEOutput], state: StepState) -> None:
        statistics = [output.statistics for output in outputs if output.statistics is not None]
        firing = self._reduce(reduce(torch.add, [s.tokens_firing for s in statistics]), "sum")
        l0 = firing.sum() / self.plan.tokens_per_step
        merged = statistics[-1]
        merged.tokens_firing, merged.l0 = firing, l0
        kept = [s.smallest_kept for s in statistics if s.smallest_kept is not None]
        if kept:
            merged.smallest_kept = self._reduce(torch.stack(kept).mean(), "mean")
        self.sae.after_step(merged, state)
        self.coefficient.observe(l0, state.step)
        self.firing.count(firing, self.plan.tokens_per_step)
        self._sums.add(outputs, l0)

    def _reduce(self, tensor: Tensor, reduction: str) -> Tensor:
        if self._accelerator.num_processes == 1 or not self._replicated:
            return tensor
        return self._accelerator.reduce(tensor, reduction)  # type: ignore[return-value]

    def learning_rate(self, step: int) -> float:
        """The learning rate of a step, a resampling's new warm-up included."""
        plan = self.plan
        rate = learning_rate_at(
            step,
            plan.total_steps,
            plan.learning_rate,
            kind=self.args.lr_scheduler_type,
            warmup_steps=plan.warmup_steps,
            start=self.args.lr_start,
            end=plan.lr_end,
            decay_steps=plan.decay_steps,
        )
        if self._last_resampling is not None:
            rate *= warmup_factor(step - self._last_resampling, _REWARM_STEPS)
        return rate

    def _refresh_dead(self, step: int) -> None:
        if self.plan.revival != "auxk":
            return
        if self._dead is None or self._accelerator.device.type == "cpu" or step % _DEAD_REFRESH_STEPS == 0:
            self._dead = self.firing.dead
            self._n_dead = int(torch.count_nonzero(self._dead))

    def _resample(self, activations: Tensor, step: int) -> None:
        dead = self.firing.dead
        if not dead.any():
            return
        seed = self.args.seed + step
        revived = resample(
            self.sae, self.optimiser, activations, dead, self.starts, seed=seed, replicated=self._replicated
        )
        self.firing.revive(revived)
        self._last_resampling = step

    def is_finite(self) -> bool:
        """Whether every loss since `pop_log` was a number; waits for the device."""
        return self._sums.finite

    def pop_log(self, step: int) -> dict[str, float]:
        """The metrics of the steps since the last call, averaged. Reads back from the device."""
        log = self._sums.pop()
        log["dead_fraction"] = self.firing.dead.float().mean().item()
        log["rare_fraction"] = (self.firing.density < _RARE).float().mean().item()
        log["learning_rate"] = self.learning_rate(step)
        if self.sae.default_sparsity_coefficient is not None:
            log["sparsity_coefficient"] = float(self.coefficient.at(step))
        return log

    def end(self) -> None:
        """Brings the SAE to the run's device, and makes it whole where it was cut; every process must call this."""
        if isinstance(self._wrapped, ShardedSAE):
            self._wrapped.join()
        self.sae.to(self._accelerator.device)  # type: ignore[arg-type]

    def weights(self) -> dict[str, Tensor]:
        """The SAE's tensors, whole; where it is cut every process must call this, as for `state_dict`."""
        return {name: whole(tensor.detach()) for name, tensor in self.sae.state_dict().items()}

    def state_dict(self) -> dict[str, Any]:
        """Everything but the weights: tensors, and plain values under `"values"`."""
        tensors = {f"firing.{k}": v for k, v in self.firing.state_dict().items() if isinstance(v, Tensor)}
        names = {id(p): name for name, p in self.sae.named_parameters()}
        for parameter, moments in self.optimiser.state.items():
            for moment, tensor in moments.items():
                tensors[f"optimiser.{names[id(parameter)]}.{moment}"] = whole(tensor)
        values = {
            "firing": {k: v for k, v in self.firing.state_dict().items() if not isinstance(v, Tensor)},
            "coefficient": self.coefficient.state_dict(),
            "starts": self.starts,
            "last_resampling": self._last_resampling,
        }
        return {"tensors": tensors, "values": values}

    def load_state_dict(self, weights: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Goes back to what `weights` and `state_dict` gave."""
        load_whole(self.sae, weights)
        tensors, values = state["tensors"], state["values"]
        counters = {k.removeprefix("firing."): v for k, v in tensors.items() if k.startswith("firing.")}
        self.firing.load_state_dict({**counters, **values["firing"]})
        self.coefficient.load_state_dict(values["coefficient"])
        self.starts = values["starts"]
        self._last_resampling = values["last_resampling"]
        for name, parameter in self.sae.named_parameters():
            prefix = f"optimiser.{name}."
            moments = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            if moments:
                self.optimiser.state[parameter] = {
                    # Adam's step count stays where fused Adam wants it: on the parameter's device, in float32.
                    k: placed_like(v, parameter).clone()
                    for k, v in moments.items()
                }


class _LogSums:
    """What is logged, added up on the device so that a step never waits for it."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        # By the names of the figures: a step has further terms while features are dead.
        self._totals: dict[tuple[str, ...], Tensor] = {}
        self._steps = 0

    @property
    def finite(self) -> bool:
        """Whether every loss since the last `pop` was a number; waits for the device."""
        return all(bool(total[0].isfinite()) for total in self._totals.values())

    @torch.no_grad()
    def add(self, outputs: list[SAEOutput], l0: Tensor) -> None:
        for output in outputs:
            assert output.loss is not None and output.losses is not None and output.statistics is not None
            error, variance = output.statistics.squared_error, output.statistics.variance
            figures = {
                "loss": output.loss.detach(),
                **output.losses,
                "l0": l0,
                "error": output.losses["mse"] if error is None else error,
                "variance": variance,
            }
            # One sum for all of them: on a GPU each by itself would be a launch of its own.
            row = torch.stack([figure.to(output.loss.dtype) for figure in figures.values()]).double() / len(outputs)
            names = tuple(figures)
            self._totals[names] = self._totals[names] + row if names in self._totals else row
        self._steps += 1

    def pop(self) -> dict[str, float]:
        log = {"l0": 0.0, "error": 0.0, "variance": 0.0}
        for names, total in self._totals.items():
            for name, value in zip(names, total.tolist(), strict=True):
                log[name] = log.get(name, 0.0) + value / self._steps
        error, variance = log.pop("error"), log.pop("variance")
        log["explained_variance"] = 1 - error / variance if variance else math.nan
        self._start()
        return log
