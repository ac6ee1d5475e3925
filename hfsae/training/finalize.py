"""What follows the last step: every SAE gets its thresholds, is saved, then measured, and gets its card and page.

A set of transcoders is also measured as a whole.
"""

import json
import logging
import os
import platform
from collections.abc import Iterable
from contextlib import nullcontext, suppress
from pathlib import Path
from shlex import quote
from typing import Any, NamedTuple

import torch
from accelerate.utils import broadcast
from safetensors import SafetensorError
from torch import Tensor
from transformers import TrainerState

from hfsae.analysis.report_features import EXAMPLE_TOKENS, report_features
from hfsae.arguments.training_arguments import SAETrainingArguments
from hfsae.data.encoding import as_ranges, special_token_ids
from hfsae.evaluation import evaluate_saes, evaluate_together
from hfsae.evaluation.saved_set import SET_FILE
from hfsae.failures import warn_on_failure
from hfsae.hooks import inner_model
from hfsae.hub.card import LOG_FILE, METRICS_FILE, draw_pictures, write_card
from hfsae.hub.html_report import ShownFeature, write_report
from hfsae.hub.listing import entry_from, write_listing_beside
from hfsae.in_model import portable_names, rows_at, separate
from hfsae.inputs import streams
from hfsae.inputs.base_model import move_base_model
from hfsae.modeling import SAE
from hfsae.progress import quietly
from hfsae.saving import files_at_once, write_config, write_json
from hfsae.training.schedule import missed_target
from hfsae.training.setup import Run
from hfsae.versions import version_of

logger = logging.getLogger(__name__)

_BATCH_ROWS = 4096
_UNCALIBRATED = "keeps the thresholds that training ended with; sae.calibrate sets them."
_VERSIONS = ("hfsae", "torch", "transformers", "accelerate", "datasets")


class Finished(NamedTuple):
    """What was measured of a run.

    Attributes:
        metrics: By SAE name, the same on all processes, each of which has read its share of the text; empty where
            evaluation is off, has failed, or there is no text to evaluate on.
        together: Of the model with all transcoders of a set in place; None likewise, and where there is no set.
    """

    metrics: dict[str, dict[str, Any]]
    together: dict[str, Any] | None


def finish(run: Run, state: TrainerState, seconds: float) -> Finished:
    """Calibrates and saves every SAE of a run that has taken its last step, then measures and shows them.

    Whatever fails after an SAE is saved costs nothing but itself: the run says so, and how to do it by hand.

    Args:
        run: The run.
        state: Its state, with the log.
        seconds: Time spent training.

    Returns:
        What was measured.
    """
    saes = {name: learner.sae.eval() for name, learner in run.learners.items()}
    calibration: dict[str, Tensor] = {}
    with warn_on_failure("not calibrated", f"every SAE {_UNCALIBRATED}"):
        calibration = _calibration_rows(run, saes)
    for name, sae in saes.items():
        if sae.needs_calibration and calibration.keys() >= set(separate([place := run.places[name]])):
            rows = rows_at(calibration, place)
            failing = warn_on_failure(f"{name or 'SAE'} not calibrated", f"it {_UNCALIBRATED}")
            # The processes of a spread SAE calibrate it together: one that fails must not go on alone.
            with nullcontext() if run.is_spread else failing:
                _calibrate(sae, rows)
        if not run.is_spread:
            for buffer in sae.buffers():  # devices of another kind may round otherwise
                buffer.copy_(broadcast(buffer))  # type: ignore[arg-type]
    mine = {name: sae for name, sae in saes.items() if run.is_written_here(name)}
    _save(run, mine, state, seconds)
    measured: dict[str, dict[str, Any]] = {}
    with warn_on_failure("not measured", _by_hand(run, mine)):
        measured = _evaluate(run, saes, calibration)
    metrics = run.of_all(measured)
    for name, sae in mine.items():
        sae.config.metrics = metrics.get(name)
        describe_trained(sae, run.folder_of(name))
        if is_wanted(run):
            show(run, name, sae)
    run.accelerator.wait_for_everyone()
    return Finished(metrics, finish_set(run, saes, calibration))


