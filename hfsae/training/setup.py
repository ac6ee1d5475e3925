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

from hfsae.arguments.sae_settings import config_from_arguments
from hfsae.arguments.training_arguments import SAETrainingArguments
from hfsae.autoencoder.initialisation import initialise
from hfsae.autoencoder.registry import config_class_of
from hfsae.configuration import SAEConfig
from hfsae.data import TokenBatch
from hfsae.evaluation.rehearsal import rehearse
from hfsae.hooks import inner_model
from hfsae.in_model import own_place, refuse_other_models, refuse_other_sources, rows_at, source_names, widths_at
from hfsae.inputs import streams
from hfsae.inputs.base_model import BaseModel, move_base_model
from hfsae.inputs.text_splits import Texts
from hfsae.language_model import record, record_sources
from hfsae.modeling import SAE
from hfsae.parallel.placement import deal, deal_devices, devices_here, from_owners, refuse_idle, rows_of_all
from hfsae.parallel.sharded_sae import refuse_unfit
from hfsae.storage import read_json
from hfsae.training.checkpoint import load_learner, read_run, refuse_full_disk
from hfsae.training.learner import Learner
from hfsae.training.user_inputs import Inputs, config_of, read, with_published

T = TypeVar("T")


@dataclass
class Run:
    """A run, ready for its first step.

    Args:
        args: Its arguments.
        accelerator: Devices and processes.
        base: The language model; None where activations were brought. Without weights where a cache is read and
            nothing evaluated.
        texts: Its disjoint parts of text; None where they are not needed.
        held_out: Rows (N, d_in) by hook point that are not trained on, of activations that were brought or cached;
            empty where the language model will read them from the text.
        stream: Batches of activations by hook point.
        places: The hook point of each SAE by name.
        targets: Where each transcoder writes, by name.
        arguments: The arguments of each SAE by name: those of the run, but for what is its own.
        owners: The rank of the process that writes each SAE by name; it alone trains it where SAEs are spread.
        learners: The SAEs that this process trains, by name.
        prepend_bos: Whether blocks of text start with BOS; None without text.
    """

    args: SAETrainingArguments
    accelerator: Accelerator
    base: BaseModel | None
    texts: Texts | None
    held_out: dict[str, Tensor]
    stream: streams.Lookahead
    places: dict[str, str]
    targets: dict[str, str]
    arguments: dict[str, SAETrainingArguments]
    owners: dict[str, int]
    learners: dict[str, Learner]
    prepend_bos: bool | None

    @property
    def total_steps(self) -> int:
        return self.args.total_steps_on(self.accelerator.num_processes)

    @property
    def tokens_per_step(self) -> int:
        args = self.args
        return args.train_batch_tokens * args.gradient_accumulation_steps * self.accelerator.num_processes

    @property
    def can_share_out_anew(self) -> bool:
        """Whether another number of processes can go on with the text: its documents can be put in another order."""
        whole = self.texts is not None and hasattr(self.texts.train, "__len__")
        return whole and self.args.shuffle_documents and self.args.activation_cache is None

    @property
    def is_spread(self) -> bool:
        """Whether each process trains SAEs of its own."""
        return self.args.sae_placement == "spread"

    @property
    def share_of_evaluation(self) -> dict[str, int]:
        """The `rank` of this process among the `processes` that share the text that is measured on.

        A process whose SAEs are its own measures them on the whole of it.
        """
        if self.is_spread:
            return {"rank": 0, "processes": 1}
        return {"rank": self.accelerator.process_index, "processes": self.accelerator.num_processes}

    def is_written_here(self, name: str) -> bool:
        """Whether this process writes the files of an SAE."""
        return self.owners[name] == self.accelerator.process_index

    def next_batch(self) -> dict[str, Tensor]:
        """What the SAEs of this process are to step on, by hook point: rows of its own, or those of all processes.

        Raises:
            StopIteration: If there is no more.
        """
        batch = next(self.stream)
        if self.args.sae_placement == "replicate":
            return batch
        return rows_of_all(batch, self.accelerator, getattr(torch, self.args.activation_dtype))

    def of_all(self, mine: dict[str, T]) -> dict[str, T]:
        """Plain values by SAE, with those of the SAEs of other processes, in the order of the run."""
        return from_owners(mine, self.places) if self.is_spread else mine

    def folder_of(self, name: str) -> Path:
        """Where the trained SAE of this name is saved."""
        return Path(self.args.output_dir) / name


