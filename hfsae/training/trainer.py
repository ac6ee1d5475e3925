"""`SAETrainer`: from a language model and text, or activations of one's own, to trained, measured, saved SAEs."""

import logging
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from huggingface_hub import CommitInfo
from torch import Tensor
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainerControl, TrainerState

from hfsae.arguments.training_arguments import SAETrainingArguments
from hfsae.configuration import SAEConfig
from hfsae.folders import new_folder
from hfsae.functional.gradients import gradients_on
from hfsae.functional.precision import own_precision
from hfsae.host_memory import freed_memory_kept
from hfsae.in_use import in_use
from hfsae.interruption import Interruption
from hfsae.modeling import SAE
from hfsae.parallel.exchange import any_process
from hfsae.parallel.launching import start_accelerator
from hfsae.parallel.process_watch import ProcessWatch
from hfsae.run_inputs.user_inputs import TWO_SOURCES, SAEInput, UserInputs
from hfsae.training.callbacks import (
    BestCheckpoint,
    CallbackHandler,
    Clock,
    HealthWarnings,
    ProgressBar,
    PushToHub,
    Trackers,
    destination_of,
    publish_trained,
)
from hfsae.training.checkpoint import (
    checkpoint_to_resume,
    claim_output_dir,
    read_run,
    resume_hint,
    save_checkpoint,
    text_seed_of,
)
from hfsae.training.finalize import evaluate_now, finalize, save_now
from hfsae.training.output import TrainOutput
from hfsae.training.schedule import logging_steps_of
from hfsae.training.setup import TrainingRun, prepare_run, resume
from hfsae.training.training_record import flat_log, run_record

logger = logging.getLogger(__name__)


