"""The page about a trained SAE that a run without a tracker ends with."""

from shlex import quote

from torch import Tensor

from hfsae.analysis.report_features import EXAMPLE_TOKENS, report_features
from hfsae.failures import warn_on_failure
from hfsae.hub.html_report import ShownFeature, write_report
from hfsae.modeling import SAE
from hfsae.training.run import Run


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