def prepare_run(
    args: SAETrainingArguments,
    inputs: Inputs,
    accelerator: Accelerator,
    *,
    resuming: bool,
    text_seed: int | None = None,
) -> Run:
    """Loads or takes the model, the text and the SAEs, and starts fresh SAEs from the first activations.

    Args:
        args: The run's arguments.
        inputs: What the user brought.
        accelerator: The run's accelerator.
        resuming: Whether `resume` will follow, which makes a start from activations superfluous.
        text_seed: Seed of the order of text and of shuffling; None for `args.seed`.

    Raises:
        ValueError: If anything does not fit anything else; says what and why.
    """
    for name in inputs.by_name or [""]:
        # A misspelt name shall not cost the loading of a language model.
        config_class_of(inputs.arguments_of(name, args).architecture)
    if args.sae_placement == "spread" and inputs.by_name:
        refuse_idle(len(inputs.by_name), accelerator.num_processes)
    told, inputs = inputs, with_published(inputs, args)
    text_seed = args.seed if text_seed is None else text_seed
    reading = read(replace(args, seed=text_seed), inputs, accelerator)
    args, source, places = replace(reading.args, seed=args.seed), reading.source, reading.places
    targets = reading.targets
    own = {name: told.arguments_of(name, args) for name in places}
    stream = streams.Lookahead(streams.make_stream(replace(args, seed=text_seed), source, accelerator))
    items = {
        name: _item(own[name], inputs, name, (place, targets.get(name)), source.widths, reading.base)
        for name, place in places.items()
    }
    skeletons = {name: _skeleton(config_of(item)) for name, item in items.items()}
    sizes = {name: sum(p.numel() for p in skeleton.parameters()) for name, skeleton in skeletons.items()}
    spread = args.sae_placement == "spread"
    owners = deal(sizes, accelerator.num_processes) if spread else dict.fromkeys(places, 0)
    run = Run(
        *(args, accelerator, reading.base, reading.texts, reading.held_out, stream),
        *(places, targets, own, owners, {}, reading.prepend_bos),
    )
    if args.sae_placement == "shard":
        for skeleton in skeletons.values():
            refuse_unfit(skeleton, accelerator.num_processes)
    refuse_full_disk(Path(args.output_dir), args.save_total_limit, sum(sizes.values()))
    mine = [name for name in places if run.is_written_here(name) or not spread]
    saes = {name: _make_sae(own[name], items[name]) for name in mine}
    devices = deal_devices(
        {name: sizes[name] for name in mine}, devices_here(accelerator) if spread else [accelerator.device]
    )
    for name, sae in saes.items():
        _describe_origin(run, sae.config, name)
        sae.to(devices[name], torch.float32)  # type: ignore[arg-type]
    fresh = {name: sae for name, sae in saes.items() if not isinstance(inputs.by_name.get(name), SAE)}
    _initialise(run, {} if resuming else fresh)
    _rehearse(run, saes)
    run.learners = {name: Learner(name, sae, own[name], accelerator) for name, sae in saes.items()}
    return run


