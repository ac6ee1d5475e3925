"""Going on from a checkpoint, on as many processes as wrote it or on others."""

from pathlib import Path
from typing import Any

from hfsae.arguments.training_arguments import SAETrainingArguments
from hfsae.storage import read_json
from hfsae.training.checkpoints import load_learner, read_run
from hfsae.training.run import Run


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