class SAETrainer:
    """Trains one SAE, or many at any hook points of one model, on one stream of activations.

    Args:
        model: A causal LM, a wrapper around one (a `PeftModel`, DDP, a compiled model; see
            `hfsae.hooks.inner_model`), or its name; None takes `args.model_name_or_path`. Several by the names of a
            crosscoder's sources, `{"base": gpt2, "tuned": mine}`, are read side by side.
        args: The run's arguments.
        saes: What to train: an SAE or a config, or several by name, each with its `hook_point`. None makes one SAE
            from the arguments for every place that `args.hook_point` names. SAE objects go on from their weights.
            Several can also be told by arguments that are their own: `{"wide": {"expansion_factor": 32, "seed": 1}}`
            (`hfsae.arguments.training_arguments.PER_SAE`; the others are of the stream that all share).
        train_dataset: Text (`datasets`), or token ids (rows, length); None loads `args.dataset_name`.
        eval_dataset: Text to measure on, disjoint from the training text; None holds documents out.
        processing_class: The tokenizer; None loads the model's.
        activations: Activations of one's own instead of a model and text: a tensor or numpy array (rows, d_in), mapped
            from a file or not. A dict has such by hook point. Also a `datasets.Dataset`, or an iterable of batches.
        callbacks: `transformers.TrainerCallback` objects or classes. Every event passes `model` (the SAEs by name);
            `on_log` also `logs` (flat) and `saes_log` (by SAE), `on_evaluate` `metrics` (by SAE). They run in
            every process, and what they ask for in `control` must be the same everywhere.

    Attributes:
        args: The run's arguments.
        state: A `transformers.TrainerState`: steps taken, the log, the best checkpoint.
        control: A `transformers.TrainerControl`, in which callbacks ask for a log, a checkpoint or the end.

    Raises:
        TypeError: If the model is none, such as arguments given in its place.
        ValueError: If model and activations are both given.

    Example:
        >>> from hfsae import SAETrainer, SAETrainingArguments
        >>> args = SAETrainingArguments(
        ...     model_name_or_path="openai-community/gpt2",
        ...     hook_point="resid_post.8",
        ...     dataset_name="NeelNanda/pile-10k",
        ... )
        >>> trainer = SAETrainer(args=args)
        >>> trainer.evaluate()[""]["explained_variance"]  # before training  # doctest: +SKIP
        >>> output = trainer.train()  # doctest: +SKIP
    """

    def __init__(
        self,
        model: Any = None,
        args: SAETrainingArguments | None = None,
        saes: SAE | SAEConfig | Mapping[str, SAEInput] | None = None,
        *,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        activations: Any = None,
        callbacks: Sequence[TrainerCallback | type[TrainerCallback]] = (),
    ):
        if isinstance(model, SAETrainingArguments) or isinstance(args, str):
            raise TypeError("the language model comes first and the arguments second: SAETrainer(args=args).")
        self.args = args or SAETrainingArguments()
        self._inputs = UserInputs(model, saes, train_dataset, eval_dataset, processing_class, activations)
        if activations is not None and self.args.activation_cache is not None:
            raise ValueError(TWO_SOURCES)
        self._output_dir = Path(self.args.output_dir)
        trackers = [Trackers()] if self.args.report_to not in ("", "none") else []
        publishing = [PushToHub(self.args)] if self.args.push_to_hub else []
        ours = [ProgressBar(), HealthWarnings(), *trackers, *publishing]
        self.callback_handler = CallbackHandler([*ours, *callbacks])
        self._reset()

    def _reset(self) -> None:
        """Everything as it is before a run."""
        self.state, self.control = TrainerState(), TrainerControl()
        self._run: TrainingRun | None = None
        self._accelerator: Accelerator | None = None
        self._is_taken = self._is_saved = False  # by `train`; by its end, with figures and cards
        self._best = BestCheckpoint(self.args, self._output_dir)
        self._seconds, self._saved_folders = 0.0, set[Path]()

    # -- what one looks at --------------------------------------------------------------------------------------------
    @property
    def saes(self) -> dict[str, SAE]:
        """The SAEs that this process trains, by name, a single one by the name `""`.

        Where the run is not prepared yet, this loads the language model and reads the first activations.
        """
        return self._prepared().saes

    @property
    def callbacks(self) -> list[TrainerCallback]:
        """The callbacks; the ones that every run has stand first."""
        return self.callback_handler.callbacks

    def add_callback(self, callback: TrainerCallback | type[TrainerCallback]) -> None:
        """Adds a callback, an object or a class, behind the others."""
        self.callback_handler.add_callback(callback)

    def remove_callback(self, callback: TrainerCallback | type[TrainerCallback]) -> None:
        """Removes a callback, or the first one of a class."""
        self.callback_handler.remove_callback(callback)

    # -- training -----------------------------------------------------------------------------------------------------
    def train(self, resume_from_checkpoint: str | os.PathLike | bool | None = None) -> TrainOutput:
        """Runs the training to its end, measures and saves the SAEs.

        Args:
            resume_from_checkpoint: A checkpoint folder, or True for the newest one of `args.output_dir`; None does as
                the arguments say.

        Returns:
            The trained SAEs and what was measured.

        Raises:
            FileExistsError: If `args.output_dir` holds another run, or another process is writing one into it.
            FileNotFoundError: If there is nothing to resume from.
            DamagedFileError: If what is resumed from is not what was written, and no older checkpoint is whole.
            ValueError: If an argument does not fit the model, the data or the run that is resumed.
            FloatingPointError: If a loss stops being a number; names the SAE and the step.
            NonFiniteActivationsError: If activations do; names the module and the step.
            OSError: If a checkpoint cannot be written; earlier ones stay whole.
            ProcessLostError: If another process of the run has ended; names it.
        """
        if self._is_taken:
            self._reset()
        with gradients_on(), own_precision(), ExitStack() as held:
            held.enter_context(new_folder(self._output_dir))
            accelerator = self._start()
            held.enter_context(ProcessWatch(accelerator, lambda: resume_hint(self._output_dir)))
            if accelerator.is_main_process:  # of several processes the main one holds the folder for all
                held.enter_context(in_use(self._output_dir))
            checkpoint = checkpoint_to_resume(self.args, resume_from_checkpoint)
            claim_output_dir(self.args, accelerator, checkpoint, self._saved_folders)
            with freed_memory_kept():
                run, self._is_taken = self._prepared(checkpoint), True
                # Before the first step and after the last one a signal ends at once: there is nothing new to save.
                with Interruption() as interruption, closing(run.stream):
                    self._loop(run, interruption)
            return self._end(run)

    def _loop(self, run: TrainingRun, interruption: Interruption) -> None:
        """Steps until all are taken, a callback asks for the end, or the process is told to stop."""
        args, state, control = self.args, self.state, self.control
        started, clock = time.perf_counter() - self._seconds, Clock(state.global_step * run.tokens_per_step)
        every = logging_steps_of(args, state.max_steps)
        self._saved_at = time.perf_counter()
        self._call("on_train_begin")
        while state.global_step < state.max_steps:
            control.should_log = control.should_save = False
            self._call("on_step_begin")
            self._step(run, run.next_batches(state.global_step))
            self._seconds = time.perf_counter() - started
            self._call("on_step_end")
            stopping = control.should_training_stop or any_process(
                interruption.requested, state.global_step, run.accelerator
            )
            last = stopping or state.global_step == state.max_steps
            if last or control.should_log or state.global_step % every == 0:
                self._log(run, clock)
            due = args.save_steps and state.global_step % args.save_steps == 0
            if last or control.should_save or due or self._is_time_to_save(run):
                self._save(run)
            if stopping and state.global_step < state.max_steps:
                logger.warning("stopped at step %d; resume with resume_from_checkpoint='last'.", state.global_step)
                return

    def training_step(self, batch: Tensor | Mapping[str, Tensor] | None = None) -> dict[str, float]:
        """Takes one optimiser step of every SAE: for notebooks, before `train`, which goes on from there.

        Args:
            batch: Activations by hook point, as many rows each as this process trains on in a step
                (`train_batch_tokens * gradient_accumulation_steps`); a tensor where there is one hook point. None
                takes the next ones that `train` would take.

        Returns:
            The loss of each SAE of this process by name, before the step.

        Raises:
            RuntimeError: If `train` has begun or ended this run.
            ValueError: If there are no steps left, or the batch does not fit.
            FloatingPointError: If a loss is not a number; names the SAE.

        Example:
            >>> trainer = SAETrainer(args=args)  # doctest: +SKIP
            >>> losses = [trainer.training_step()[""] for _ in range(100)]  # doctest: +SKIP
        """
        if self._is_taken:
            raise RuntimeError("train() steps this run itself: make another SAETrainer to step by hand.")
        run = self._prepared()
        if self.state.global_step >= self.state.max_steps:
            raise ValueError(f"all {self.state.max_steps} steps of the run are taken: raise training_tokens.")
        begun, step = time.perf_counter(), self.state.global_step
        batches = run.next_batches(step) if batch is None else run.batches_of(batch, step)
        losses = {name: loss.item() for name, loss in self._step(run, batches).items()}
        self._seconds += time.perf_counter() - begun
        run.refuse_non_finite(self.state.global_step)
        return losses

    def evaluate(self, eval_dataset: Any = None) -> dict[str, dict[str, Any]]:
        """Measures the SAEs as they are now: before, during (in a callback) or after training.

        Args:
            eval_dataset: Text to measure on, as the constructor takes it; None for that of the run.

        Returns:
            What was measured by SAE name, as `TrainOutput.metrics`, the same on all processes.

        Raises:
            ValueError: If evaluation is off (`eval_tokens=0`), or there is no language model.
            RuntimeError: If the SAEs lie in several processes (`sae_placement="shard"`) and training has not ended.

        Example:
            >>> SAETrainer(args=args).evaluate()[""]["explained_variance"]  # doctest: +SKIP
            0.31
        """
        metrics = evaluate_now(self._prepared(), eval_dataset)
        self._call("on_evaluate", metrics=metrics)
        return metrics

    def save_model(self, output_dir: str | os.PathLike | None = None) -> None:
        """Saves every SAE as it is now, each into the folder of its name, for `SAE.from_pretrained`.

        Args:
            output_dir: Folder; None for `args.output_dir`. A single SAE lies in the folder itself.

        Raises:
            OSError: If they cannot be written.

        Example:
            >>> trainer.save_model("runs/half-way")  # doctest: +SKIP
            >>> sae = SAE.from_pretrained("runs/half-way")  # doctest: +SKIP
        """
        folder = Path(output_dir or self._output_dir)
        self._saved_folders |= save_now(self._prepared(), self.state, self._seconds, folder, is_final=self._is_saved)

    def push_to_hub(self, commit_message: str = "End of training") -> CommitInfo | None:
        """Publishes every SAE with its card; saves them first where `train` has not done so at its end.

        The arguments say where to: `hub_model_id`, `hub_revision`, `hub_private_repo`, `hub_token`.

        Args:
            commit_message: First line of the commit.

        Returns:
            What `huggingface_hub` says of the commit; None in all processes but the main one.

        Raises:
            ValueError: If the destination cannot be one.
            PushError: If the Hub refuses.
        """
        destination = destination_of(self.args).titled(commit_message)
        run, info = self._prepared(), None
        if not self._is_saved:
            self.save_model()
        if run.accelerator.is_main_process:
            info = publish_trained(self._output_dir, run.hook_points, destination)
        run.accelerator.wait_for_everyone()
        return info

    # -- preparing ----------------------------------------------------------------------------------------------------
    def _start(self) -> Accelerator:
        """Devices, processes and trackers, started once a run."""
        if self._accelerator is None:
            self._accelerator = start_accelerator(self.args)
        return self._accelerator

    def _prepared(self, checkpoint: Path | None = None) -> TrainingRun:
        """The run, prepared if it is not yet, where a checkpoint left it if there is one."""
        if self._run is not None and checkpoint is None:
            return self._run
        accelerator, stored = self._start(), None if checkpoint is None else read_run(checkpoint)
        seed = text_seed_of(stored, self.args, accelerator.num_processes)
        run, resuming = self._run, checkpoint is not None
        if run is None or (stored is not None and run.text_seed != seed):
            with new_folder(self._output_dir):
                run = prepare_run(self.args, self._inputs, accelerator, resuming=resuming, text_seed=seed)
            self.state.is_world_process_zero = self.state.is_local_process_zero = accelerator.is_main_process
            self.state.max_steps = run.total_steps
        if checkpoint is not None:
            stored = resume(run, checkpoint)
            self.state.global_step = stored["step"]
            self.state.log_history = stored["log_history"]
            self._seconds = stored["seconds"]
            self._best.load_state_dict(stored.get("best"))
            self._best.tell(self.state)
        self._run = run
        return run

    # -- in the loop --------------------------------------------------------------------------------------------------
    def _step(self, run: TrainingRun, batches: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """One optimiser step of every SAE; returns the losses."""
        losses = run.step(batches, self.state.global_step)
        self.state.global_step += 1
        if run.accelerator.device.type == "cpu":  # elsewhere the question waits for the device: asked when logging
            run.refuse_non_finite(self.state.global_step)
        return losses

    def _is_time_to_save(self, run: TrainingRun) -> bool:
        if (minutes := self.args.save_minutes) is None:
            return False
        late = time.perf_counter() - self._saved_at >= 60 * minutes
        return any_process(late, self.state.global_step, run.accelerator)

    def _log(self, run: TrainingRun, clock: Clock) -> None:
        run.refuse_non_finite(self.state.global_step)
        state = self.state
        # Of the step just done, whose index is one less than the number of steps done.
        saes_log = run.gather({name: one.pop_log(state.global_step - 1) for name, one in run.learners.items()})
        tokens = state.global_step * run.tokens_per_step
        logs = {"step": state.global_step, "tokens": tokens, "tokens_per_second": clock.rate(tokens)}
        logs |= flat_log(saes_log)
        state.log_history.append(logs)
        logger.debug("%s", logs)
        self._call("on_log", logs=logs, saes_log=saes_log)

    def _save(self, run: TrainingRun) -> None:
        run.refuse_non_finite(self.state.global_step)
        self._best.observe(self.state, list(run.hook_points))
        record = run_record(run, self.args, self.state, self._seconds, self._best.state_dict())
        save_checkpoint(
            self._output_dir,
            self.state.global_step,
            run.learners,
            run.stream.state_dict(),
            record,
            run.accelerator,
            self.args.save_total_limit,
            owners=run.owners,
            spared=self._best.checkpoint,
        )
        self._saved_at = time.perf_counter()
        self._call("on_save")

    def _call(self, event: str, **kwargs: Any) -> None:
        """Tells the callbacks; what they ask for stands in `self.control` afterwards."""
        run: Any = self._run
        self.callback_handler(event, self.args, self.state, self.control, model=run.saes, run=run, **kwargs)

    def _end(self, run: TrainingRun) -> TrainOutput:
        """Finalises the SAEs, where all steps are taken."""
        for learner in run.learners.values():
            learner.end()
        if run.accelerator.num_processes > 1:
            run.accelerator.free_memory()  # its models are wrapped in what holds on to the processes' group
        self._is_saved = self.state.global_step == self.state.max_steps
        metrics, together = finalize(run, self.state, self._seconds) if self._is_saved else ({}, None)
        self._call("on_train_end")
        return TrainOutput.of(run, self.state, metrics, together, self._best.checkpoint)
