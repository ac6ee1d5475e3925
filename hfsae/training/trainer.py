"""`SAETrainer`: from a language model and text, or activations of one's own, to trained, measured, saved SAEs."""

import logging
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainerControl, TrainerState

from hfsae.arguments.training_arguments import SAETrainingArguments
from hfsae.configuration import SAEConfig
from hfsae.data import NonFiniteActivationsError
from hfsae.evaluation.report import headlines
from hfsae.hooks import inner_model
from hfsae.host_memory import freed_memory_kept
from hfsae.in_model import rows_at
from hfsae.in_use import in_use, new_folder
from hfsae.interruption import Interruption
from hfsae.modeling import SAE
from hfsae.notebook import html_table
from hfsae.parallel.launching import start_accelerator
from hfsae.parallel.placement import from_all
from hfsae.parallel.process_watch import ProcessWatch
from hfsae.training.callbacks import Callbacks, Clock, HealthWarnings, ProgressBar, PushToHub, Trackers
from hfsae.training.checkpoint import (
    BestCheckpoint,
    claim_output_dir,
    find_checkpoint,
    last_checkpoint,
    read_run,
    save_checkpoint,
)
from hfsae.training.finalize import finish
from hfsae.training.setup import prepare_run, resume, text_seed_of
from hfsae.training.user_inputs import Inputs, SAEInput

logger = logging.getLogger(__name__)

# How often is logged where the arguments do not say it: a short run has points enough for a curve too.
_POINTS_OF_A_CURVE, _MOST_STEPS_BETWEEN_LOGS = 100, 50

# Processes ask each other only so often whether one was interrupted: the answer waits for the device.
_AGREE_STEPS = 8


