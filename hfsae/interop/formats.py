"""The table of foreign formats, and loading whatever of them lies at a place.

Other installed packages add to it by entry points `hfsae.formats`: a module, or an object, that is a `Format`.
"""

import os
from collections.abc import Collection, Mapping
from importlib import import_module
from typing import Any, Protocol, cast

import torch

from hfsae import guests
from hfsae.autoencoder.model import SparseAutoencoder
from hfsae.autoencoder.strict import class_for
from hfsae.interop import catalogue, clt_training
from hfsae.interop.converted import ConvertedSAE
from hfsae.interop.source import Source
from hfsae.progress import quietly


class Format(Protocol):
    """What the module of a format offers."""

    def recognises(self, source: Source) -> bool:
        """Whether what lies there is of this format."""
        ...

    def read(self, source: Source) -> ConvertedSAE:
        """What it says, in our terms."""
        ...


# Formats that their configs and file names tell apart, and where their modules are.
BY_FILES = {
    "SAELens": "hfsae.interop.saelens",
    "sparsify": "hfsae.interop.sparsify",
    "clt-training": "hfsae.interop.clt_training",
    "dictionary_learning": "hfsae.interop.dictionary_learning",
    "Gemma Scope": "hfsae.interop.gemma_scope",
    "Gemma Scope 2": "hfsae.interop.gemma_scope_2",
    "Gemma Scope 2, several layers": "hfsae.interop.gemma_scope_2_layers",
    "Llama Scope": "hfsae.interop.llama_scope",
    "Llama Scope R1": "hfsae.interop.llama_scope_r1",
    "Llamascopium": "hfsae.interop.llamascopium",
    "Qwen3 transcoders": "hfsae.interop.qwen3_transcoders",
    "circuit-tracer": "hfsae.interop.circuit_tracer",
}
# Weights without a config, told apart by the tensors inside: looked into only if none of the above is there.
BY_TENSORS = {
    "OpenAI": "hfsae.interop.openai",
    "bare weights": "hfsae.interop.unlabelled_weights",
}


class UnknownFormatError(ValueError):
    """Nothing of a known format lies at a place."""


def load_foreign(
    place: str | os.PathLike,
    wanted: type[SparseAutoencoder] = SparseAutoencoder,
    *,
    hub: Mapping[str, Any] | None = None,
    given: Mapping[str, Any] | None = None,
    dtype: torch.dtype | str | None = None,
    placement: Mapping[str, Any] | None = None,
    allow_pickle: bool = False,
) -> SparseAutoencoder:
    """An SAE of another project as one of ours; what `SAE.from_pretrained` does where no config of ours lies.

    Args:
        place: Folder, file or Hub repository, or a release of the catalogue, whose ids `subfolder` then takes.
        wanted: The class that is asked for.
        hub: `subfolder` is a folder inside it, or the file where a folder holds one SAE a file. The others say how the
            Hub is asked: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download`.
        given: Config fields to override; for bare weights also `architecture`, which they do not say. Likewise
            `threshold` where features of a saved batch_topk are chosen by batch alone.
        dtype: Of the weights; None takes what the source's config says, or keeps what the file holds.
        placement: `device_map` and what belongs to it (`max_memory`, `offload_folder`, ...), as transformers has them.
        allow_pickle: Whether pickles may be opened.

    Raises:
        UnknownFormatError: If there is nothing of a known format.
        ValueError: If several formats fit, or files do not hold what their format
            says.
        OSError: If there is no such place.
    """
    given, where = dict(given or {}), dict(hub or {})
    place, where["subfolder"] = catalogue.located(place, where.get("subfolder") or "")
    source = Source.open(place, given=given, allow_pickle=allow_pickle, **where)
    draft = read(source)
    # The reader has taken from `source.given` what it used and is no field; what nobody used is refused as a field.
    config = draft.config(source.path, {key: value for key, value in source.given.items() if key != "architecture"})
    class_for(config, wanted, source.path)
    if isinstance(dtype, str):
        draft.dtype, dtype = draft.dtype if dtype == "auto" else dtype, None
    sae = draft.build(config, source.path, dtype)
    return _placed(sae, placement) if placement else sae


def _placed(sae: SparseAutoencoder, placement: Mapping[str, Any]) -> SparseAutoencoder:
    """The SAE where transformers puts a model that it loads with the same arguments."""
    inherited: Any = super(SparseAutoencoder, type(sae))
    stored = {"config": sae.config, "state_dict": sae.state_dict(), "dtype": sae.W_dec.dtype}
    with quietly():
        return inherited.from_pretrained(None, **stored, **placement)


def recognise(source: Source) -> str:
    """The name of the format that a source is of.

    Raises:
        UnknownFormatError: If none fits.
        ValueError: If several do.
    """
    for table in (_by_files(), _by_tensors()):
        found = [name for name, format in table.items() if format.recognises(source)]
        if len(found) > 1:
            raise ValueError(f"{source} may be of {' or of '.join(found)}: keep one SAE a folder.")
        if found:
            return found[0]
    raise UnknownFormatError(
        f"{source} holds no sparse autoencoder of a known format: expected hfsae's config.json, or the files "
        f"of {', '.join([*_by_files(), *BY_TENSORS])}. Is it in a subfolder?"
    )


def is_bare(names: Collection[str]) -> bool:
    """Whether names of tensors alone tell a format."""
    return any(import_module(module).fits(names) for module in BY_TENSORS.values())


def holds_folders(source: Source) -> bool:
    """Whether what lies here is one SAE together with all folders below."""
    return clt_training.recognises(source)


def is_known_by_files(source: Source) -> bool:
    """Whether configs and file names alone tell a format."""
    return any(format.recognises(source) for format in _by_files().values())


def read(source: Source) -> ConvertedSAE:
    """What a source says, in our terms, with its format's name among the facts.

    Raises:
        ValueError: As `recognise`, or if its files do not hold what the format says.
    """
    name = recognise(source)
    if "architecture" in source.given and name not in BY_TENSORS:
        raise ValueError(f"{source.path} is of {name}, which says its architecture itself: leave architecture= out.")
    draft = {**_by_files(), **_by_tensors()}[name].read(source)
    path = source.path.removeprefix(f"{source.repo_id}/")
    if (release := catalogue.release_of(source.repo_id, path)) is not None:
        draft.complete(release.facts(path), release.input_scales.get(path))
    draft.facts = {"converted_from": name, **draft.facts}
    return draft


def _by_files() -> dict[str, Format]:
    """The formats that configs and file names tell apart, guests' among them."""
    offered = guests.load_guests(guests.FORMATS)
    return _modules(BY_FILES) | {name: format for name, format in offered.items() if hasattr(format, "recognises")}


def _by_tensors() -> dict[str, Format]:
    return _modules(BY_TENSORS)


def _modules(table: Mapping[str, str]) -> dict[str, Format]:
    return {name: cast(Format, import_module(module)) for name, module in table.items()}