def _item(
    args: SAETrainingArguments,
    inputs: Inputs,
    name: str,
    places: tuple[str, str | None],
    widths: Mapping[str, int],
    base: BaseModel | None,
) -> SAE | SAEConfig:
    """What an SAE is made of: itself or its config, fit for the activations that it reads and writes."""
    item = inputs.by_name.get(name)
    source, target = places
    if item is None or isinstance(item, Mapping):
        wanted = None if target is None else (target, sum(widths_at(widths, target)))
        names = None if base is None else source_names(inner_model(base.model), source)
        item = config_from_arguments(args, names or source, widths_at(widths, source), wanted)
    config = config_of(item)
    label = f"SAE {name!r}" if name else f"the {config.model_type.removeprefix('hfsae_')} SAE"
    refuse_other_sources(config, source, widths_at(widths, source), label)
    if base is not None and base.others:
        refuse_other_models(config, inner_model(base.model), label)
    for field, place in (("d_in", source), ("d_out", target or source)):
        if (size := getattr(config, field)) != (there := sum(widths_at(widths, place))):
            raise ValueError(f"{label} has {field}={size}, but the activations at {place} have {there} dimensions.")
    return item


def _skeleton(config: SAEConfig) -> SAE:
    """An SAE of this config without weights."""
    with torch.device("meta"):
        return SAE.from_config(copy.deepcopy(config))


def _make_sae(args: SAETrainingArguments, item: SAE | SAEConfig) -> SAE:
    if isinstance(item, SAE):
        return item
    with torch.random.fork_rng(devices=[]):
        # Every SAE draws its weights from the same seed, alone or in company.
        torch.manual_seed(args.seed)
        return SAE.from_config(copy.deepcopy(item))  # what training writes into a config is not the user's


def _describe_origin(run: Run, config: SAEConfig, name: str) -> None:
    """Writes into the config what its user will have to know."""
    if run.base is None:
        return
    place = own_place(inner_model(run.base.model), run.places[name])
    config.hook_point, config.target_hook_point = place, run.targets.get(name)
    if run.base.others:
        record_sources([run.base.origin, *run.base.others], config)
    else:
        record(run.base.origin, config)
    config.context_length = run.args.context_length
    config.prepend_bos = run.prepend_bos
    config.exclude_special_tokens = run.args.exclude_special_tokens
    config.exclude_positions = list(run.args.exclude_positions)


