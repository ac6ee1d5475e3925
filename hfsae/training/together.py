"""What a run leaves of SAEs that were trained to stand in the model together: their figures and one card."""

import logging
from pathlib import Path
from shlex import quote
from typing import Any

from torch import Tensor

from hfsae.evaluation import evaluate_together
from hfsae.evaluation.saved_set import SET_FILE
from hfsae.failures import warn_on_failure
from hfsae.hub.listing import entry_from, write_listing_beside
from hfsae.inputs import streams
from hfsae.modeling import SAE
from hfsae.progress import quietly
from hfsae.saving import write_json
from hfsae.training.run import Run

logger = logging.getLogger(__name__)


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
