"""What follows the last step: every SAE gets its thresholds, is saved, then measured, and gets its card and page.

A set of transcoders is also measured as a whole.
"""

import json
import logging
from collections.abc import Iterable
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import Any, NamedTuple

from accelerate.utils import broadcast
from safetensors import SafetensorError
from torch import Tensor
from transformers import TrainerState

from hfsae.analysis.report_features import EXAMPLE_TOKENS, report_features
from hfsae.arguments.training_arguments import SAETrainingArguments
from hfsae.data import TextSource, TokenBlocks
from hfsae.evaluation import evaluate_saes, evaluate_together
from hfsae.evaluation.saved_set import SET_FILE
from hfsae.evaluation.together import are_set
from hfsae.failures import warn_on_failure
from hfsae.hub.card import LOG_FILE, METRICS_FILE, draw_pictures, write_card
from hfsae.hub.html_report import ShownFeature, write_report
from hfsae.hub.listing import entry_from, write_listing_beside
from hfsae.in_model import names_of
from hfsae.inputs import streams
from hfsae.inputs.base_model import BaseModel, move_base_model
from hfsae.inputs.text_splits import Texts, refuse_no_text
from hfsae.modeling import SAE
from hfsae.progress import quietly
from hfsae.saving import files_at_once, write_config, write_json
from hfsae.training.schedule import missed_target
from hfsae.training.setup import TrainingRun
from hfsae.training.training_record import log_of, training_record

logger = logging.getLogger(__name__)

_BATCH_ROWS = 4096
_UNCALIBRATED = "keeps the thresholds that training ended with; sae.calibrate sets them."


class Measured(NamedTuple):
    """What was measured of a run.

    Attributes:
        metrics: By SAE name, the same on all processes, each of which has read its share of the text. Empty where
            evaluation is off, has failed, or there is no text to evaluate on.
        together: Of the model with all transcoders of a set in place; None likewise, and where there is no set.
    """

    metrics: dict[str, dict[str, Any]]
    together: dict[str, Any] | None


def finalize(run: TrainingRun, state: TrainerState, seconds: float) -> Measured:
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
        calibration = calibration_of_run(run, saes)
    for name, sae in saes.items():
        hook_points = run.hook_points[name]
        if sae.needs_calibration and calibration.keys() >= set(hook_points.read_names):
            rows = hook_points.rows(calibration)
            failing = warn_on_failure(f"{name or 'SAE'} not calibrated", f"it {_UNCALIBRATED}")
            # Processes that share an SAE have the same rows and fail alike; one by itself must not go on alone.
            with failing if run.placement.shares_saes else nullcontext():
                _calibrate(sae, rows)
        if run.placement.shares_saes:
            for buffer in sae.buffers():  # devices of another kind may round otherwise
                buffer.copy_(broadcast(buffer))  # type: ignore[arg-type]
    mine = {name: sae for name, sae in saes.items() if run.is_owner(name)}
    _save(run, mine, state, seconds)
    measured: dict[str, dict[str, Any]] = {}
    with warn_on_failure("not measured", _by_hand(run, mine)):
        measured = measure_run(run, saes, calibration)
    metrics = run.gather(measured)
    for name, sae in mine.items():
        sae.config.metrics = metrics.get(name)
        describe_trained(sae, run.folder_of(name))
        if wants_report(run.args):
            report_on(run, name, sae)
    run.accelerator.wait_for_everyone()
    return Measured(metrics, finish_set(run, saes, calibration))


def _save(run: TrainingRun, saes: dict[str, SAE], state: TrainerState, seconds: float) -> None:
    """Saves every SAE that there is room for.

    Raises:
        OSError: If one could not be written, when all have been tried.
    """
    unsaved: dict[str, Exception] = {}
    for name, sae in saes.items():
        sae.config.training, sae.config.metrics = training_record(run, name, state, seconds, run.folder_of(name)), None
        try:
            save_trained(sae, run.folder_of(name), log_of(name, state))
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


