"""The comparison of a saved crosscoder: on the text of its record or on another, with picture, page and card."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel

from hfsae.analysis import FeatureCollection, TokenTexts, collect_features, logit_effects
from hfsae.analysis.feature_types import TokenEffect
from hfsae.analysis.weights import has_logit_effects
from hfsae.dashboard.page_contents import Compared, Comparison, InSource
from hfsae.dashboard.write import write_dashboard
from hfsae.diffing.classes import DEAD, Thresholds, only, relative_norms
from hfsae.diffing.compare import diff
from hfsae.diffing.model_diff import ModelDiff
from hfsae.folders import can_be_folder
from hfsae.hooks import SideBySide
from hfsae.hub.card import DIFF_PLOT, write_card
from hfsae.hub.sections import display_name
from hfsae.language_model import rename_base_model
from hfsae.modeling import SAE
from hfsae.saved.measuring_again import blocks_of, text_to_measure
from hfsae.saving import files_at_once

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DIFF_PAGE = "diff.html"
_PROMOTED = 8


@dataclass(frozen=True)
class Written:
    """What `diff_saved` found and wrote.

    Attributes:
        found: The comparison.
        files: The files, the page last.
        examples: The features that do most of each class, with what they fire on, by feature.
    """

    found: ModelDiff
    files: list[Path]
    examples: dict[int, list[str]]


def diff_saved(
    folder: str | Path,
    *,
    model: str | None = None,
    dataset: str | None = None,
    dataset_config: str | None = None,
    split: str | None = None,
    max_tokens: int = 200_000,
    batch_size: int = 16,
    n_features: int = 20,
    thresholds: Thresholds | None = None,
    output: str | Path | None = None,
    disable_tqdm: bool = False,
) -> Written:
    """Compares the sources of a saved crosscoder, and writes `diff.json`, `diff.png` and `diff.html`.

    Beside the crosscoder the card is written too, with a section on what its sources share.

    Args:
        folder: Where it was saved.
        model: Its language models, with commas between; None loads the models that the config names.
        dataset: Text to compare on; None takes the one that the recorded metrics were measured on.
        dataset_config: Configuration of that dataset.
        split: Split of that dataset; None: the only one, or `"test"`.
        max_tokens: Tokens of it to read.
        batch_size: Sequences per run of the models.
        n_features: Of each class, so many features that do most stand on the page, with examples.
        thresholds: Where the classes end.
        output: Another folder for the results; the card is then left alone.
        disable_tqdm: Whether to show no progress bar.

    Raises:
        ValueError: If the folder holds no crosscoder, it names no language model, or no text is named and none was
            recorded. Likewise if `n_features` is less than 1.
        OSError: If a language model or the text is not there.
    """
    if n_features < 1:
        raise ValueError(f"{n_features} features of each class: expected 1 or more.")
    sae, place = SAE.from_pretrained(folder), Path(output or folder)
    can_be_folder(place)
    if not sae.config.is_crosscoder:
        raise ValueError(f"{folder} holds no crosscoder, but a {type(sae).__name__}, which has nothing to compare.")
    if model is not None:
        rename_base_model(sae.config, model)
    if sae.config.base_model is None:
        raise ValueError(
            f"{folder} names no language model: it was trained on activations. Hand them over: "
            "hfsae.diff(sae, activations={...})."
        )
    source = text_to_measure(sae.config, folder, dataset, dataset_config, split).source
    tokenizer, lm = sae.load_tokenizer(), sae.load_base_model()
    told: dict[str, Any] = {"max_tokens": max_tokens, "disable_tqdm": disable_tqdm}
    blocks = blocks_of(sae, lm, source, batch_size)
    found = diff(sae, lm, blocks, tokenizer, thresholds=thresholds, dataset=str(source), **told)
    files = [found.save(place), place / DIFF_PLOT]
    from hfsae.diffing.picture import diff_plot  # matplotlib takes a while to import

    with files_at_once(place) as beside:
        diff_plot(found, beside / DIFF_PLOT)
    chosen = [feature for kind in found.kinds if kind != DEAD for feature in found.of(kind)[:n_features]]
    # What norms cannot tell: they know no directions.
    chosen += [feature for name in found.sources for feature in found.of(only(name), "scaling")[:n_features]]
    chosen = list(dict.fromkeys(chosen))
    collection = collect_features(
        sae, lm, tokenizer, source.documents(), features=chosen, text_column=source.text_column,
        dataset=str(source), **told,
    )  # fmt: skip
    of_features = dict(_compared(found, sae, lm, chosen))
    by_norms, by_both, by_scaling = found.counts("norms"), found.counts(), found.counts("scaling")
    comparison = Comparison(found.about["models"], by_norms, by_both, by_scaling, of_features)
    title = f"{display_name(sae.config, None, None)}: what its sources share"
    files.append(write_dashboard(collection, tokenizer, place / DIFF_PAGE, title=title, comparison=comparison))
    if output is None:
        write_card(folder, sae, pictures=False)
    return Written(found, files, _peaks(collection, tokenizer))


def _compared(
    found: ModelDiff, sae: SAE, model: PreTrainedModel, features: Sequence[int]
) -> Iterator[tuple[int, Compared]]:
    """What the page says of each source, by feature."""
    norms, scaling = relative_norms(found.norms), found.scaling
    kinds = [
        kind if kind == alone or not alone.endswith(only("")) else f"{alone} by scaling, {kind}"
        for kind, alone in zip(found.classes, found.by_scaling, strict=True)
    ]
    promoted = {name: _promoted(sae, model, name, features) for name in found.sources}
    for row, feature in enumerate(features):
        yield (
            feature,
            Compared(
                kinds[feature],
                [
                    InSource(
                        name,
                        float(norms[feature, column]),
                        None if scaling is None else _known(float(scaling.error[feature, column])),
                        None if scaling is None else _known(float(scaling.reconstruction[feature, column])),
                        promoted[name][row] if norms[feature, column] >= found.thresholds.absent else (),
                    )
                    for column, name in enumerate(found.sources)
                ],
            ),
        )


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _promoted(sae: Any, model: PreTrainedModel, source: str, features: Sequence[int]) -> list[list[TokenEffect]]:
    """The tokens that what features write into one source makes likelier in its own model; none elsewhere."""
    alone, own = sae.source(source), model.models[source] if isinstance(model, SideBySide) else model
    if not features or not has_logit_effects(alone, own):
        return [[] for _ in features]
    effects = logit_effects(alone, own, features, k=_PROMOTED)
    pairs = zip(effects.promoted.tolist(), effects.promoted_by.tolist(), strict=True)
    return [[TokenEffect(*one) for one in zip(*pair, strict=True)] for pair in pairs]


def _peaks(collection: FeatureCollection, tokenizer: "PreTrainedTokenizerBase") -> dict[int, list[str]]:
    """The tokens on which each feature fires most, the strongest first, each once."""
    texts = TokenTexts(tokenizer)
    found = {feature.index: [texts(one.token_ids)[one.peak] for one in feature.top] for feature in collection}
    return {feature: list(dict.fromkeys(tokens)) for feature, tokens in found.items()}
