"""The page about a run that is written where no tracker watches it, with examples of what features fire on."""

from shlex import quote
from typing import Any

import torch
from torch import Tensor

from hfsae.analysis import Feature, TokenTexts, collect_features
from hfsae.hub.html_report import ShownFeature, ShownToken, write_report
from hfsae.modeling import SAE
from hfsae.training.run import Run
from hfsae.training.unharmed import unharmed

_FEATURES, _CONTEXTS = 16, 4
_TOKENS = 20_000
_BEFORE, _AFTER = 14, 8
_PROMOTED = 5


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
    with unharmed(f"no examples of features in {folder}", by_hand):
        examples = _examples(run, name, sae)
    with unharmed(f"no page about {folder}", by_hand):
        write_report(folder, sae.config, examples)


def _examples(run: Run, name: str, sae: SAE) -> list[ShownFeature]:
    base, text = run.base, run.texts.evaluation if run.texts is not None else None
    if base is None or base.tokenizer is None or text is None or isinstance(text, Tensor):
        return []
    chosen = _spread(run.learners[name].firing.density)
    if not chosen:
        return []
    collection = collect_features(
        sae,
        base.model,
        base.tokenizer,
        text,
        features=chosen,
        max_tokens=min(_TOKENS, run.args.eval_tokens or _TOKENS),
        n_top=_CONTEXTS,
        n_sample=1,
        before=_BEFORE,
        after=_AFTER,
        n_tokens_promoted=_PROMOTED,
        text_column=run.args.text_column,
        disable_tqdm=True,
    )
    texts = TokenTexts(base.tokenizer)
    shown = [_shown(feature, texts) for feature in collection if feature.top]
    return sorted(shown, key=lambda feature: -feature.density)


def _spread(density: Tensor) -> list[int]:
    """Some features that fire, evenly spaced in the order of how often."""
    ordered = density.argsort(descending=True)[: int((density > 0).sum())].tolist()
    wanted = min(_FEATURES, len(ordered))
    return [ordered[round(place)] for place in torch.linspace(0, len(ordered) - 1, wanted).tolist()] if wanted else []


def _shown(feature: Feature, texts: Any) -> ShownFeature:
    contexts = [
        [
            ShownToken(text, activation, activation / feature.maximum if feature.maximum else 0.0)
            for text, activation in zip(texts(example.token_ids), example.activations, strict=True)
        ]
        for example in feature.top
    ]
    promoted = [texts([effect.token_id])[0] for effect in feature.promoted]
    return ShownFeature(feature.index, feature.density, feature.maximum, promoted, contexts)