def calibration_of_run(run: TrainingRun, saes: dict[str, SAE]) -> dict[str, Tensor]:
    """Activations of text that is neither trained nor evaluated on, by hook point: (N, d_in) each, where needed.

    Thresholds need those of their SAE's place; an evaluation needs all, for mean activations and baselines.
    """
    if run.held_out or run.base is None or run.texts is None:
        return run.held_out
    several = run.accelerator.num_processes > 1
    calibrated = run.gather({name: sae.needs_calibration for name, sae in saes.items()})
    if run.args.eval_tokens:
        places = names_of(run.hook_points.values())
    else:
        needing = (run.hook_points[name].read_names for name, needed in calibrated.items() if needed)
        places = list(dict.fromkeys(place for names in needing for place in names))
    if not places:
        return {}
    exact = bool(run.args.eval_tokens)
    return streams.calibration_rows(run.args, run.base, run.texts, places, of_first_process=several, exact=exact)


def evaluate_now(run: TrainingRun, eval_dataset: Any = None) -> dict[str, dict[str, Any]]:
    """Measures every SAE of a run as it is now; every process must call this.

    Args:
        run: The run.
        eval_dataset: Text to measure on; None for that of the run.

    Returns:
        The figures by name, the same on all processes.

    Raises:
        ValueError: If evaluation is off, or there is no language model.
        TypeError: If `eval_dataset` is neither a dataset nor token ids.
        RuntimeError: If an SAE lies in several processes.
    """
    if not run.args.eval_tokens or run.base is None or run.texts is None:
        why = "eval_tokens is 0" if run.base is not None else "there is no language model: activations were given"
        raise ValueError(f"SAEs cannot be measured: {why}. Give a model, text and eval_tokens.")
    if any(learner.is_cut for learner in run.learners.values()):
        raise RuntimeError(
            "with sae_placement='shard' an SAE lies in several processes until training ends: measure it after that, "
            "or a checkpoint with hfsae eval."
        )
    if eval_dataset is not None:
        refuse_no_text(eval_dataset, "eval_dataset")
        texts = replace(run.texts, evaluation=eval_dataset, measured=TextSource(**run.texts.trained.reading))
        run = replace(run, texts=texts)
    saes = {name: sae.eval() for name, sae in run.saes.items()}
    return run.gather(measure_run(run, saes, calibration_of_run(run, saes)))


def measure_run(run: TrainingRun, saes: dict[str, SAE], calibration: dict[str, Tensor]) -> dict[str, dict[str, Any]]:
    """Measures SAEs of this process on held-out text.

    Args:
        run: The run.
        saes: The SAEs by name.
        calibration: Activations of other text by hook point; where there are none the evaluation reads its own.

    Returns:
        The figures by name; empty where evaluation is off or there is no text.
    """
    if not run.args.eval_tokens or run.base is None or run.texts is None:
        return {}
    move_base_model(run.base, run.accelerator.device)
    blocks, options = _evaluation_text(run, run.base, run.texts)
    options["calibration"] = calibration or None
    return evaluate_saes(saes, run.base.model, blocks, run.base.tokenizer, baselines=True, **options)


def _evaluation_text(run: TrainingRun, base: BaseModel, texts: Texts) -> tuple[TokenBlocks, dict[str, Any]]:
    """This process's share of the text to measure on, and how it is read, for the functions of `hfsae.evaluation`."""
    args, (rank, processes) = run.args, run.placement.share_of_text
    blocks = streams.token_blocks(args, texts.evaluation, base, repeat=False, rank=rank, world_size=processes)
    return blocks, {
        "max_tokens": args.eval_tokens,
        "all_processes": processes > 1,
        "disable_tqdm": args.disable_tqdm or not run.accelerator.is_main_process,
        "protocol": texts.protocol(args) | ({"processes": processes} if processes > 1 else {}),
    }


def _by_hand(run: TrainingRun, saes: Iterable[str]) -> str:
    """How SAEs of a run are measured where the run could not do it."""
    args, folders = run.args, [str(run.folder_of(name)) for name in saes]
    named = run.base is not None and run.base.origin is not None
    if run.texts is None or run.texts.measured.dataset is None or not named:
        return f"measure by hand: sae = SAE.from_pretrained({folders}), evaluate_sae(sae, model, text, tokenizer)"
    commands = "; ".join(
        f"hfsae eval {quote(folder)} --max_tokens {args.eval_tokens} --baselines" for folder in folders
    )
    return f"measure by hand: {commands}"