def _save(run: Run, saes: dict[str, SAE], state: TrainerState, seconds: float) -> None:
    """Saves every SAE that there is room for.

    Raises:
        OSError: If one could not be written, when all have been tried.
    """
    unsaved: dict[str, Exception] = {}
    for name, sae in saes.items():
        sae.config.training, sae.config.metrics = _summary(run, name, state, seconds), None
        try:
            save_trained(sae, run.folder_of(name), _log_of(name, run, state))
        except (OSError, SafetensorError) as error:  # the others may have room
            unsaved[name] = error
        learner = run.learners[name]
        reached, wanted = learner.coefficient.l0, learner.plan.target_l0
        if said := missed_target(reached, wanted, state.global_step, run.tokens_per_step):
            logger.warning("%s: %s", name or "SAE", said)
    if unsaved:
        folders = ", ".join(str(run.folder_of(name)) for name in unsaved)
        error = next(iter(unsaved.values()))
        raise OSError(
            f"{folders} could not be written ({error}); every other SAE of the run is saved. Make room, and resume "
            "the run from its last checkpoint."
        ) from error


def _calibrate(sae: SAE, rows: Tensor) -> None:
    sae.calibrate(lambda: (part.to(sae.device) for part in rows.split(_BATCH_ROWS)))


def _calibration_rows(run: Run, saes: dict[str, SAE]) -> dict[str, Tensor]:
    """Activations of text that is neither trained nor evaluated on, by hook point: (N, d_in) each, where needed.

    Thresholds need those of their SAE's place; an evaluation needs all, for mean activations and baselines.
    """
    if run.held_out or run.base is None or run.texts is None:
        return run.held_out
    several = run.accelerator.num_processes > 1
    calibrated = run.of_all({name: sae.needs_calibration for name, sae in saes.items()})
    if run.args.eval_tokens:
        places = [*run.places.values(), *run.targets.values()]
    else:
        places = [run.places[name] for name, needed in calibrated.items() if needed]
    if not places:
        return {}
    exact, places = bool(run.args.eval_tokens), separate(places)
    return streams.calibration_rows(run.args, run.base, run.texts, places, of_first_process=several, exact=exact)


def _evaluate(run: Run, saes: dict[str, SAE], calibration: dict[str, Tensor]) -> dict[str, dict[str, Any]]:
    args = run.args
    if not args.eval_tokens or run.base is None or run.texts is None:
        return {}
    move_base_model(run.base, run.accelerator.device)
    share = run.share_of_evaluation
    rank, processes = share["rank"], share["processes"]
    blocks = streams.token_blocks(args, run.texts.evaluation, run.base, repeat=False, rank=rank, world_size=processes)
    return evaluate_saes(
        saes,
        run.base.model,
        blocks,
        run.base.tokenizer,
        max_tokens=args.eval_tokens,
        calibration=calibration or None,
        baselines=True,
        all_processes=processes > 1,
        disable_tqdm=args.disable_tqdm or not run.accelerator.is_main_process,
        protocol=run.texts.protocol(args) | ({"processes": processes} if processes > 1 else {}),
    )


def _by_hand(run: Run, saes: Iterable[str]) -> str:
    """How SAEs of a run are measured where the run could not do it."""
    args, folders = run.args, [str(run.folder_of(name)) for name in saes]
    named = run.base is not None and run.base.origin is not None
    if run.texts is None or run.texts.measured.dataset is None or not named:
        return f"measure by hand: sae = SAE.from_pretrained({folders}), evaluate_sae(sae, model, text, tokenizer)"
    commands = "; ".join(
        f"hfsae eval {quote(folder)} --max_tokens {args.eval_tokens} --baselines" for folder in folders
    )
    return f"measure by hand: {commands}"


