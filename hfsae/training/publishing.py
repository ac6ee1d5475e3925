"""Publishing from training: after the last step, at every checkpoint, or with all that a run is resumed from.

A push that fails costs the run nothing: what it trained is on the disk, and the log says how to push it by hand.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from shlex import quote
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from hfsae.arguments.training_arguments import SAETrainingArguments
from hfsae.evaluation.saved_set import SET_FILE, read_set
from hfsae.failures import warn_on_failure
from hfsae.hub.push import Saved, publish
from hfsae.hub.repository import Destination, Repository
from hfsae.modeling import SAE
from hfsae.progress import quietly
from hfsae.training.checkpoints import last_checkpoint


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