def save_trained(
    sae: SAE, folder: Path, log: list[dict[str, float]], weights: dict[str, Tensor] | None = None
) -> None:
    """Writes a trained SAE with its log; each file appears whole. Figures of an earlier run in the folder go.

    Args:
        sae: The SAE, its config complete but for what will be measured.
        folder: Where to.
        log: The logged steps.
        weights: Its tensors, where it lies in several processes; None takes its own.
    """
    with files_at_once(folder) as beside, quietly():
        sae.save_pretrained(beside, state_dict=weights)
        (beside / LOG_FILE).write_text("".join(json.dumps(entry) + "\n" for entry in log))
    with suppress(OSError):
        (folder / METRICS_FILE).unlink()
    logger.info("saved %s", folder)


def save_now(run: TrainingRun, state: TrainerState, seconds: float, folder: Path, *, is_final: bool) -> set[Path]:
    """Saves every SAE of a run as it is now, whole, each into the folder of its name; every process must call this.

    Args:
        run: The run.
        state: Its state, with the log.
        seconds: Time spent training.
        folder: Where to.
        is_final: Whether what was measured is of these weights.

    Returns:
        The folders of all SAEs, of other processes too.
    """
    for name, learner in run.learners.items():
        weights, sae = learner.weights(run.is_owner(name)), learner.sae
        if not run.is_owner(name):
            continue
        sae.config.training = training_record(run, name, state, seconds, folder / name)
        if not is_final:
            sae.config.metrics = None
        save_trained(sae, folder / name, log_of(name, state), weights)
        if sae.config.metrics is not None:
            write_json(folder / name / METRICS_FILE, sae.config.metrics)
    run.accelerator.wait_for_everyone()
    return {(folder / name).resolve() for name in run.hook_points}


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


def finish_set(run: TrainingRun, saes: dict[str, SAE], calibration: dict[str, Tensor]) -> dict[str, Any] | None:
    """Measures the model with all transcoders of a run in place, and writes the record and the card of the set.

    Args:
        run: The run, its SAEs saved and measured one by one.
        saes: Those of this process.
        calibration: Activations of other text by hook point.

    Returns:
        The figures, the same on all processes that measured. None where the run's SAEs are no set, or evaluation is
        off, has failed, or there is no text.
    """
    if not are_set(run.hook_points.values()):
        return None
    folder, figures = Path(run.args.output_dir), None
    by_hand = f"measure by hand: hfsae eval {quote(str(folder))}"
    with warn_on_failure("the set is not measured as a whole", by_hand):
        figures = _measure_set(run, saes, calibration)
    if run.accelerator.is_main_process:
        with warn_on_failure("no card of the set", f"write by hand: hfsae card {quote(str(folder))}"):
            if figures is not None:
                write_json(folder / SET_FILE, figures)
            else:  # one of an earlier run in this folder is of other weights
                (folder / SET_FILE).unlink(missing_ok=True)
            from hfsae.hub.set_plot import draw_set  # matplotlib takes a while to import

            draw_set(folder)
            entries = [entry_from(folder / name, name, folder.resolve().name) for name in run.hook_points]
            write_listing_beside(folder, [entry for entry in entries if entry is not None])
    run.accelerator.wait_for_everyone()
    return figures


def _measure_set(run: TrainingRun, saes: dict[str, SAE], calibration: dict[str, Tensor]) -> dict[str, Any] | None:
    if not run.args.eval_tokens or run.base is None or run.texts is None:
        return None
    if not run.placement.shares_saes:  # each process has some of them: the main one takes all from the disk
        if not run.accelerator.is_main_process:
            return None
        device = run.accelerator.device
        with quietly():
            saes = {name: SAE.from_pretrained(run.folder_of(name)).to(device) for name in run.hook_points}
    blocks, options = _evaluation_text(run, run.base, run.texts)
    in_order = {name: saes[name] for name in run.hook_points}
    options["calibration"] = calibration or None
    return evaluate_together(in_order, run.base.model, blocks, run.base.tokenizer, **options)


def wants_report(args: SAETrainingArguments) -> bool:
    """Whether a run ends with a page: as its arguments say, or where it has no tracker."""
    return args.html_report if args.html_report is not None else args.report_to == "none"


def report_on(run: TrainingRun, name: str, sae: SAE) -> None:
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


def _examples(run: TrainingRun, name: str, sae: SAE) -> list[ShownFeature]:
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
