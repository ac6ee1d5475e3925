"""A saved SAE with its language model, and what was collected of its features: found beside the weights or collected.

Features that were collected once are used as long as they are of these weights and settings. `saved_features` opens
all SAEs of a set, which share a language model.
"""

import logging
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel

from hfsae.analysis import FeatureCollection, collect_features
from hfsae.data import TextSource
from hfsae.data.text_source import refuse_parts_alone
from hfsae.identity import Identity
from hfsae.label_file import LABELS_FILE, Label, read_label_records
from hfsae.language_model import rename_base_model
from hfsae.modeling import SAE
from hfsae.sae_folders import sae_folders
from hfsae.saved.measuring_again import text_to_measure
from hfsae.saved.sets import find_set

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


def local_folder(source: str | Path, subfolder: str = "") -> Path | None:
    """Where an SAE lies on this machine; None if that is the Hub's cache."""
    place = Path(source) / subfolder
    return place if place.is_dir() else None


def kept_features(folder: Path | None, identity: Identity) -> FeatureCollection | None:
    """The features that were collected of this SAE; None where there are none."""
    if folder is None:
        return None
    try:
        collection = FeatureCollection.load(folder)
    except FileNotFoundError:
        return None
    if (unlike := identity.unlike(vars(collection.about))) is not None:
        logger.info("the features in %s are of %s; collecting them again", folder, unlike)
        return None
    return collection


def collect_on(
    sae: SAE,
    model: PreTrainedModel,
    tokenizer: "PreTrainedTokenizerBase",
    source: TextSource,
    **options: Any,
) -> FeatureCollection:
    """The features of an SAE on a text; `options` are those of `collect_features`."""
    text, column = source.documents(), source.text_column
    return collect_features(sae, model, tokenizer, text, text_column=column, dataset=str(source), **options)


@dataclass
class SavedFeatures:
    """A saved SAE, its language model and its features; what takes long is done when it is first asked for.

    Args:
        source: Folder of the SAE, or a Hub repository.
        subfolder: The SAE's folder in it.
        revision: Branch, tag or commit of the repository.
        allow_pickle: Whether weights of other projects may be pickles.
        base_model: The language model that the SAE reads; None for the one that its config names.
        dataset: Text for the features, where none were collected, and for counterexamples; None takes the text that
            the SAE's recorded metrics were measured on.
        dataset_config: Configuration of that dataset.
        split: Split of that dataset; None: the only one, or `"test"`.
        max_tokens: Tokens of it to read where features are collected.
        disable_tqdm: Whether to show no progress bar.

    Raises:
        OSError: If the SAE is not there.
        ValueError: If a configuration or a split is named without its dataset.
    """

    source: str | Path
    subfolder: str = ""
    revision: str | None = None
    allow_pickle: bool = False
    base_model: str | None = None
    dataset: str | None = None
    dataset_config: str | None = None
    split: str | None = None
    max_tokens: int = 1_000_000
    disable_tqdm: bool = False
    sae: SAE = field(init=False)
    identity: Identity = field(init=False)
    folder: Path | None = field(init=False)

    def __post_init__(self) -> None:
        refuse_parts_alone(self.dataset, self.dataset_config, self.split)
        hub = {"revision": self.revision} if self.revision else {}
        self.sae = SAE.from_pretrained(self.source, subfolder=self.subfolder, allow_pickle=self.allow_pickle, **hub)
        self.identity = Identity.of(self.sae)
        self.folder = local_folder(self.source, self.subfolder)
        if self.base_model is not None:
            rename_base_model(self.sae.config, self.base_model)

    @cached_property
    def model(self) -> PreTrainedModel:
        """The language model that the SAE reads."""
        return self.sae.load_base_model()

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """Its tokenizer."""
        return self.sae.load_tokenizer()

    @cached_property
    def text(self) -> TextSource:
        """The text that was named, or that of the recorded metrics.

        Raises:
            ValueError: If no text is named and none was recorded.
        """
        return text_to_measure(self.sae.config, self.source, self.dataset, self.dataset_config, self.split).source

    @cached_property
    def collection(self) -> FeatureCollection:
        """The features beside the weights; else they are collected, and kept there where the SAE has a folder."""
        kept = kept_features(self.folder, self.identity)
        if kept is not None:
            return kept
        options = {"max_tokens": self.max_tokens, "disable_tqdm": self.disable_tqdm}
        text = self.text  # before the language model: it may be missing
        collection = collect_on(self.sae, self.model, self.tokenizer, text, **options)
        if self.folder is not None:
            collection.save(self.folder)
        return collection

    @cached_property
    def labels(self) -> dict[int, Label]:
        """The labels beside the weights.

        Raises:
            ValueError: If they are of other weights or settings, or the file holds something else.
        """
        path = None if self.folder is None else self.folder / LABELS_FILE
        return {} if path is None or not path.is_file() else read_label_records(path, *self.identity)


def saved_features(source: str | Path, *, subfolder: str = "", **options: Any) -> dict[str, SavedFeatures]:
    """Opens a saved SAE, or all SAEs of a set or of a folder, with one language model.

    Args:
        source: Folder of an SAE, of a set or of several SAEs, or a Hub repository.
        subfolder: Folder of one SAE in it, which then is alone.
        **options: As for `SavedFeatures`.

    Returns:
        The SAEs by the names of their folders; one that lies in the source itself has the name `""`.

    Raises:
        OSError: If an SAE is not there.
        ValueError: If they read several language models.
    """
    opened = {name: SavedFeatures(source, name, **options) for name in _names(source, subfolder, options)}
    models = {one.sae.config.base_model: name for name, one in opened.items()}
    if len(models) > 1:
        told = ", ".join(f"{name or 'the first'} of {model}" for model, name in models.items())
        raise ValueError(f"{source} holds SAEs of several language models ({told}): name one with subfolder.")
    first, *others = opened.values()
    for other in others:
        other.model, other.tokenizer = first.model, first.tokenizer
    return opened


def _names(source: str | Path, subfolder: str, options: dict[str, Any]) -> list[str]:
    """A repository without the record of a set may hold hundreds that do not belong together: it is taken for one."""
    if subfolder:
        return [subfolder]
    found = find_set(source, revision=options.get("revision"))
    if found is not None:
        found.refuse_missing()
        return found.names
    return (sae_folders(source) if Path(source).is_dir() else []) or [""]
