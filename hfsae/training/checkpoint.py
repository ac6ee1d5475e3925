"""Checkpoints that are always whole: written beside, synced, renamed. Safetensors and JSON, nothing pickled.

    checkpoint-500/
        SHA256SUMS                   of every other file; a checkpoint that differs is not gone on from
        run.json                     step, arguments, names of the SAEs, log so far
        stream-rank-0.json           where each process stands in the text
        saes/<name>/                 config.json, model.safetensors, state.safetensors, state.json

`SAE.from_pretrained` opens a folder of `saes/`; a single SAE has no name and lies in `saes/` itself.
"""

import logging
import os
import re
import shutil
from collections.abc import Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors import SafetensorError
from transformers import PreTrainedConfig

from hfsae.arguments.local_paths import same_place
from hfsae.arguments.training_arguments import SAETrainingArguments
from hfsae.differences import differences
from hfsae.folders import found_again, in_full
from hfsae.loading import load_config
from hfsae.progress import quietly
from hfsae.sae_folders import must_be_local
from hfsae.saving import BESIDE, write_json
from hfsae.storage import (
    SUMS,
    DamagedFileError,
    check_sums,
    in_bytes,
    read_header,
    read_json,
    read_tensors,
    sum_up,
    write_tensors,
)
from hfsae.training.learner import Learner

logger = logging.getLogger(__name__)

_NAME = re.compile(r"checkpoint-(\d+)")
# What a folder is called until it is whole, and again while it is being removed.
UNFINISHED = ".unfinished-"
# A checkpoint's weights lie in one file, however large: transformers would begin another after 50 GB.
_ANY_SIZE = "1000TB"


def save_checkpoint(
    output_dir: Path,
    step: int,
    learners: dict[str, Learner],
    stream_state: dict[str, Any],
    run: dict[str, Any],
    accelerator: Accelerator,
    keep: int | None,
    *,
    owners: Mapping[str, int] | None = None,
    spared: Path | None = None,
) -> Path:
    """Writes a checkpoint, then removes the oldest beyond `keep`. Called by every process.

    Args:
        output_dir: Folder of the run.
        step: Optimiser steps taken.
        learners: Everything that this process trains.
        stream_state: This process's place in the text.
        run: What else is to be stored, JSON-able.
        accelerator: The run's accelerator.
        keep: Number of checkpoints that stay; None for all.
        owners: The rank of the process that writes each of them by name; None for the main one.
        spared: One that stays whatever its age.

    Returns:
        The checkpoint's folder.

    Raises:
        OSError: If it cannot be written; what was there before is untouched.
    """
    final = output_dir / f"checkpoint-{step}"
    beside = output_dir / f"{UNFINISHED}checkpoint-{step}"
    if accelerator.is_main_process:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
    accelerator.wait_for_everyone()
    try:
        write_json(beside / f"stream-rank-{accelerator.process_index}.json", stream_state)
        for name, learner in learners.items():
            writes = (owners[name] if owners else 0) == accelerator.process_index
            _save_learner(beside / "saes" / name, learner, writes=writes)
        if accelerator.is_main_process:
            write_json(beside / "run.json", run)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            sum_up(beside, _files_of(beside))
            _publish(beside, final)
            _remove_old(output_dir, keep, spared)
    except (OSError, SafetensorError) as error:  # safetensors has an exception of its own for a disk that is full
        shutil.rmtree(beside, ignore_errors=True)
        newest = last_checkpoint(output_dir)
        left = f"The newest whole checkpoint is {newest.name}." if newest else "There is no earlier checkpoint."
        raise OSError(f"could not write {final.name} to {output_dir}: {error}. {left}") from error
    accelerator.wait_for_everyone()
    return final


def _save_learner(folder: Path, learner: Learner, *, writes: bool) -> None:
    weights, state = learner.weights(writes), learner.state_dict(writes)  # every process has its part in these
    if not writes:
        return
    with quietly():
        learner.sae.save_pretrained(folder, state_dict=weights, max_shard_size=_ANY_SIZE)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state["tensors"].items()}
    write_tensors(folder / "state.safetensors", tensors)
    write_json(folder / "state.json", state["values"])


