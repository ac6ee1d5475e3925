"""Callbacks, with the names and arguments of `transformers.TrainerCallback`, and the ones every run has.

`PushToHub` publishes from training. A push that fails costs the run nothing: what it trained is on the disk, and the
log says how to push it by hand.
"""

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from shlex import quote
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState

from hfsae.arguments.training_arguments import SAETrainingArguments
from hfsae.evaluation.healthy import warnings_for
from hfsae.evaluation.saved_set import SET_FILE, read_set
from hfsae.failures import warn_on_failure
from hfsae.hub.push import Saved, publish
from hfsae.hub.repository import Destination, Repository
from hfsae.modeling import SAE
from hfsae.progress import quietly, token_bar
from hfsae.training.checkpoint import last_checkpoint

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


class PushToHub(TrainerCallback):
    """Pushes as `hub_strategy` says, on the main process, in a thread beside the training.

    A checkpoint that is due while the one before is still being pushed is left out.

    Args:
        args: The run's arguments.
        names: Of all its SAEs.

    Raises:
        ValueError: If the destination cannot be one.
    """

    def __init__(self, args: SAETrainingArguments, names: Sequence[str]) -> None:
        self._names = names
        self._strategy = args.hub_strategy
        self._folder = Path(args.output_dir)
        self._to = Destination(
            args.hub_model_id or self._folder.resolve().name,
            revision=args.hub_revision,
            private=args.hub_private_repo,
            token=args.hub_token,
        )
        self._pushing: Future[None] | None = None
        self._thread: ThreadPoolExecutor | None = None

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Opens the repository, so that a missing token is told before hours of training."""
        if state.is_world_process_zero:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="hfsae-push")
            self._thread.submit(self._push, lambda: Repository(self._to), "")

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Pushes the SAEs of a checkpoint, with `"checkpoint"` the whole of it."""
        busy = self._pushing is not None and not self._pushing.done()
        ended = state.global_step == state.max_steps  # what is saved at the end follows, with its figures
        if self._thread is None or self._strategy == "end" or busy or ended:
            return
        checkpoint = last_checkpoint(self._folder)
        if checkpoint is None:
            return
        # Read now: the checkpoint may be removed before the thread gets there.
        saes = {name: _load(checkpoint / "saes" / name) for name in self._names}
        whole = checkpoint if self._strategy == "checkpoint" else None
        title = f"Training in progress, step {state.global_step:,}"
        self._pushing = self._thread.submit(
            self._push, lambda: self._publish(saes, title, whole), f" at step {state.global_step}"
        )

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Pushes the trained SAEs, and waits for it."""
        if self._thread is None:
            return
        if state.global_step == state.max_steps:
            self._thread.submit(self._push, lambda: self._publish_trained(), "")
        self._thread.shutdown(wait=True)

    def _publish_trained(self) -> None:
        saes = {name: _load(self._folder / name) for name in self._names}
        checkpoint = last_checkpoint(self._folder) if self._strategy == "checkpoint" else None
        self._publish(saes, "End of training", checkpoint, read_set(self._folder / SET_FILE))

    def _publish(
        self, saes: dict[str, Saved], title: str, checkpoint: Path | None, together: dict[str, Any] | None = None
    ) -> None:
        publish(saes, self._to.titled(title), beside=checkpoint, together=together)

    def _push(self, push: Callable[[], Any], when: str) -> None:
        by_hand = f"push by hand: hfsae push {quote(str(self._folder))} {self._to.repo_id}"
        with warn_on_failure(f"not pushed{when}", by_hand):
            push()


def _load(folder: Path) -> Saved:
    with quietly():
        return Saved(SAE.from_pretrained(folder), folder)
