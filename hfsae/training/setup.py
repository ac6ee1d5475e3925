"""Everything that a run consists of, put together before its first step so that mistakes end it early.

The evaluation that ends a run is tried on one batch first. A run may go on from a checkpoint (`resume`).
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from accelerate import Accelerator
from torch import Tensor

from hfsae.arguments.training_arguments import SAETrainingArguments
from hfsae.autoencoder.initialisation import initialise
from hfsae.configuration import SAEConfig
from hfsae.data import NonFiniteActivationsError
from hfsae.functional.massive_tokens import MassiveTokens
from hfsae.in_model import SAEHookPoints, activations_at, names_of
from hfsae.inputs import streams
from hfsae.inputs.base_model import BaseModel
from hfsae.inputs.evaluation_text import rehearse_evaluation
from hfsae.inputs.fingerprints import refuse_other_inputs
from hfsae.inputs.text_splits import Texts
from hfsae.kl_finish.finish import KLFinish, refuse_kl_finish
from hfsae.kl_finish.run_stream import RunStream
from hfsae.modeling import SAE
from hfsae.parallel.exchange import from_all
from hfsae.parallel.placement import Placement, placement_of
from hfsae.run_inputs.opened import RunInputs, open_inputs, places_before_loading, record_origin
from hfsae.run_inputs.user_inputs import UserInputs, with_published
from hfsae.storage import read_json
from hfsae.training.checkpoint import load_learner, read_run, resume_hint
from hfsae.training.learner import Learner
from hfsae.training.planning import planned_saes
from hfsae.training.schedule import active_at_start

T = TypeVar("T")


@dataclass(frozen=True)
class TrainingRun:
    """A run, ready for its first step.

    Args:
        args: Its arguments.
        accelerator: Devices and processes.
        placement: How the processes share the SAEs.
        base: The language model; None where the user gives activations. Without weights where a cache is read and
            nothing evaluated.
        texts: Its disjoint parts of text; None where they are not needed.
        digests: What tells its inputs from others of the same names, see `RunInputs`.
        held_out: Rows (N, d_in) by hook point that are not trained on, of the user's activations or of a cache. Empty
            where the language model will read them from the text.
        stream: Batches of activations by hook point, step by step.
        text_seed: Seed of the order of text.
        hook_points: Where each SAE reads and writes, by name, of all processes.
        arguments: The arguments of each SAE by name: those of the run, but for what is its own.
        owners: The rank of the process that writes each SAE by name.
        learners: The SAEs that this process trains, by name.
    """

    args: SAETrainingArguments
    accelerator: Accelerator
    placement: Placement
    base: BaseModel | None
    texts: Texts | None
    digests: dict[str, str | None]
    held_out: dict[str, Tensor]
    stream: RunStream
    text_seed: int
    hook_points: dict[str, SAEHookPoints]
    arguments: dict[str, SAETrainingArguments]
    owners: dict[str, int]
    learners: dict[str, Learner]

    @property
    def saes(self) -> dict[str, SAE]:
        """The SAEs that this process trains, by name."""
        return {name: learner.sae for name, learner in self.learners.items()}

    @property
    def total_steps(self) -> int:
        return self.args.total_steps_on(self.accelerator.num_processes)

    @property
    def tokens_per_step(self) -> int:
        args = self.args
        return args.train_batch_tokens * args.gradient_accumulation_steps * self.accelerator.num_processes

    @property
    def can_redistribute_text(self) -> bool:
        """Whether another number of processes can go on with the text: its documents can be put in another order."""
        whole = self.texts is not None and hasattr(self.texts.train, "__len__")
        return whole and self.args.shuffle_documents and self.args.activation_cache is None

    def is_owner(self, name: str) -> bool:
        """Whether this process writes the files of an SAE."""
        return self.owners[name] == self.accelerator.process_index

    def gather(self, values: dict[str, T]) -> dict[str, T]:
        """Plain values by SAE, with those of the SAEs of other processes, in the order of the run."""
        return self.placement.gather(values, self.hook_points)

    def next_batches(self, step: int) -> list[dict[str, Tensor]]:
        """The rows by hook point of each batch of a step.

        Args:
            step: Steps taken before.

        Raises:
            NonFiniteActivationsError: If there is NaN or infinity among them; names the step.
            OSError: If the text cannot be read on; names the step.
            ValueError: If there are no more.
        """
        try:
            batches = self.stream.of_step(step)
        except NonFiniteActivationsError as error:
            hint = resume_hint(Path(self.args.output_dir))
            raise NonFiniteActivationsError(f"step {step}: {error}. {hint}") from error
        except OSError as error:  # a shard that is gone, a network that is down
            hint = resume_hint(Path(self.args.output_dir))
            raise OSError(f"step {step}: the text could not be read on: {error}. {hint}") from error
        except StopIteration:
            raise ValueError(
                f"the activations ended at step {step} of {self.total_steps}: bring more, or lower training_tokens."
            ) from None
        return [self._step_rows(batch) for batch in batches]

    def step(self, batches: list[dict[str, Tensor]], step: int) -> dict[str, Tensor]:
        """One optimiser step of every SAE of this process.

        Args:
            batches: What `next_batches` gave for this step.
            step: Steps taken before.

        Returns:
            The losses before the step by name, each ().
        """
        rows = {}
        for name, points in ((name, self.hook_points[name]) for name in self.learners):
            targets = [target for batch in batches if (target := points.target_rows(batch)) is not None]
            rows[name] = [points.rows(batch) for batch in batches], targets
        if (finish := self.stream.finish_at(step)) is None:
            return {name: one.step(rows[name][0], step, rows[name][1]) for name, one in self.learners.items()}
        there = {name: one.on_device(*rows[name]) for name, one in self.learners.items()}
        states = {name: one.begin(there[name], step) for name, one in self.learners.items()}
        terms = finish.terms(self.saes, states)
        return {name: one.update(there[name], states[name], terms[name]) for name, one in self.learners.items()}

    def batches_of(self, rows: Tensor | Mapping[str, Tensor], step: int) -> list[dict[str, Tensor]]:
        """The user's own rows of a step, this process's share, as `next_batches` gives those of the run.

        Raises:
            ValueError: If rows of a hook point are missing, are not as many as a step has, or are not finite. Also in
                the KL finish, which needs whole sequences.
        """
        if self.stream.finish_at(step) is not None:
            raise ValueError(f"step {step} belongs to the KL finish, which reads whole sequences: give no batch.")
        names, count = names_of(self.hook_points.values()), self.args.gradient_accumulation_steps
        given = {names[0]: rows} if isinstance(rows, Tensor) and len(names) == 1 else rows
        wanted = self.args.train_batch_tokens * count
        if not isinstance(given, Mapping) or not given.keys() >= set(names):
            raise ValueError(f"the SAEs are trained on activations of {', '.join(names)}: give rows by these names.")
        for name in names:
            if given[name].ndim != 2 or len(given[name]) != wanted:
                raise ValueError(
                    f"the rows of {name} have shape {tuple(given[name].shape)}: expected ({wanted}, d_in), that is "
                    "train_batch_tokens * gradient_accumulation_steps rows."
                )
            if not given[name].isfinite().all():
                raise ValueError(f"the rows of {name} hold what is no finite number: no step was taken.")
        parts = [given[name].split(self.args.train_batch_tokens) for name in names]
        return [self._step_rows(dict(zip(names, batch, strict=True))) for batch in zip(*parts, strict=True)]

    def _step_rows(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.placement.step_rows(batch, getattr(torch, self.args.activation_dtype))

    def refuse_non_finite(self, step: int) -> None:
        """Raises where a loss since the last log is not a number; every process must call this.

        Args:
            step: Steps taken.

        Raises:
            FloatingPointError: Names the SAE and the step.
        """
        found = [name for name, learner in self.learners.items() if not learner.is_finite()]
        # A process that ended alone would leave the others waiting for it.
        for name in from_all(found, self.accelerator):
            called = f"SAE {name!r}" if name else "the SAE"
            raise FloatingPointError(
                f"the loss of {called} at {self.hook_points[name].reads} is not a number, found after step {step}. "
                f"Try a lower learning_rate. {resume_hint(Path(self.args.output_dir))}"
            )

    def folder_of(self, name: str) -> Path:
        """Where the trained SAE of this name is saved."""
        return Path(self.args.output_dir) / name


def prepare_run(
    args: SAETrainingArguments,
    inputs: UserInputs,
    accelerator: Accelerator,
    *,
    resuming: bool,
    text_seed: int | None = None,
) -> TrainingRun:
    """Loads or takes the model, the text and the SAEs, and starts fresh SAEs from the first activations.

    Args:
        args: The run's arguments.
        inputs: What the user gives.
        accelerator: The run's accelerator.
        resuming: Whether `resume` will follow, which makes a start from activations superfluous.
        text_seed: Seed of the order of text and of shuffling; None for `args.seed`.

    Raises:
        ValueError: If anything does not fit anything else; says what and why.
    """
    loaded = with_published(inputs, args)
    inputs.refuse_unread(args, loaded.by_name)  # a mistake shall not cost the loading of a language model
    placement = placement_of(args.sae_placement, accelerator)
    if inputs.by_name:
        placement.refuse_too_few(len(inputs.by_name))
    refuse_kl_finish(args, accelerator.num_processes, own_activations=inputs.activations is not None)
    text_seed = args.seed if text_seed is None else text_seed
    if (places := places_before_loading(args, loaded)) is not None:
        planned_saes(args, inputs, loaded, places, placement)
    opened = open_inputs(replace(args, seed=text_seed), loaded, accelerator)
    args = replace(opened.args, seed=args.seed)
    arguments, given, parameters = planned_saes(args, inputs, loaded, opened.places, placement)
    reading = replace(args, seed=text_seed)
    finish = _kl_finish(reading, opened, accelerator, placement)
    shuffled = streams.make_stream(reading, opened.source, accelerator, finish and _batches_before(finish, args))
    stream = RunStream(streams.PeekableStream(shuffled), finish, args.gradient_accumulation_steps)
    owners = placement.owners(parameters)
    here = placement.trained_by(accelerator.process_index, owners)
    saes = {name: _make_sae(arguments[name], given[name]) for name in here}
    devices = placement.devices({name: parameters[name] for name in here})
    for name, sae in saes.items():
        record_origin(args, opened, sae.config, name)
        sae.to(devices[name], torch.float32)  # type: ignore[arg-type]
    massive: dict[str, MassiveTokens] = {}
    if not resuming:
        fresh = {name: sae for name, sae in saes.items() if not isinstance(loaded.by_name.get(name), SAE)}
        massive = _initialise(fresh, arguments, opened, stream, placement)
    if args.eval_tokens and opened.base is not None and opened.texts is not None:
        rank, processes = placement.share_of_text
        told = {"held_out": opened.held_out, "device": accelerator.device, "rank": rank, "processes": processes}
        rehearse_evaluation(args, opened.base, opened.texts, saes, **told)
    return TrainingRun(
        args=args,
        accelerator=accelerator,
        placement=placement,
        base=opened.base,
        texts=opened.texts,
        digests=opened.digests,
        held_out=opened.held_out,
        stream=stream,
        text_seed=text_seed,
        hook_points=opened.hook_points,
        arguments=arguments,
        owners=owners,
        learners={
            name: Learner(name, sae, arguments[name], accelerator, massive.get(name)) for name, sae in saes.items()
        },
    )


def _kl_finish(
    args: SAETrainingArguments, opened: RunInputs, accelerator: Accelerator, placement: Placement
) -> KLFinish | None:
    """The last steps of a run that look at the model's predictions, tried out; None where it has none."""
    if not args.kl_tokens:
        return None
    assert opened.base is not None and opened.texts is not None
    finish = KLFinish(
        *(args, opened.base, streams.training_blocks(args, opened.texts.train, opened.base, accelerator)),
        *(opened.hook_points, (accelerator.process_index, accelerator.num_processes)),
        mean=lambda tensor: placement.reduce(tensor, "mean"),
    )
    finish.rehearse(opened.source.widths, says=accelerator.is_main_process)
    return finish