def read_run(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint says of its run, with folders where they were moved together with it.

    Raises:
        DamagedFileError: If that cannot be read.
    """
    stored = read_json(checkpoint / "run.json")
    return found_again(stored, stored.get("folder"), checkpoint.absolute().parent)


def load_learner(folder: Path, learner: Learner, step_ratio: float = 1.0) -> None:
    """Puts a learner where it was when `folder` (a checkpoint) was written.

    Args:
        folder: The checkpoint.
        learner: A learner of the same name.
        step_ratio: Steps now for each step then, where the number of processes is another.

    Raises:
        DamagedFileError: If a file of it cannot be read.
        ValueError: If the SAE of that name in the checkpoint is another one; says in what.
    """
    place = folder / "saes" / learner.name
    _refuse_other_sae(folder, learner)
    values = read_json(place / "state.json")
    if values["last_resampling"] is not None:
        values["last_resampling"] = round(values["last_resampling"] * step_ratio)
    state = {"tensors": read_tensors(place / "state.safetensors"), "values": values}
    learner.load_state_dict(read_tensors(place / "model.safetensors"), state)


def _refuse_other_sae(checkpoint: Path, learner: Learner) -> None:
    now, before = learner.sae.config, load_config(checkpoint / "saes" / learner.name)
    written_in = read_json(checkpoint / "run.json").get("folder")
    for name in ("base_model", "base_model_adapter"):
        if (place := getattr(before, name)) is not None:
            place = in_full(place) if must_be_local(place) else place
            setattr(before, name, found_again(place, written_in, checkpoint.absolute().parent))
    if getattr(before, "source_models", None) is not None:
        before.source_models = found_again(before.source_models, written_in, checkpoint.absolute().parent)
    names = {field.name for field in fields(now)} - {field.name for field in fields(PreTrainedConfig)}
    decisive = ("model_type", *sorted(names - {"training", "metrics"}))
    old, new = ({name: getattr(config, name, None) for name in decisive} for config in (before, now))
    if differing := differences(old, new, [name for name in decisive if not same_place(old[name], new[name])]):
        called = f"SAE {learner.name!r}" if learner.name else "The SAE"
        raise ValueError(f"{called} of the checkpoint is another one: {'; '.join(differing)}. Resume with the same.")


def last_checkpoint(output_dir: Path) -> Path | None:
    """The newest checkpoint of a run whose `run.json` can be read, None if there is none."""
    return next(iter(_checkpoints(output_dir)), None)


def checkpoint_folders(output_dir: Path) -> list[Path]:
    """Everything in a run's folder that is called a checkpoint, whole or not."""
    return [path for path in output_dir.glob("checkpoint-*") if _NAME.fullmatch(path.name)]


def _checkpoints(output_dir: Path) -> list[Path]:
    """The checkpoints that say how far they are, the newest first."""
    far = {path: _tokens_of(path) for path in checkpoint_folders(output_dir)}
    return sorted((path for path in far if far[path] is not None), key=lambda path: far[path] or (0, 0), reverse=True)


def _tokens_of(checkpoint: Path) -> tuple[int, int] | None:
    """How far a checkpoint is: in tokens, since steps are larger on more processes; then in steps.

    None for one that does not tell: a broken one must end no run but one that wants to go on from it.
    """
    try:
        tokens = read_json(checkpoint / "run.json").get("tokens", 0)
    except OSError:
        return None
    step = int(checkpoint.name.removeprefix("checkpoint-"))
    return (tokens, step) if isinstance(tokens, int) else None


def checkpoint_to_resume(
    args: SAETrainingArguments, resume_from_checkpoint: str | os.PathLike | bool | None
) -> Path | None:
    """The checkpoint that a run goes on from, written with the same arguments; None where it begins from nothing.

    Args:
        args: The run's arguments.
        resume_from_checkpoint: A checkpoint folder, or True for the newest one; None does as the arguments say.

    Raises:
        FileNotFoundError, DamagedFileError: As `find_checkpoint`.
        ValueError: If it belongs to a run with other arguments; names them.
    """
    wanted = args.resume_from_checkpoint if resume_from_checkpoint is None else resume_from_checkpoint
    if not wanted:
        return None
    checkpoint = find_checkpoint(Path(args.output_dir), "last" if wanted is True else os.fspath(wanted))
    args.refuse_difference(read_run(checkpoint)["arguments"])
    return checkpoint


def text_seed_of(stored: dict[str, Any] | None, args: SAETrainingArguments, processes: int) -> int:
    """The seed of the order of text: the run's, or another one where other processes share the text out.

    What was read before cannot be told apart from what was not then. In another order, what comes next is a sample of
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


def resume_hint(output_dir: Path) -> str:
    """What the user can go on from, as a sentence for the end of an error."""
    newest = last_checkpoint(output_dir)
    return f"The last good checkpoint is {newest}." if newest else "There is no checkpoint yet."


def find_checkpoint(output_dir: Path, wanted: str) -> Path:
    """The checkpoint meant by `resume_from_checkpoint`, none of whose files has changed since it was written.

    Args:
        output_dir: Folder of the run.
        wanted: Its folder; or `"last"` for the newest whole one, which says which newer ones it passes over.

    Raises:
        FileNotFoundError: If it is not there.
        DamagedFileError: If it is damaged, or all of them are; names the file.
    """
    if wanted != "last":
        if not (Path(wanted) / "run.json").is_file():
            raise FileNotFoundError(f"no checkpoint to resume from: looked for {wanted}.")
        check_whole(Path(wanted))
        return Path(wanted)
    told = _checkpoints(output_dir)
    silent = sorted(set(checkpoint_folders(output_dir)) - set(told), key=lambda path: int(path.name.split("-")[-1]))
    faults: list[OSError] = []
    for folder in [*reversed(silent), *told]:
        try:
            check_whole(folder)
        except OSError as error:
            faults.append(error)
            logger.warning("%s is passed over: %s", folder.name, error)
        else:
            if faults:
                logger.warning("going on from %s, the newest whole checkpoint.", folder.name)
            return folder
    if faults:
        raise DamagedFileError(f"no whole checkpoint to resume from in {output_dir}: {faults[0]}") from faults[0]
    raise FileNotFoundError(f"no checkpoint to resume from: looked for checkpoint-* in {output_dir}.")


def check_whole(checkpoint: Path) -> None:
    """Raises where a file of a checkpoint is missing, or is not what was written.

    Raises:
        DamagedFileError: Names the file. Of a checkpoint without `SHA256SUMS`, which earlier versions wrote, only
            files that cannot be read are found.
    """
    check_sums(checkpoint)
    if not (checkpoint / SUMS).is_file():
        for path in checkpoint.rglob("*.json"):
            read_json(path)
        for path in checkpoint.rglob("*.safetensors"):
            read_header(path)
    read_json(checkpoint / "run.json")


def _files_of(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def claim_output_dir(
    args: SAETrainingArguments, accelerator: Accelerator, resumed_from: Path | None, own: Collection[Path] = ()
) -> None:
    """Refuses a folder that holds another run, and clears away what a killed process left half-written.

    The process holds the folder (`hfsae.in_use`): what lies there half-written is no living one's.

    Args:
        args: The run's arguments.
        accelerator: Its accelerator.
        resumed_from: The checkpoint it goes on from, if it does.
        own: Folders, in full, into which the run itself has saved its SAEs before it was trained.

    Raises:
        FileExistsError: If it holds another run and overwriting was not asked for.
    """
    folder = Path(args.output_dir)
    resuming = resumed_from is not None and resumed_from.resolve().parent == folder.resolve()
    if not resuming and not args.overwrite_output_dir:
        saved = [path for path in folder.glob("**/model*.safetensors") if not _is_half_written(path, folder)]
        traces = [*checkpoint_folders(folder), *(path for path in saved if path.parent.resolve() not in own)]
        if traces:
            raise FileExistsError(
                f"{folder} holds another run ({traces[0].relative_to(folder)}). Choose another output_dir, resume "
                "with resume_from_checkpoint='last', or pass overwrite_output_dir=True."
            )
    if accelerator.is_main_process:
        half_written = [*folder.glob(f"{UNFINISHED}*"), *folder.glob(f"**/{BESIDE}*")]
        for path in [*half_written, *([] if resuming else folder.glob("checkpoint-*"))]:
            shutil.rmtree(path, ignore_errors=True)
    accelerator.wait_for_everyone()


def _is_half_written(path: Path, folder: Path) -> bool:
    """Whether a file lies in what a killed process was still writing."""
    return any(part.startswith((UNFINISHED, BESIDE)) for part in path.relative_to(folder).parts)


def refuse_full_disk(output_dir: Path, keep: int | None, parameters: int) -> None:
    """Raises before training where its checkpoints cannot fit.

    Args:
        output_dir: Folder of the run.
        keep: Number of checkpoints that stay; None for all.
        parameters: Numbers that are trained.

    Raises:
        OSError: Says how much room there is and how much is needed.
    """
    size = 3 * 4 * parameters  # weights and two Adam moments in float32
    # A new checkpoint stands next to the kept ones until it is whole.
    needed = size * ((keep or 1) + 1)
    free = shutil.disk_usage(output_dir).free
    if free < needed:
        raise OSError(
            f"{output_dir} has {in_bytes(free)} free, but {in_bytes(needed)} are needed for its "
            "checkpoints: free some space, choose another output_dir or a smaller save_total_limit."
        )


def _publish(beside: Path, final: Path) -> None:
    """Makes the finished folder appear under its name at once, and only when its bytes are on the disk."""
    for path in [*beside.rglob("*"), beside]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    if final.exists():  # a run that was resumed from further back comes by this step again
        _remove(final)
    os.replace(beside, final)


def _remove_old(output_dir: Path, keep: int | None, spared: Path | None) -> None:
    for path in _checkpoints(output_dir)[keep:] if keep else []:
        if path != spared:
            _remove(path)


def _remove(checkpoint: Path) -> None:
    # Renamed first: a half-removed folder must not look like a checkpoint.
    doomed = checkpoint.with_name(f"{UNFINISHED}old-{checkpoint.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    os.replace(checkpoint, doomed)
    shutil.rmtree(doomed, ignore_errors=True)