def _summary(run: Run, name: str, state: TrainerState, seconds: float) -> dict[str, Any]:
    """What the card says about the training."""
    args, place = run.arguments[name], run.places[name]
    stored = args.stored()
    tokens = state.global_step * run.tokens_per_step
    return {
        "portable_name": portable_names(inner_model(run.base.model), place) if run.base is not None else None,
        "dataset": stored["dataset_name"] if run.base is not None else "activations given by the user",
        "split": args.dataset_split if run.base is not None else None,
        "special_tokens": _special_tokens(run),
        "dataset_digest": run.texts.digest if run.texts is not None else None,
        "model_precision": _read_in(run),
        "n_tokens": tokens,
        "steps": state.global_step,
        "batch_tokens": run.tokens_per_step,
        "seconds": round(seconds, 1),
        "tokens_per_second": round(tokens / max(seconds, 1e-9)),
        "seed": args.seed,
        "target_l0": run.learners[name].plan.target_l0,
        "final_l0": run.learners[name].coefficient.l0,
        "evaluation": run.texts.protocol(args) if run.texts is not None and run.texts.measured.dataset else None,
        **_origin(args, run.learners[name].sae),
        "folder": os.path.abspath(run.folder_of(name)),
        "arguments": {name: stored[name] for name in args.given()},
        "hardware": _hardware(run),
        "versions": {**{name: version_of(name) for name in _VERSIONS}, "python": platform.python_version()},
    }


def _read_in(run: Run) -> str | None:
    """What the language model's products were made in while it read what was trained on."""
    read_in = run.base.read_in if run.base is not None else None
    return None if read_in is None else str(read_in).removeprefix("torch.")


def _special_tokens(run: Run) -> list[list[int]] | None:
    """First and last ids of the tokens that the training took for special; a model's config knows few of them."""
    tokenizer = run.base.tokenizer if run.base is not None else None
    return as_ranges(special_token_ids(tokenizer)) if tokenizer is not None else None


def _origin(args: SAETrainingArguments, sae: SAE) -> dict[str, Any]:
    """The SAE that the training started from, where there is one, with its commit on the Hub."""
    if args.init_from is None:
        return {}
    return {"init_from": args.stored()["init_from"], "init_commit": getattr(sae.config, "_commit_hash", None)}


def _hardware(run: Run) -> str:
    accelerator = run.accelerator
    if accelerator.device.type == "cuda":
        name = torch.cuda.get_device_name(accelerator.device)
    else:
        name = f"{accelerator.device.type}, {torch.get_num_threads()} threads"
    return f"{accelerator.num_processes} × {name}"


def _log_of(name: str, run: Run, state: TrainerState) -> list[dict[str, float]]:
    """The run's log as one SAE's own: its entries without its name in front."""
    shared = ("step", "tokens", "tokens_per_second")
    if not name:
        return state.log_history
    prefix = f"{name}/"
    return [
        {
            **{key: entry[key] for key in shared},
            **{key.removeprefix(prefix): value for key, value in entry.items() if key.startswith(prefix)},
        }
        for entry in state.log_history
    ]


def save_trained(sae: SAE, folder: Path, log: list[dict[str, float]]) -> None:
    """Writes a trained SAE with its log; each file appears whole. Figures of an earlier run in the folder go.

    Args:
        sae: The SAE, its config complete but for what will be measured.
        folder: Where to.
        log: The logged steps.
    """
    with files_at_once(folder) as beside, quietly():
        sae.save_pretrained(beside)
        (beside / LOG_FILE).write_text("".join(json.dumps(entry) + "\n" for entry in log))
    with suppress(OSError):
        (folder / METRICS_FILE).unlink()
    logger.info("saved %s", folder)


def describe_trained(sae: SAE, folder: Path) -> None:
    """Writes what was measured, the pictures and the card beside a saved SAE; what fails of it costs nothing else.

    Args:
        sae: The SAE, with what was measured in its config.
        folder: Where it was saved.
    """
    card = f"write by hand: hfsae card {quote(str(folder))}"
    if sae.config.metrics is not None:
        with warn_on_failure(f"metrics not written into {folder}", f"write by hand: hfsae eval {quote(str(folder))}"):
            write_config(sae.config, folder)
            write_json(folder / METRICS_FILE, sae.config.metrics)
    with warn_on_failure(f"pictures of {folder} not drawn", card):
        draw_pictures(folder, sae.config)
    with warn_on_failure(f"card of {folder} not written", card):
        write_card(folder, sae, pictures=False)