@dataclass
class TrainOutput:
    """What `SAETrainer.train` returns.

    Args:
        saes: The trained SAEs by name, a single one by the name `""`; where they are spread over processes, those of
            this process.
        metrics: What was measured on held-out text, by the same names; empty where evaluation was off.
        log_history: One entry per logged step, as in `transformers.TrainerState`.
        steps: Optimiser steps taken.
        completed: False if the run was interrupted; its last checkpoint is the place to resume from.
        configs: Of all SAEs by name.
        best_checkpoint: The checkpoint of the best `metric_for_best_model`, where one was named.
        together: What was measured with all of a set of transcoders in place, as `evaluate_together` gives it; None
            where the run trained no set.
    """

    saes: dict[str, SAE]
    metrics: dict[str, dict[str, Any]]
    log_history: list[dict[str, float]]
    steps: int
    completed: bool
    configs: dict[str, SAEConfig]
    best_checkpoint: Path | None = None
    together: dict[str, Any] | None = None

    def __repr__(self) -> str:
        how = "completed" if self.completed else "interrupted"
        names = ", ".join(name or repr(config) for name, config in self.configs.items())
        return f"TrainOutput({how} after {self.steps:,} steps: {names})"

    def _repr_html_(self) -> str:
        """A row an SAE with the figures that say most."""
        return html_table(
            [[name or "SAE", *headlines(self.metrics.get(name, {})).values()] for name in self.configs],
            header=["", *headlines({})],
            caption=f"{'completed' if self.completed else 'interrupted'} after {self.steps:,} steps",
        )

    @property
    def sae(self) -> SAE:
        """The only SAE of the run.

        Raises:
            ValueError: If there are several.
        """
        if len(self.saes) != 1:
            raise ValueError(f"the run trained {len(self.saes)} SAEs: {', '.join(self.saes)}. Take one from .saes.")
        return next(iter(self.saes.values()))


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
        activations: Activations of one's own instead of a model and text: a tensor or numpy array (rows, d_in), also
            one mapped from a file, a dict of such by hook point, a `datasets.Dataset`, or an iterable of batches.
        callbacks: `transformers.TrainerCallback` objects or classes. Every event passes `model` (the SAEs by name);
            `on_log` also `logs` (flat) and `saes_log` (by SAE). They run in
            every process, and what they ask for in `control` must be the same everywhere.

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
        >>> output = SAETrainer(args=args).train()  # doctest: +SKIP
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
        if isinstance(model, SAE | SAEConfig):
            raise TypeError("the first argument is the language model; SAEs are given as SAETrainer(saes=...).")
        model = os.fspath(model) if isinstance(model, os.PathLike) else model
        for one in model.values() if isinstance(model, Mapping) else [model]:
            if one is not None and not isinstance(one, str):
                inner_model(one)  # or says what is wrong
        cached = args is not None and args.activation_cache is not None
        if activations is not None and (model is not None or train_dataset is not None or cached):
            raise ValueError("give a language model with text or their cache, or activations of your own, not both.")
        self.args = args or SAETrainingArguments()
        self._inputs = Inputs(model, saes, train_dataset, eval_dataset, processing_class, activations)
        self._own_callbacks = list(callbacks)
        self._output_dir = Path(self.args.output_dir)

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
        with new_folder(self._output_dir):
            accelerator = start_accelerator(self.args)
            # Of several processes the main one holds the folder for all.
            held = in_use(self._output_dir) if accelerator.is_main_process else nullcontext()
            with ProcessWatch(accelerator, self._what_is_left), held:
                return self._train(accelerator, resume_from_checkpoint)

    def _train(self, accelerator: Accelerator, resume_from_checkpoint: str | os.PathLike | bool | None) -> TrainOutput:
        args = self.args
        wanted = args.resume_from_checkpoint if resume_from_checkpoint is None else resume_from_checkpoint
        wanted = "last" if wanted is True else (os.fspath(wanted) if wanted else None)
        checkpoint = find_checkpoint(self._output_dir, wanted) if wanted else None
        stored = read_run(checkpoint) if checkpoint is not None else None
        if stored is not None:
            args.refuse_difference(stored["arguments"])
        self._text_seed = text_seed_of(stored, args, accelerator.num_processes)
        claim_output_dir(args, accelerator, checkpoint)
        with Interruption() as interruption, freed_memory_kept():
            resuming = checkpoint is not None
            self._run = prepare_run(args, self._inputs, accelerator, resuming=resuming, text_seed=self._text_seed)
            try:
                self._begin(checkpoint)
                self._loop(interruption)
            finally:
                self._run.stream.close()
        # The last checkpoint is written: from here on a signal may end the process as it always does.
        for learner in self._run.learners.values():
            learner.end()
        if accelerator.num_processes > 1:
            accelerator.free_memory()  # its models are wrapped in what holds on to the processes' group
        completed = self.state.global_step == self.state.max_steps
        metrics, together = finish(self._run, self.state, self._seconds) if completed else ({}, None)
        self._call("on_train_end")
        saes = {name: learner.sae.eval() for name, learner in self._run.learners.items()}
        configs = self._run.of_all({name: sae.config for name, sae in saes.items()})
        state, best = self.state, self._best.checkpoint
        return TrainOutput(saes, metrics, state.log_history, state.global_step, completed, configs, best, together)

    def _begin(self, checkpoint: Path | None) -> None:
        run = self._run
        main = run.accelerator.is_main_process
        self.state = TrainerState(max_steps=run.total_steps, is_world_process_zero=main, is_local_process_zero=main)
        self.control = TrainerControl()
        trackers = [Trackers(run.accelerator)] if run.accelerator.trackers else []
        publishing = [PushToHub(self.args, list(run.places))] if self.args.push_to_hub else []
        ours = [ProgressBar(run.tokens_per_step), HealthWarnings(), *trackers, *publishing]
        self._callbacks = Callbacks([*ours, *self._own_callbacks])
        self._seconds = 0.0
        self._best = BestCheckpoint(self.args, self._output_dir)
        if checkpoint is not None:
            stored = resume(run, checkpoint)
            self.state.global_step = stored["step"]
            self.state.log_history = stored["log_history"]
            self._seconds = stored["seconds"]
            self._best.load_state_dict(stored.get("best"))

    def _loop(self, interruption: Interruption) -> None:
        state, args = self.state, self.args
        started = time.perf_counter() - self._seconds
        clock = Clock(state.global_step * self._run.tokens_per_step)
        every = args.logging_steps or min(max(state.max_steps // _POINTS_OF_A_CURVE, 1), _MOST_STEPS_BETWEEN_LOGS)
        self._saved_at = time.perf_counter()
        self._call("on_train_begin")
        while state.global_step < state.max_steps:
            self.control.should_log = self.control.should_save = False
            self._call("on_step_begin")
            self._step()
            self._seconds = time.perf_counter() - started
            self._call("on_step_end")
            stopping = self.control.should_training_stop or self._is_interrupted(interruption)
            last = stopping or state.global_step == state.max_steps
            if last or self.control.should_log or state.global_step % every == 0:
                self._log(clock)
            due = args.save_steps and state.global_step % args.save_steps == 0
            if last or self.control.should_save or due or self._is_time_to_save():
                self._save()
            if stopping and state.global_step < state.max_steps:
                logger.warning("stopped at step %d; resume with resume_from_checkpoint='last'.", state.global_step)
                return

    def _is_interrupted(self, interruption: Interruption) -> bool:
        """Whether any process was told to stop: all must stop after the same step, or they wait for each other."""
        return self._any_process(interruption.requested)

    def _is_time_to_save(self) -> bool:
        minutes = self.args.save_minutes
        return minutes is not None and self._any_process(time.perf_counter() - self._saved_at >= 60 * minutes)

    def _any_process(self, says: bool) -> bool:
        """Whether any process says so; several are asked only now and then."""
        accelerator = self._run.accelerator
        if accelerator.num_processes == 1:
            return says
        if self.state.global_step % _AGREE_STEPS:
            return False
        told = torch.tensor(float(says), device=accelerator.device)
        return bool(accelerator.reduce(told, "sum"))

    def _step(self) -> None:
        """One optimiser step of every SAE."""
        run, step = self._run, self.state.global_step
        batches = [self._next_batch() for _ in range(self.args.gradient_accumulation_steps)]
        for name, learner in run.learners.items():
            read, written = run.places[name], run.targets.get(name)
            targets = [rows_at(batch, written) for batch in batches] if written is not None else []
            learner.step([rows_at(batch, read) for batch in batches], step, targets)
        self.state.global_step = step + 1
        if run.accelerator.device.type == "cpu":  # elsewhere the question waits for the device: asked when logging
            self._refuse_non_finite()

    def _next_batch(self) -> dict[str, Any]:
        try:
            return self._run.next_batch()
        except NonFiniteActivationsError as error:
            message = f"step {self.state.global_step}: {error}. {self._what_is_left()}"
            raise NonFiniteActivationsError(message) from error
        except OSError as error:  # a shard that is gone, a network that is down
            raise OSError(
                f"step {self.state.global_step}: the text could not be read on: {error}. {self._what_is_left()}"
            ) from error
        except StopIteration:
            raise ValueError(
                f"the activations ended at step {self.state.global_step} of {self.state.max_steps}: "
                "bring more, or lower training_tokens."
            ) from None

    def _refuse_non_finite(self) -> None:
        run = self._run
        found = [name for name, learner in run.learners.items() if not learner.is_finite()]
        # A process that ended alone would leave the others waiting for it.
        for name in from_all(found, run.accelerator):
            called = f"SAE {name!r}" if name else "the SAE"
            raise FloatingPointError(
                f"the loss of {called} at {run.places[name]} is not a number, found after step "
                f"{self.state.global_step}. Try a lower learning_rate. {self._what_is_left()}"
            )

    def _what_is_left(self) -> str:
        newest = last_checkpoint(self._output_dir)
        return f"The last good checkpoint is {newest}." if newest else "There is no checkpoint yet."

    def _log(self, clock: Clock) -> None:
        self._refuse_non_finite()
        run, state = self._run, self.state
        # Of the step just done, whose index is one less than the number of steps done.
        mine = {name: learner.pop_log(state.global_step - 1) for name, learner in run.learners.items()}
        saes_log = run.of_all(mine)
        tokens = state.global_step * run.tokens_per_step
        flat = {
            f"{name}/{key}" if name else key: value for name, log in saes_log.items() for key, value in log.items()
        }
        logs = {"step": state.global_step, "tokens": tokens, "tokens_per_second": clock.rate(tokens), **flat}
        state.log_history.append(logs)
        logger.debug("%s", logs)
        self._call("on_log", logs=logs, saes_log=saes_log)

    def _save(self) -> None:
        self._refuse_non_finite()
        run = self._run
        self._best.observe(self.state.global_step, self.state.log_history, list(run.places))
        stored = {
            "best": self._best.state_dict(),
            "step": self.state.global_step,
            "tokens": self.state.global_step * run.tokens_per_step,
            "processes": run.accelerator.num_processes,
            "text_seed": self._text_seed,
            "saes": list(run.places),
            "seconds": self._seconds,
            "folder": os.path.abspath(self._output_dir),
            "arguments": self.args.stored(),
            "own_arguments": {name: own.differing_from(self.args) for name, own in run.arguments.items()},
            "log_history": self.state.log_history,
        }
        save_checkpoint(
            self._output_dir,
            self.state.global_step,
            run.learners,
            run.stream.state_dict(),
            stored,
            run.accelerator,
            self.args.save_total_limit,
            owners=run.owners,
            spared=self._best.checkpoint,
        )
        self._saved_at = time.perf_counter()
        self._call("on_save")

    def _call(self, event: str, **kwargs: Any) -> None:
        """Tells the callbacks; what they ask for stands in `self.control` afterwards."""
        saes = {name: learner.sae for name, learner in self._run.learners.items()}
        self._callbacks(event, self.args, self.state, self.control, model=saes, **kwargs)
