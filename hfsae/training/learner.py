"""One SAE in training, with everything that belongs to it alone: optimiser, schedules, λ, dead features, statistics.

A run is a set of learners fed from one stream. Nothing is shared between them, so an SAE ends the same whether it is
trained alone or beside others.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import reduce
from itertools import chain, zip_longest
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from hfsae.arguments.training_arguments import SAETrainingArguments
from hfsae.autoencoder.outputs import Downstream, SAEOutput, StepState, StepStatistics
from hfsae.autoencoder.strategies import is_replayable
from hfsae.functional.cuda_graph import RecordedStep
from hfsae.functional.firing import FiringCounter, worked_on
from hfsae.functional.massive_tokens import MassiveTokens
from hfsae.modeling import SAE
from hfsae.parallel.placement import placement_of
from hfsae.parallel.sharded_sae import ShardedSAE, load_whole, placed_like, shape_of_whole, stored, whole
from hfsae.training.dead_features import REPOINTED_UNTIL, SETTLED_FROM, repoint, resample, stand_for_massive_tokens
from hfsae.training.optimisation import build_optimiser, clip, constrain_gradients, restore_rows, set_learning_rate
from hfsae.training.schedule import Plan, SparsityCoefficient, learning_rate_at, warmup_factor

# After a resampling the learning rate rises again over so many steps: revived features have no Adam history.
_REWARM_STEPS = 50
# A feature that fires on a smaller share of the tokens of a sampling window is logged as rare.
_RARE = 1e-5
# Off the CPU, the list of dead features is read back only so often: reading it waits for the device.
_DEAD_REFRESH_STEPS = 16


class Learner:
    """Trains one SAE, step by step.

    Args:
        name: Its name in the run.
        sae: The SAE, initialised, on its device.
        args: The run's arguments.
        accelerator: The run's accelerator.
        massive: The massive tokens that it was started from; None where these are not known.
    """

    def __init__(
        self,
        name: str,
        sae: SAE,
        args: SAETrainingArguments,
        accelerator: Accelerator,
        massive: MassiveTokens | None = None,
    ):
        self.name = name
        self.args = args
        self.sae = sae
        self._placement = placement_of(args.sae_placement, accelerator)
        self.plan = Plan.make(args, sae, self._placement)
        self._accelerator = accelerator
        device = self._device = sae.device
        self._wrapped = self._placement.step_module(sae)
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
        window, kept = self.plan.dead_window, args.feature_sampling_window
        self.firing = FiringCounter(sae.config.n_features, window=window, sampling_steps=kept, device=device)
        self.massive = massive or MassiveTokens(sae.config.d_in, sae.n_groups, device=device)
        self.starts = {
            parameter: whole(tensor).float().mean().item()
            for parameter, tensor in sae.named_parameters()
            if parameter != "b_dec" and shape_of_whole(tensor) == (sae.config.n_features,)
        }
        self._last_resampling: int | None = None
        self._dead: Tensor | None = None
        self._n_dead = 0
        self._sums = _LogSums()
        self._replay: RecordedStep[_StepResult] = RecordedStep()

    def step(self, batches: list[Tensor], step: int, targets: Sequence[Tensor] = ()) -> Tensor:
        """One optimiser step over the batches of gradient accumulation.

        Args:
            batches: Each (N, d_in).
            step: Steps taken before.
            targets: Of a transcoder, what it is to write at each of them, (N, d_out).

        Returns:
            The loss, (), on the SAE's device, until the next step.
        """
        rows = self.on_device(batches, targets)
        return self.update(rows, self.begin(rows, step))

    def on_device(self, batches: Sequence[Tensor], targets: Sequence[Tensor] = ()) -> list[Tensor]:
        """The rows of a step's batches where the SAE lies, and behind them the targets."""
        return [tensor.to(self._device, non_blocking=True) for tensor in (*batches, *targets)]

    def begin(self, rows: list[Tensor], step: int) -> StepState:
        """The step as the SAE sees it, once dead features are revived where it is their time."""
        if step in self.plan.resample_steps:
            self._resample(rows[0], step)
        self.sae.train()
        set_learning_rate(self.optimiser, self.learning_rate(step))
        self._refresh_dead(step)
        if self.plan.revival == "repoint":
            self._repoint(rows, step)
        return StepState(
            step=step,
            progress=step / self.plan.total_steps,
            sparsity_coefficient=self.coefficient.at(step),
            dead=self._dead,
            n_dead=self._n_dead,
            auxk_alpha=self.args.auxk_alpha if self.plan.has_auxk else 0.0,
            target_l0=self.plan.target_l0,
            steering=self.coefficient.steering_at(step),
            world_size=self._placement.averaged,
        )

    def update(self, rows: list[Tensor], state: StepState, behind: Sequence[Downstream] = ()) -> Tensor:
        """The rest of a step, with a term of the loss for each batch that lies in the language model, or none."""
        count = len(rows) // (2 if self.sae.config.is_transcoder else 1)
        states = [replace(state, downstream=one) for one in behind] or [state] * count
        done = self._replayed(rows, states) if self._can_replay and not behind else self._update(rows, states)
        statistics, rate = done.statistics, self.learning_rate(state.step) / self.plan.learning_rate
        self.sae.after_step(statistics, state)
        self.coefficient.observe(statistics.l0, state.step, rate)
        self.firing.count(statistics.tokens_firing, self.plan.tokens_per_step)
        self._sums.add(done.names, done.figures)
        return done.figures[0]

    @property
    def _can_replay(self) -> bool:
        alone = self._accelerator.num_processes == 1 and self._device.type == "cuda"
        return alone and is_replayable(self.sae) and not self.sae.compares_features

    def _replayed(self, rows: list[Tensor], states: list[StepState]) -> "_StepResult":
        """`_update` as a replay of an earlier one that worked on as many dead features and entries."""
        with self._autocast():  # the entries, where to find them asks the device
            found = [self.sae.picked(x, state) for x, state in zip(rows, states, strict=False)]
        states = [replace(state, picked=picked) for state, picked in zip(states, found, strict=True)]
        if any(state.picked is not None and len(state.picked.pre) < state.picked.most for state in states):
            return self._update(rows, states)  # other numbers in other batches: a record for each would not pay

        def update(inputs: list[Tensor]) -> _StepResult:
            given = iter(inputs)
            return self._update([next(given) for _ in rows], [state.with_tensors(given) for state in states])

        inputs = [*rows, *chain.from_iterable(state.tensors for state in states)]
        return self._replay(update, inputs, key=states[0].n_dead)

    def _update(self, rows: list[Tensor], states: list[StepState]) -> "_StepResult":
        """What a step does on its device, with the activations of every batch and, behind them, the targets."""
        count = len(states)
        pairs = zip_longest(rows[:count], rows[count:])
        outputs = [self._forward_backward(x, target, states[i], i, count) for i, (x, target) in enumerate(pairs)]
        constrain_gradients(self.sae)
        clip(self.sae, self.optimiser, self.args.max_grad_norm)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        restore_rows(self.sae)
        return _done(outputs, self._merged([one.statistics for one in outputs if one.statistics is not None]))

    def _forward_backward(
        self, x: Tensor, target: Tensor | None, state: StepState, index: int, count: int
    ) -> SAEOutput:
        """Adds the gradient of batch `index` of `count`, as its share of the mean over all of them."""
        # Gradients of all but the last batch are only added up here; the last one's backward exchanges the sum.
        alone = index < count - 1 and hasattr(self._wrapped, "no_sync")
        with self._accelerator.no_sync(self._wrapped) if alone else nullcontext():
            with self._autocast():
                output = self._wrapped(x, target, state=state)
            assert output.loss is not None
            # Not Accelerate's own: it divides by what a launcher or another run asked for.
            (output.loss / count if count > 1 else output.loss).backward()
        return output

    def _autocast(self) -> torch.autocast:
        # Not Accelerate's own: it would replace the `forward` of an SAE that the user keeps.
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self.args.bf16)

    def _merged(self, statistics: list[StepStatistics]) -> StepStatistics:
        """The statistics of the batches of a step, over all processes."""
        merged = statistics[-1]
        merged.tokens_firing = self._placement.reduce(reduce(torch.add, [s.tokens_firing for s in statistics]), "sum")
        merged.l0 = merged.tokens_firing.sum().float() / self.plan.tokens_per_step
        kept = [s.smallest_kept for s in statistics if s.smallest_kept is not None]
        if kept:
            merged.smallest_kept = self._placement.reduce(torch.stack(kept).mean(0), "mean")
        return merged

    def learning_rate(self, step: int) -> float:
        """The learning rate of a step, a resampling's new warm-up included."""
        plan = self.plan
        rate = learning_rate_at(
            *(step, plan.total_steps, plan.learning_rate),
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
        if not self.plan.has_auxk:
            return
        if self._dead is None or self._accelerator.device.type == "cpu" or step % _DEAD_REFRESH_STEPS == 0:
            self._dead = self.firing.dead
            self._n_dead = worked_on(int(torch.count_nonzero(self._dead)), self._device, len(self._dead))

    def _repoint(self, rows: list[Tensor], step: int) -> None:
        """Repoints features that have been dead for a window, and again after each further window."""
        every = 1 if self._accelerator.device.type == "cpu" else _DEAD_REFRESH_STEPS
        if step % every or step > REPOINTED_UNTIL * self.plan.total_steps:
            return
        dead, since = self.firing.dead, self.firing.tokens_since_fired
        stuck = dead & (since % self.plan.dead_window < every * self.plan.tokens_per_step)
        stuck &= ~stand_for_massive_tokens(self.sae, stuck, self.massive)
        if stuck.any():
            x = self._placement.rows_of_step(rows[0])
            writes = self.sae.config.is_transcoder
            target = self._placement.rows_of_step(rows[len(rows) // 2]) if writes else None
            repoint(
                *(self.sae, self.optimiser, x, target, stuck, dead),
                seed=self.args.seed + step,
                reconstruct=self._reconstruct_cut,
                together=self._placement.shares_saes,
                settled=step >= SETTLED_FROM * self.plan.total_steps,
                massive=self.massive,
            )

    def _resample(self, activations: Tensor, step: int) -> None:
        dead = self.firing.dead
        dead = dead & ~stand_for_massive_tokens(self.sae, dead, self.massive)
        if not dead.any():
            return
        revived = resample(
            *(self.sae, self.optimiser, activations, dead, self.starts),
            seed=self.args.seed + step,
            reconstruct=self._reconstruct_cut,
            together=self._placement.shares_saes,
        )
        restore_rows(self.sae)
        self.firing.revive(revived)
        self._last_resampling = step

    @property
    def _reconstruct_cut(self) -> Callable[[Tensor], Tensor] | None:
        """What the SAE makes of scaled rows, where its features lie in several processes."""
        return self._wrapped.scaled_reconstruction if isinstance(self._wrapped, ShardedSAE) else None

    @property
    def is_cut(self) -> bool:
        """Whether this process holds some of the SAE's features only."""
        return isinstance(self._wrapped, ShardedSAE)

    def is_finite(self) -> bool:
        """Whether every loss since `pop_log` was a number; waits for the device."""
        return self._sums.finite

    def pop_log(self, step: int) -> dict[str, float]:
        """The metrics of the steps since the last call, averaged. Reads back from the device."""
        log = self._sums.pop()
        log["dormant_fraction"] = self.firing.dead.float().mean().item()
        log["rare_fraction"] = (self.firing.density < _RARE).float().mean().item()
        log["learning_rate"] = self.learning_rate(step)
        if self.sae.default_sparsity_coefficient is not None:
            log["sparsity_coefficient"] = float(self.coefficient.at(step))
        return log

    def end(self) -> None:
        """Brings the SAE to the run's device, and makes it whole where it was cut; every process must call this."""
        self._replay.forget()
        if isinstance(self._wrapped, ShardedSAE):
            self._wrapped.join()
        self._wrapped = self.sae  # what wrapped it holds on to the processes' group
        self.sae.to(self._accelerator.device)  # type: ignore[arg-type]

    def weights(self, keep: bool = True) -> dict[str, Tensor]:
        """The SAE's tensors, whole; where it is cut every process must call this, as for `state_dict`.

        Args:
            keep: Whether this process wants them: else each is let go of before the next one is put together.
        """
        gathered = ((name, stored(tensor.detach(), keep)) for name, tensor in self.sae.state_dict().items())
        return {name: tensor for name, tensor in gathered if tensor is not None}

    def state_dict(self, keep: bool = True) -> dict[str, Any]:
        """Everything but the weights: tensors, and plain values under `"values"`; `keep` as for `weights`."""
        tensors = {f"firing.{k}": v for k, v in self.firing.state_dict().items() if isinstance(v, Tensor)}
        if self.plan.revival in ("repoint", "resample"):
            tensors["massive"] = self.massive.directions
        names = {id(p): name for name, p in self.sae.named_parameters()}
        for parameter, moments in self.optimiser.state.items():
            for moment, tensor in moments.items():
                if (gathered := stored(tensor, keep)) is not None:
                    tensors[f"optimiser.{names[id(parameter)]}.{moment}"] = gathered
        values = {
            "firing": {k: v for k, v in self.firing.state_dict().items() if not isinstance(v, Tensor)},
            "coefficient": self.coefficient.state_dict(),
            "starts": self.starts,
            "last_resampling": self._last_resampling,
        }
        return {"tensors": tensors, "values": values}

    def load_state_dict(self, weights: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Goes back to what `weights` and `state_dict` gave."""
        self._replay.forget()
        load_whole(self.sae, weights)
        tensors, values = state["tensors"], state["values"]
        counters = {k.removeprefix("firing."): v for k, v in tensors.items() if k.startswith("firing.")}
        self.firing.load_state_dict({**counters, **values["firing"]})
        self.massive.directions.copy_(tensors.get("massive", self.massive.directions))  # not all runs keep them
        self.coefficient.load_state_dict(values["coefficient"])
        self.starts = values["starts"]
        self._last_resampling = values["last_resampling"]
        for name, parameter in self.sae.named_parameters():
            prefix = f"optimiser.{name}."
            moments = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            if moments:
                # Adam's step count stays where fused Adam wants it: on the parameter's device, in float32.
                self.optimiser.state[parameter] = {k: placed_like(v, parameter).clone() for k, v in moments.items()}


class _StepResult(NamedTuple):
    """What is known after a step, on its device."""

    statistics: StepStatistics
    names: tuple[str, ...]
    figures: Tensor


@torch.no_grad()
def _done(outputs: list[SAEOutput], statistics: StepStatistics) -> _StepResult:
    """From the outputs of a step's batches and their merged statistics."""
    figures: dict[str, Tensor] = {}
    rows = []
    for output in outputs:
        assert output.loss is not None and output.losses is not None and output.statistics is not None
        error = output.statistics.squared_error
        figures = {
            "loss": output.loss.detach(),
            **output.losses,
            "l0": statistics.l0,
            "error": output.losses["mse"] if error is None else error,
            "variance": output.statistics.variance,
            **({} if output.statistics.kl_nats is None else {"kl_nats": output.statistics.kl_nats}),
        }
        # One tensor for all of them: on a GPU each by itself would be a launch of its own.
        rows.append(torch.stack([figure.to(output.loss.dtype) for figure in figures.values()]).double() / len(outputs))
    return _StepResult(statistics, tuple(figures), reduce(torch.add, rows))


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

    def add(self, names: tuple[str, ...], figures: Tensor) -> None:
        """Takes in the figures of a step, the loss first."""
        before = self._totals.get(names)
        self._totals[names] = figures.clone() if before is None else before + figures
        self._steps += 1

    def pop(self) -> dict[str, float]:
        """The averages since the last call, by name."""
        log = {"l0": 0.0, "error": 0.0, "variance": 0.0}
        for names, total in self._totals.items():
            for name, value in zip(names, total.tolist(), strict=True):
                log[name] = log.get(name, 0.0) + value / self._steps
        error, variance = log.pop("error"), log.pop("variance")
        log["explained_variance"] = 1 - error / variance if variance else math.nan
        self._start()
        return log