def is_set(run: Run) -> bool:
    """Whether a run's SAEs are a set: several transcoders, each of which writes at a place of its own."""
    targets = list(run.targets.values())
    return len(run.places) > 1 and len(targets) == len(run.places) and len(set(targets)) == len(targets)


def finish_set(run: Run, saes: dict[str, SAE], calibration: dict[str, Tensor]) -> dict[str, Any] | None:
    """Measures the model with all transcoders of a run in place, and writes the record and the card of the set.

    Args:
        run: The run, its SAEs saved and measured one by one.
        saes: Those of this process.
        calibration: Activations of other text by hook point.

    Returns:
        The figures, the same on all processes that measured; None where the run's SAEs are no set, or evaluation is
        off, has failed, or there is no text.
    """
    if not is_set(run):
        return None
    folder, figures = Path(run.args.output_dir), None
    by_hand = f"measure by hand: hfsae eval {quote(str(folder))}"
    with warn_on_failure("the set is not measured as a whole", by_hand):
        figures = _measure(run, saes, calibration)
    if run.accelerator.is_main_process:
        with warn_on_failure("no card of the set", f"write by hand: hfsae card {quote(str(folder))}"):
            if figures is not None:
                write_json(folder / SET_FILE, figures)
            else:  # one of an earlier run in this folder is of other weights
                (folder / SET_FILE).unlink(missing_ok=True)
            from hfsae.hub.set_plot import draw_set  # matplotlib takes a while to import

            draw_set(folder)
            entries = [entry_from(folder / name, name, folder.resolve().name) for name in run.places]
            write_listing_beside(folder, [entry for entry in entries if entry is not None])
    run.accelerator.wait_for_everyone()
    return figures


def _measure(run: Run, saes: dict[str, SAE], calibration: dict[str, Tensor]) -> dict[str, Any] | None:
    args = run.args
    if not args.eval_tokens or run.base is None or run.texts is None:
        return None
    share = run.share_of_evaluation
    if run.is_spread:  # each process has some of them: the main one takes all from the disk
        if not run.accelerator.is_main_process:
            return None
        with quietly():
            saes = {name: SAE.from_pretrained(run.folder_of(name)).to(run.accelerator.device) for name in run.places}
    rank, processes = share["rank"], share["processes"]
    blocks = streams.token_blocks(args, run.texts.evaluation, run.base, repeat=False, rank=rank, world_size=processes)
    return evaluate_together(
        {name: saes[name] for name in run.places},
        run.base.model,
        blocks,
        run.base.tokenizer,
        max_tokens=args.eval_tokens,
        calibration=calibration or None,
        all_processes=processes > 1,
        disable_tqdm=args.disable_tqdm or not run.accelerator.is_main_process,
        protocol=run.texts.protocol(args) | ({"processes": processes} if processes > 1 else {}),
    )


def is_wanted(run: Run) -> bool:
    """Whether the run is to end with a page: as its arguments say, or where it has no tracker."""
    args = run.args
    return args.html_report if args.html_report is not None else args.report_to == "none"


def show(run: Run, name: str, sae: SAE) -> None:
    """Writes the page of one SAE of a run into its folder; the main process alone calls this.

    Examples are of held-out text, where there is some that documents can be read from. What fails costs nothing else.
    """
    folder = run.folder_of(name)
    by_hand = f"see the features by hand: hfsae dashboard {quote(str(folder))}"
    examples: list[ShownFeature] = []
    with warn_on_failure(f"no examples of features in {folder}", by_hand):
        examples = _examples(run, name, sae)
    with warn_on_failure(f"no page about {folder}", by_hand):
        write_report(folder, sae.config, examples)


def _examples(run: Run, name: str, sae: SAE) -> list[ShownFeature]:
    base, text = run.base, run.texts.evaluation if run.texts is not None else None
    if base is None or base.tokenizer is None or text is None or isinstance(text, Tensor) or sae.config.is_crosscoder:
        return []
    return report_features(
        sae,
        base.model,
        base.tokenizer,
        text,
        run.learners[name].firing.density,
        max_tokens=min(EXAMPLE_TOKENS, run.args.eval_tokens or EXAMPLE_TOKENS),
        text_column=run.args.text_column,
        disable_tqdm=True,
    )
