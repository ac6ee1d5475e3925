"""Callbacks, with the names and arguments of `transformers.TrainerCallback`, and the ones every run has.

`PushToHub` publishes from training. A push that fails costs the run nothing: what it trained is on the disk, and the
log says how to push it by hand.
"""

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from shlex import quote
from typing import Any

from huggingface_hub import CommitInfo
from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState

from hfsae.arguments.training_arguments import SAETrainingArguments
from hfsae.evaluation.metrics import warnings_for
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


class CallbackHandler:
    """Calls every callback at an event; what they ask for comes back in `control`.

    Args:
        callbacks: Objects or classes derived from `transformers.TrainerCallback`.
    """

    def __init__(self, callbacks: Iterable[TrainerCallback | type[TrainerCallback]]):
        self.callbacks: list[TrainerCallback] = []
        for callback in callbacks:
            self.add_callback(callback)

    def __call__(
        self, event: str, args: SAETrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Calls `event` (`"on_step_end"`, ...) with `(args, state, control, **kwargs)` as transformers does."""
        for callback in self.callbacks:
            getattr(callback, event)(args, state, control, **kwargs)

    def add_callback(self, callback: TrainerCallback | type[TrainerCallback]) -> None:
        """Appends a callback, an object or a class."""
        self.callbacks.append(callback() if isinstance(callback, type) else callback)

    def remove_callback(self, callback: TrainerCallback | type[TrainerCallback]) -> None:
        """Removes a callback, or the first one of a class; does nothing where there is none."""
        for found in self.callbacks:
            if isinstance(found, callback) if isinstance(callback, type) else found is callback:
                self.callbacks.remove(found)
                return


class ProgressBar(TrainerCallback):
    """Tokens done of all tokens, tokens per second, time left, and the last logged figures."""

    def __init__(self) -> None:
        self._tokens_per_step = 0
        self._bar: tqdm | None = None

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._tokens_per_step = kwargs["run"].tokens_per_step
        self._bar = token_bar(
            "training",
            state.max_steps * self._tokens_per_step,
            done=state.global_step * self._tokens_per_step,
            disable=args.disable_tqdm or not state.is_world_process_zero,
        )

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.update(self._tokens_per_step)

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
        self._layers: dict[str, int] = {}

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        run = kwargs["run"]
        own = {name: sae.n_groups if sae.config.is_cross_layer else 1 for name, sae in run.saes.items()}
        self._layers = run.gather(own)  # logs are of the SAEs of all processes

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step < _SETTLED_FRACTION * state.max_steps or not state.is_world_process_zero:
            return
        for name, log in kwargs["saes_log"].items():
            for metric in ("l0", "explained_variance", "dormant_fraction"):
                for text in warnings_for({metric: log[metric], "n_layers": self._layers.get(name, 1)}):
                    if (name, metric) not in self._said:
                        self._said.add((name, metric))
                        logger.warning("step %d, %s: %s", state.global_step, name or "SAE", text)


class Trackers(TrainerCallback):
    """Sends every log to the trackers that Accelerate was started with."""

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        kwargs["run"].accelerator.log(kwargs["logs"], step=state.global_step)

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # Not `end_training`, which also parts the processes: what runs after this may still need them together.
        for tracker in kwargs["run"].accelerator.trackers:
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


class BestCheckpoint:
    """Which checkpoint of a run was the best by a logged metric.

    Args:
        args: The run's arguments; without `metric_for_best_model` there is never a best one.
        output_dir: Folder of the run.
    """

    def __init__(self, args: SAETrainingArguments, output_dir: Path):
        self._metric = args.metric_for_best_model
        more = args.greater_is_better
        self._sign = 1.0 if (more if more is not None else self._metric == "explained_variance") else -1.0
        self._output_dir = output_dir
        self._step: int | None = None
        self.value = math.nan

    @property
    def checkpoint(self) -> Path | None:
        """Its folder."""
        return None if self._step is None else self._output_dir / f"checkpoint-{self._step}"

    def observe(self, state: TrainerState, names: Sequence[str]) -> None:
        """Takes in what was logged last before a checkpoint, and tells the state which is the best one.

        Args:
            state: The run's state.
            names: The names of its SAEs.

        Raises:
            ValueError: If no such metric is logged; names the logged ones.
        """
        step, log_history = state.global_step, state.log_history
        if self._metric is None or not log_history:
            return
        prefixes = [f"{name}/" if name else "" for name in names]
        values = [log_history[-1].get(prefix + self._metric) for prefix in prefixes]
        known = [value for value in values if value is not None]
        if not known:
            logged = sorted(key.removeprefix(prefixes[0]) for key in log_history[-1] if key.startswith(prefixes[0]))
            raise ValueError(f"metric_for_best_model={self._metric!r} is not logged; there are {', '.join(logged)}.")
        value = sum(known) / len(known)
        if not self._sign * value <= self._sign * self.value:  # nothing is as good as NaN
            self._step, self.value = step, value
        self.tell(state)

    def tell(self, state: TrainerState) -> None:
        """Writes into the run's state which checkpoint is the best one."""
        if self.checkpoint is not None:
            state.best_model_checkpoint, state.best_metric = str(self.checkpoint), self.value

    def state_dict(self) -> dict[str, Any] | None:
        """Its step and value; None where there is none."""
        return None if self._step is None else {"step": self._step, "metric": self._metric, "value": self.value}

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Goes back to a saved state, if it was of the same metric and the checkpoint is still there."""
        if state is not None and state["metric"] == self._metric:
            self._step, self.value = state["step"], state["value"]
            if self.checkpoint is not None and not self.checkpoint.is_dir():
                self._step, self.value = None, math.nan


class PushToHub(TrainerCallback):
    """Pushes as `hub_strategy` says, on the main process, in a thread beside the training.

    A checkpoint that is due while the one before is still being pushed is left out.

    Args:
        args: The run's arguments.

    Raises:
        ValueError: If the destination cannot be one.
    """

    def __init__(self, args: SAETrainingArguments) -> None:
        self._strategy = args.hub_strategy
        self._folder = Path(args.output_dir)
        self._to = destination_of(args)
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
        saes = {name: _load(checkpoint / "saes" / name) for name in kwargs["run"].hook_points}
        whole = checkpoint if self._strategy == "checkpoint" else None
        title = f"Training in progress, step {state.global_step:,}"
        self._pushing = self._thread.submit(
            self._push, lambda: publish(saes, self._to.titled(title), beside=whole), f" at step {state.global_step}"
        )

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Pushes the trained SAEs, and waits for it."""
        if self._thread is None:
            return
        if state.global_step == state.max_steps:
            self._thread.submit(self._push, lambda: self._publish_trained(kwargs["run"].hook_points), "")
        self._thread.shutdown(wait=True)

    def _publish_trained(self, names: Iterable[str]) -> CommitInfo:
        checkpoint = last_checkpoint(self._folder) if self._strategy == "checkpoint" else None
        return publish_trained(self._folder, names, self._to.titled("End of training"), checkpoint)

    def _push(self, push: Callable[[], Any], when: str) -> None:
        by_hand = f"push by hand: hfsae push {quote(str(self._folder))} {self._to.repo_id}"
        with warn_on_failure(f"not pushed{when}", by_hand):
            info = push()
            if isinstance(info, CommitInfo):
                logger.info("pushed%s to %s", when, info.pr_url or info.repo_url)


def destination_of(args: SAETrainingArguments) -> Destination:
    """Where the arguments say that a run is published.

    Raises:
        ValueError: If the destination cannot be one.
    """
    return Destination(
        args.hub_model_id or Path(args.output_dir).resolve().name,
        revision=args.hub_revision,
        private=args.hub_private_repo,
        token=args.hub_token,
    )


def publish_trained(
    folder: Path, names: Iterable[str], destination: Destination, checkpoint: Path | None = None
) -> CommitInfo:
    """Publishes SAEs as they were saved in the folder of a run, with the record of their set where there is one.

    Args:
        folder: The run's folder.
        names: The names of its SAEs.
        destination: Where to.
        checkpoint: A checkpoint to publish beside them.

    Raises:
        PushError: If the Hub refuses.
    """
    saes = {name: _load(folder / name) for name in names}
    return publish(saes, destination, beside=checkpoint, together=read_set(folder / SET_FILE))


def _load(folder: Path) -> Saved:
    with quietly():
        return Saved(SAE.from_pretrained(folder), folder)