def _initialise(run: Run, saes: dict[str, SAE]) -> None:
    """Starts SAEs from the first tokens of the stream, the same on every process; those are trained on too."""
    if not run.of_all(dict.fromkeys(saes, True)):
        return
    args = run.args
    mine = max(1, args.init_tokens // run.accelerator.num_processes)
    batches = run.stream.peek(-(-mine // args.train_batch_tokens))
    if not batches:
        raise ValueError(
            f"there are fewer activations than one batch of {args.train_batch_tokens} tokens: "
            "give more text or a smaller train_batch_tokens."
        )
    pairs = {name: (place, run.targets.get(name)) for name, place in run.places.items()}
    for pair in dict.fromkeys(pairs.values()):  # the same on every process, whatever SAEs it trains
        read = [torch.cat([rows_at(batch, place) for batch in batches])[:mine] for place in pair if place is not None]
        rows, *target = (cast(Tensor, run.accelerator.gather(part)) for part in read)
        for name, sae in saes.items():
            if pairs[name] == pair:
                args = run.arguments[name]
                initialise(sae, rows, args.decoder_center, *target)


def _rehearse(run: Run, saes: dict[str, SAE]) -> None:
    """Tries the evaluation, where there will be one."""
    if not run.args.eval_tokens or run.base is None or run.texts is None:
        return
    rehearse_evaluation(
        run.args,
        run.base,
        run.texts,
        saes,
        held_out=run.held_out,
        device=run.accelerator.device,
        **run.share_of_evaluation,
    )


def rehearse_evaluation(
    args: SAETrainingArguments,
    base: BaseModel,
    texts: Texts,
    saes: Mapping[str, SAE],
    *,
    held_out: Mapping[str, Tensor],
    device: torch.device,
    rank: int,
    processes: int,
) -> None:
    """Measures the SAEs of this process on one batch of its share of the text; nothing stays behind.

    Args:
        args: The run's arguments.
        base: The language model, which comes back to where it lay.
        texts: The parts of the text.
        saes: The SAEs by name, not trained yet.
        held_out: Activations by hook point that are not trained on, where there are such already.
        device: Where the language model will be measured in.
        rank: This process.
        processes: The number of processes that share the text.

    Raises:
        ValueError: If it cannot be done; says why.
    """
    before = base.model.device
    try:
        blocks = streams.token_blocks(args, texts.evaluation, base, repeat=False, rank=rank, world_size=processes)
        move_base_model(base, device)
        batch = _counting(blocks)
        other = held_out or (batch if texts.calibration is None else _other_text(args, base, texts))
        rehearse(saes, base.model, batch, other, base.tokenizer)
    except Exception as error:
        message = f"{type(error).__name__}: {error}".rstrip(".")
        raise ValueError(
            f"the evaluation that follows training was tried on one batch, and it failed: {message}. Mend that, or "
            "train without an evaluation: eval_tokens=0."
        ) from error
    finally:
        move_base_model(base, before)


def _other_text(args: SAETrainingArguments, base: BaseModel, texts: Texts) -> TokenBatch:
    one_at_a_time = replace(args, lm_batch_sequences=1)
    return _counting(streams.token_blocks(one_at_a_time, texts.calibration, base, repeat=False))


def _counting(blocks: streams.TokenBlocks) -> TokenBatch:
    """The first batch that holds a token that counts."""
    for batch in blocks:
        if batch.keep.any():
            return batch
    raise ValueError("the text holds no token that counts: every one is left out.")


def text_seed_of(stored: dict[str, Any] | None, args: SAETrainingArguments, processes: int) -> int:
    """The seed of the order of text: the run's, or another one where text is shared out among other processes anew.

    What was read before cannot be told apart from what was not then; in another order, what comes next is a sample of
    the text like any other.

    Args:
        stored: The `run.json` of the checkpoint that is resumed; None for a new run.
        args: The run's arguments.
        processes: Number of processes now.
    """
    if stored is None:
        return args.seed
    before = stored.get("text_seed", args.seed)
    return before if stored["processes"] == processes else before + 1


def resume(run: Run, checkpoint: Path) -> dict[str, Any]:
    """Puts every learner and the stream where they were when the checkpoint was written.

    Args:
        run: A run prepared with the same arguments.
        checkpoint: The checkpoint's folder.

    Returns:
        The contents of its `run.json`.

    Raises:
        ValueError: If it was written for other SAEs; or by another number of processes, and what is read cannot be
            shared out anew (only text that is shuffled as a whole can).
    """
    stored = read_run(checkpoint)
    processes = run.accelerator.num_processes
    if stored["processes"] != processes and not run.can_share_out_anew:
        raise ValueError(
            f"the checkpoint was written by {stored['processes']} processes and this run has {processes}: only text "
            "that is shuffled as a whole can be shared out anew, no stream, cache or activations. Resume with as many."
        )
    if stored["saes"] != list(run.places):
        raise ValueError(
            f"the checkpoint holds the SAEs {stored['saes']} and this run trains {list(run.places)}. "
            "Resume with the same, in the same order."
        )
    for name, before in stored.get("own_arguments", {}).items():
        run.arguments[name].refuse_difference({**stored["arguments"], **before}, f"SAE {name!r}: the")
    ratio = stored["processes"] / processes  # a step of several processes is several steps of one
    for learner in run.learners.values():
        load_learner(checkpoint, learner, ratio)
    if stored["processes"] == processes:
        place = checkpoint / f"stream-rank-{run.accelerator.process_index}.json"
        run.stream.load_state_dict(read_json(place))
    else:
        stored["step"] = round(stored["step"] * ratio)
        for entry in stored["log_history"]:
            entry["step"] = round(entry["step"] * ratio)
    return stored
