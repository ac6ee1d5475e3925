"""The dashboard of a saved SAE: what is missing is collected, what is there already is used."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from hfsae.analysis import FeatureCollection, FeatureMap, feature_map
from hfsae.analysis.collection import TENSORS
from hfsae.analysis.feature_map import MapMethod, can_be_laid_out
from hfsae.analysis.prompt_page import read_prompts
from hfsae.configuration import SAEConfig
from hfsae.dashboard.matches import load_others, matches_with
from hfsae.dashboard.page_contents import Matches, MeasuredFigure
from hfsae.dashboard.write import can_be_page, write_dashboard
from hfsae.data.text_source import refuse_parts_alone
from hfsae.evaluation.protocol import has_stale_figures
from hfsae.hub.card import CARD_FILE, DASHBOARD_FILE, is_dashboard_of
from hfsae.hub.html_report import REPORT_FILE
from hfsae.hub.kinds import mapping
from hfsae.hub.sections import display_name, measured
from hfsae.identity import Identity
from hfsae.label_file import LABELS_FILE, Label, read_label_records, write_labels
from hfsae.language_model import rename_base_model
from hfsae.loading import load_config
from hfsae.modeling import SAE
from hfsae.saved.kept_features import collect_on, kept_features, local_folder
from hfsae.saved.measuring_again import text_to_measure

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_TOKENS = 1_000_000


class Material(NamedTuple):
    """What a dashboard is written from; the arguments of `write_dashboard`, its output aside."""

    collection: FeatureCollection
    tokenizer: "PreTrainedTokenizerBase"
    title: str
    labels: dict[int, Label]
    prompts: list[dict[str, Any]]
    layout: FeatureMap | None = None
    measured: Sequence[MeasuredFigure] = ()
    links: Mapping[str, Path] = MappingProxyType({})
    matches: Sequence[Matches] = ()


def make_dashboard(source: str | Path, output: str | Path | None = None, **options: Any) -> Path:
    """Writes the dashboard of a saved or published SAE.

    Args:
        source: Folder of the SAE, or a Hub repository.
        output: As `write_dashboard` takes it; None: `dashboard.html` beside the weights, or here if these are on the
            Hub.
        **options: As `gather` takes them.

    Returns:
        The page's path.

    Raises:
        ValueError, OSError: As `gather`; ValueError too if a page of another text or model has no `output`.
        FileExistsError: If `output` cannot be written.

    Example:
        >>> make_dashboard("runs/tiny", texts=["def f(self):"])  # doctest: +SKIP
        PosixPath('runs/tiny/dashboard.html')
    """
    if output is None:
        folder = local_folder(source, options.get("subfolder", ""))
        if folder is not None and (folder / DASHBOARD_FILE).is_file() and _is_another(folder, options):
            raise ValueError(
                f"the page in {folder} is of the text of its record: name a file for one of another text or model "
                "(output=..., or --output), or have it replaced (write=True, or --write)."
            )
        output = folder / DASHBOARD_FILE if folder is not None else Path(DASHBOARD_FILE)
    can_be_page(output)
    return write_dashboard(output=output, **gather(source, **options)._asdict())


def ensure_dashboard(folder: str | Path) -> Path:
    """Writes the dashboard of a saved SAE unless there is one of this SAE, which may show more.

    Args:
        folder: Folder of the SAE.

    Returns:
        The page's path.

    Raises:
        ValueError, OSError: As `gather`.
    """
    page = Path(folder) / DASHBOARD_FILE
    if page.is_file() and is_dashboard_of(page, SAE.from_pretrained(folder)):
        return page
    return make_dashboard(folder)


def gather(
    source: str | Path,
    *,
    subfolder: str = "",
    revision: str | None = None,
    allow_pickle: bool = False,
    texts: Sequence[str] = (),
    labels: str | Path | None = None,
    match: Sequence[str] = (),
    map_method: MapMethod = "pca",
    model: str | None = None,
    dataset: str | None = None,
    dataset_config: str | None = None,
    split: str | None = None,
    max_tokens: int | None = None,
    batch_size: int = 16,
    bf16: bool = False,
    write: bool = False,
    disable_tqdm: bool = False,
) -> Material:
    """Everything that the dashboard of a saved SAE shows.

    Args:
        source: Folder of the SAE, or a Hub repository. In a folder the features that are collected are kept
            (`features.safetensors`). They are used the next time as long as they are of these weights and settings.
            Features of another text or model than that of a record there are not used.
        subfolder: The SAE's folder in it.
        revision: Branch, tag or commit of the repository.
        allow_pickle: Whether weights of other projects may be pickles.
        texts: Prompts, for the page of prompts.
        labels: A file of labels, such as the page saved it; they become those beside the weights where there are none.
            None takes those.
        match: Other SAEs, whose features pages of features lead to where they are the same.
        map_method: How the map lays features out: `"pca"`, or `"umap"` where umap-learn is installed.
        model: The language model; None loads the one that the config names.
        dataset: Text to collect features on again. None takes the features that were collected, or else the text that
            the SAE's recorded metrics were measured on.
        dataset_config: Configuration of that dataset.
        split: Split of that dataset; None: the only one, or `"test"`.
        max_tokens: Tokens to read where features are collected; None: 1,000,000.
        batch_size: Sequences per run of the language model.
        bf16: Whether features are collected with the language model in bfloat16, as `collect_features` takes it.
        write: Whether features of a text or a model that is named here, and labels, replace those beside the weights.
            With `max_tokens` or `bf16` features are collected again.
        disable_tqdm: Whether to show no progress bar.

    Raises:
        ValueError: If labels are of other weights or settings, or no file of labels. If a prompt is empty, or no text
            is named and none was recorded. Likewise if an SAE of `match` is of another place, or there is no such map.
        ImportError: If `match` names one and scipy is not installed, or the map needs what is not installed.
        OSError: If the SAE, its language model, the labels or the text is not there.
    """
    can_be_laid_out(map_method)
    folder = local_folder(source, subfolder)
    hub = {"revision": revision} if revision else {}
    refuse_parts_alone(dataset, dataset_config, split)
    sae = SAE.from_pretrained(source, subfolder=subfolder, allow_pickle=allow_pickle, **hub)
    identity = Identity.of(sae)
    named = _labels(folder, labels, identity)
    matches = matches_with(sae, load_others(match))
    if model is not None:
        rename_base_model(sae.config, model)
    tokenizer = sae.load_tokenizer()
    named_here = dataset is not None or model is not None
    another = folder is not None and _is_another(folder, {"dataset": dataset, "model": model, "write": write})
    collection = None if named_here else kept_features(folder, identity)
    if collection is not None and (max_tokens is not None or bf16):
        collection = _kept(collection, folder, write)
    # Before the language model: a text may be missing.
    text = text_to_measure(sae.config, source, dataset, dataset_config, split).source if collection is None else None
    lm = sae.load_base_model() if texts or text is not None else None
    prompts = read_prompts(sae, lm, tokenizer, texts) if lm is not None else []
    if collection is None:
        assert lm is not None and text is not None
        read = {"max_tokens": _TOKENS if max_tokens is None else max_tokens, "batch_size": batch_size, "bf16": bf16}
        collection = collect_on(sae, lm, tokenizer, text, **read, disable_tqdm=disable_tqdm)
        if folder is not None and not another:
            collection.save(folder)
    if labels is not None and folder is not None:
        _keep_labels(folder / LABELS_FILE, named, identity, write)
    layout = feature_map(sae, collection.features[collection.densities > 0], map_method)
    if layout is not None and layout.groups is None:
        logger.warning("the map has no groups: they need scikit-learn (pip install 'hfsae[scores]')")
    title, measured = display_name(sae.config, None, None), _measured(sae.config, identity.weights_sha256)
    return Material(collection, tokenizer, title, named, prompts, layout, measured, _links(folder), matches)


def _kept(collection: FeatureCollection, folder: Path | None, write: bool) -> FeatureCollection | None:
    """The features that lie there, where somebody says how to collect them; None to collect them again."""
    if write:
        return None
    logger.warning(
        "%s holds features of %s tokens, which are shown: max_tokens and bf16 only say how features are collected. "
        "write=True, or --write, collects them again",
        folder,
        f"{collection.about.n_tokens:,}",
    )
    return collection


def _measured(config: SAEConfig, digest: str) -> list[MeasuredFigure]:
    """The figures of the SAE's record that say most; none of other weights or settings than these."""
    if has_stale_figures(config, digest):
        return []
    rows = measured(mapping(config.metrics), headline=True)
    return [
        MeasuredFigure(
            row["metric"].title, row["value"], row["metric"].expected, row["verdict"] in ("outside", "warning")
        )
        for row in rows
        if row["value"] is not None
    ]


def _links(folder: Path | None) -> dict[str, Path]:
    """The card and the report beside the weights, by what they are called."""
    beside = {"Model card": CARD_FILE, "Report": REPORT_FILE}
    return {} if folder is None else {name: path for name, file in beside.items() if (path := folder / file).is_file()}


def _is_another(folder: Path, options: Mapping[str, Any]) -> bool:
    """Whether a text or a model is named where there is a record, or features, that are not to be replaced."""
    if options.get("write") or (options.get("dataset") is None and options.get("model") is None):
        return False
    config = load_config(folder)
    recorded = config.metrics or (config.training or {}).get("evaluation")
    return bool(recorded) or (folder / TENSORS).is_file()


def _keep_labels(path: Path, named: dict[int, Label], identity: Identity, write: bool) -> None:
    if path.is_file() and not write:
        logger.warning("%s stays as it is: write=True, or --write, replaces it by the labels that are shown", path)
        return
    write_labels(path, named, *identity)


def _labels(folder: Path | None, given: str | Path | None, identity: Identity) -> dict[int, Label]:
    if given is not None:
        return read_label_records(given, *identity)
    if folder is not None and (folder / LABELS_FILE).is_file():
        return read_label_records(folder / LABELS_FILE, *identity)
    return {}
