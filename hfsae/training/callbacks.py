"""Callbacks, with the names and arguments of `transformers.TrainerCallback`, and the ones every run has."""

import logging
import time
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState

from hfsae.arguments.training_arguments import SAETrainingArguments
from hfsae.evaluation.healthy import warnings_for
from hfsae.failures import warn_on_failure
from hfsae.progress import token_bar

logger = logging.getLogger(__name__)

# Metrics are judged only after this share of the run: every SAE starts dense, or empty, or inaccurate.
_SETTLED_FRACTION = 0.5


class Callbacks:
    """Calls every callback at an event; what they ask for comes back in `control`.

    Args:
        callbacks: Objects or classes derived from `transformers.TrainerCallback`.
    """

    def __init__(self, callbacks: list[TrainerCallback | type[TrainerCallback]]):
        self._callbacks = [c() if isinstance(c, type) else c for c in callbacks]

    def __call__(
        self, event: str, args: SAETrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Calls `event` (`"on_step_end"`, ...) with `(args, state, control, **kwargs)` as transformers does."""
        for callback in self._callbacks:
            getattr(callback, event)(args, state, control, **kwargs)


class ProgressBar(TrainerCallback):
    """Tokens done of all tokens, tokens per second, time left, and the last logged figures.

    Args:
        tokens_per_step: Tokens of an optimiser step, over all processes.
    """

    def __init__(self, tokens_per_step: int) -> None:
        self._per_step = tokens_per_step
        self._bar: tqdm | None = None

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._bar = token_bar(
            "training",
            state.max_steps * self._per_step,
            done=state.global_step * self._per_step,
            disable=args.disable_tqdm or not state.is_world_process_zero,
        )

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.update(self._per_step)

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        first = next(iter(kwargs["saes_log"].values()))
        shown = {"l0": "l0", "explained_variance": "EV", "dormant_fraction": "dormant"}
        if self._bar is not None:
            self._bar.set_postfix({short: f"{first[name]:.3g}" for name, short in shown.items()}, refresh=False)

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps:  # evaluation, which comes next, has a bar of its own
            self._close()

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class HealthWarnings(TrainerCallback):
    """Says once, in plain words, when a metric has left its healthy range after the run has settled."""

    def __init__(self) -> None:
        self._said: set[tuple[str, str]] = set()

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step < _SETTLED_FRACTION * state.max_steps or not state.is_world_process_zero:
            return
        for name, log in kwargs["saes_log"].items():
            for metric in ("l0", "explained_variance", "dormant_fraction"):
                for text in warnings_for({metric: log[metric]}):
                    if (name, metric) not in self._said:
                        self._said.add((name, metric))
                        logger.warning("step %d, %s: %s", state.global_step, name or "SAE", text)


class Trackers(TrainerCallback):
    """Sends every log to the trackers that Accelerate was started with.

    Args:
        accelerator: The run's accelerator, its trackers initialised.
    """

    def __init__(self, accelerator: Any):
        self._accelerator = accelerator

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._accelerator.log(kwargs["logs"], step=state.global_step)

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # Not `end_training`, which also parts the processes: what runs after this may still need them together.
        for tracker in self._accelerator.trackers:
            with warn_on_failure(f"{tracker.name} not closed", f"every log is in {args.output_dir}."):
                tracker.finish()


class Clock:
    """Tokens per second between two readings.

    Args:
        tokens: Tokens done when the clock starts.
    """

    def __init__(self, tokens: int) -> None:
        self._then, self._before = time.perf_counter(), tokens

    def rate(self, tokens: int) -> float:
        """Tokens per second since the last reading.

        Args:
            tokens: Tokens done in all.
        """
        now = time.perf_counter()
        rate = (tokens - self._before) / max(now - self._then, 1e-9)
        self._then, self._before = now, tokens
        return rate
