"""The page about a trained SAE, with examples of what features fire on: a run without a tracker ends with one."""

from collections.abc import Iterable
from pathlib import Path
from shlex import quote
from typing import Any

import torch
from torch import Tensor

from hfsae.analysis import Feature, TokenTexts, collect_features
from hfsae.hub.card import draw_pictures
from hfsae.hub.html_report import ShownFeature, ShownToken, write_report
from hfsae.language_model import rename_base_model
from hfsae.loading import load_config
from hfsae.modeling import SAE
from hfsae.saved.measuring_again import text_to_measure
from hfsae.training.run import Run
from hfsae.training.unharmed import unharmed

_FEATURES = 16
_TOKENS = 20_000
_SHOWN: dict[str, Any] = {"n_top": 4, "n_sample": 1, "before": 14, "after": 8, "n_tokens_promoted": 5}


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


def show_saved(
    folder: str | Path,
    *,
    model: str | None = None,
    dataset: str | None = None,
    dataset_config: str | None = None,
    split: str | None = None,
    max_tokens: int = _TOKENS,
    disable_tqdm: bool = False,
) -> Path:
    """Writes the page of a saved SAE again, from its config, its log and examples of what its features fire on.

    Args:
        folder: Where it was saved.
        model: The language model; None loads the one that the config names. Without either there are no examples, and
            none of a crosscoder, whose features read several places.
        dataset: Text of the examples; None takes the one that the recorded metrics were measured on.
        dataset_config: Configuration of that dataset.
        split: Split of that dataset; None: the only one, or `"test"`.
        max_tokens: Tokens of it to read.
        disable_tqdm: Whether to show no progress bar.

    Returns:
        The page's path.

    Raises:
        ValueError: If the folder holds no SAE, or no text is named and none was recorded.
        OSError: If the language model or the text is not there.
    """
    sae, config = SAE.from_pretrained(folder), load_config(folder)
    examples: list[ShownFeature] = []
    if model is not None:
        rename_base_model(sae.config, model)
    if sae.config.base_model is not None and not sae.config.is_crosscoder:
        source = text_to_measure(config, folder, dataset, dataset_config, split).source
        tokenizer, text = sae.load_tokenizer(), source.documents()
        lm = sae.load_base_model()
        told = {"max_tokens": max_tokens, "text_column": source.text_column, "disable_tqdm": disable_tqdm}
        collection = collect_features(sae, lm, tokenizer, text, **_SHOWN, **told)
        chosen = _spread(collection.densities)
        examples = _all_shown([collection[row] for row in chosen], tokenizer)
    draw_pictures(Path(folder), config)
    return write_report(Path(folder), config, examples)


def _examples(run: Run, name: str, sae: SAE) -> list[ShownFeature]:
    base, text = run.base, run.texts.evaluation if run.texts is not None else None
    if base is None or base.tokenizer is None or text is None or isinstance(text, Tensor) or sae.config.is_crosscoder:
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
        text_column=run.args.text_column,
        disable_tqdm=True,
        **_SHOWN,
    )
    return _all_shown(collection, base.tokenizer)


def _all_shown(features: Iterable[Feature], tokenizer: Any) -> list[ShownFeature]:
    """Those that have examples, the most frequent first."""
    texts = TokenTexts(tokenizer)
    shown = [_shown(feature, texts) for feature in features if feature.top]
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