def _batches_before(finish: KLFinish, args: SAETrainingArguments) -> int:
    """How many batches of shuffled activations a run has; fresh SAEs start from some in any case."""
    count = finish.first_step * args.gradient_accumulation_steps
    return count or -(-args.init_tokens // args.train_batch_tokens)


def _make_sae(args: SAETrainingArguments, item: SAE | SAEConfig) -> SAE:
    if isinstance(item, SAE):
        return item
    with torch.random.fork_rng(devices=[]):
        # Every SAE draws its weights from the same seed, alone or in company.
        torch.manual_seed(args.seed)
        # A copy: what training writes into a config is not the user's.
        return SAE.from_config(copy.deepcopy(item), dtype=torch.float32)


def _initialise(
    saes: dict[str, SAE],
    arguments: Mapping[str, SAETrainingArguments],
    opened: RunInputs,
    stream: RunStream,
    placement: Placement,
) -> dict[str, MassiveTokens]:
    """Starts SAEs from the first tokens of the stream, the same on every process; those are trained on too.

    Returns the massive tokens among these, of autoencoders, by name.
    """
    found: dict[str, MassiveTokens] = {}
    if not placement.gather(dict.fromkeys(saes, True), opened.hook_points):
        return found
    tokens = max(1, opened.args.init_tokens // placement.processes)
    batches = stream.peek(-(-tokens // opened.args.train_batch_tokens))
    if not batches:
        raise ValueError(
            f"there are fewer activations than one batch of {opened.args.train_batch_tokens} tokens: "
            "give more text or a smaller train_batch_tokens."
        )
    for points in dict.fromkeys(opened.hook_points.values()):  # the same on every process, whatever SAEs it trains
        sides = [[points.rows(batch) for batch in batches]]
        if points.writes is not None:
            sides.append([activations_at(batch, points.writes) for batch in batches])
        first = (torch.cat(side)[:tokens] for side in sides)
        rows, *target = (cast(Tensor, placement.accelerator.gather(part)) for part in first)
        for name, sae in saes.items():
            if opened.hook_points[name] == points:
                own = arguments[name]
                initialise(sae, rows, own.decoder_center, *target, active=active_at_start(own, sae))
                if not sae.config.is_transcoder:
                    found[name] = MassiveTokens(sae.config.d_in, device=sae.device)
                    found[name].see(sae.scaled(rows.to(sae.device)))
    return found


def resume(run: TrainingRun, checkpoint: Path) -> dict[str, Any]:
    """Puts every learner and the stream where they were when the checkpoint was written.

    Args:
        run: A run prepared with the same arguments.
        checkpoint: The checkpoint's folder.

    Returns:
        The contents of its `run.json`.

    Raises:
        ValueError: If it was written for other SAEs or inputs. Likewise if another number of processes wrote it, and
            the input cannot be shared out again (only text that is shuffled as a whole can).
    """
    stored = read_run(checkpoint)
    processes = run.accelerator.num_processes
    if stored["processes"] != processes and not run.can_redistribute_text:
        raise ValueError(
            f"the checkpoint was written by {stored['processes']} processes and this run has {processes}: only text "
            "that is shuffled as a whole can be shared out again; a stream, a cache or activations cannot. Resume "
            "with as many."
        )
    if stored["saes"] != list(run.hook_points):
        raise ValueError(
            f"the checkpoint holds the SAEs {stored['saes']} and this run trains {list(run.hook_points)}. "
            "Resume with the same, in the same order."
        )
    refuse_other_inputs(stored, run.digests, run.texts, checkpoint.name)
    for name, before in stored.get("own_arguments", {}).items():
        run.arguments[name].refuse_difference({**stored["arguments"], **before}, f"SAE {name!r}: the")
    ratio = stored["processes"] / processes  # a step of several processes is several steps of one
    for learner in run.learners.values():
        load_learner(checkpoint, learner, ratio)
    if stored["processes"] == processes:
        run.stream.load_state_dict(read_json(checkpoint / f"stream-rank-{run.accelerator.process_index}.json"))
    else:
        stored["step"] = round(stored["step"] * ratio)
        for entry in stored["log_history"]:
            entry["step"] = round(entry["step"] * ratio)
    return stored
