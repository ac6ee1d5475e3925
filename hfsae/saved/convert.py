"""Converting SAEs from any known format into hfsae's, SAELens', sparsify's or circuit-tracer's: one or many."""

import os
import posixpath
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from hfsae.analysis import export_circuit_tracer
from hfsae.identity import Identity
from hfsae.interop import catalogue, circuit_tracer_layers, circuit_tracer_writer, sparsify_writer
from hfsae.interop.export import export_formats, export_sae
from hfsae.interop.foreign_names import layer_of
from hfsae.interop.formats import UnknownFormatError, holds_folders, is_bare, is_known_by_files
from hfsae.interop.source import Source
from hfsae.interop.tensors import PICKLES, WEIGHTS_FILES
from hfsae.modeling import SAE
from hfsae.progress import quietly
from hfsae.sae_folders import is_unfinished
from hfsae.saved.kept_features import kept_features, local_folder
from hfsae.saving import files_at_once
from hfsae.suggestions import did_you_mean

_SET = "circuit-tracer"
"""The format that holds all transcoders of a model in one folder."""
_PAGES = "./data/features"
"""Where circuit-tracer's pages ask for features if the folder with `features` in it is served as `data_dir`."""


def convert(
    source: str | os.PathLike,
    destination: str | os.PathLike,
    to: str = "hfsae",
    *,
    subfolder: str = "",
    allow_pickle: bool = False,
    given: Mapping[str, Any] | None = None,
    **hub: Any,
) -> list[Path]:
    """Converts every SAE that lies at a place and keeps the layout of folders.

    Args:
        source: Folder, file, Hub repository or release of the catalogue; any format that `SAE.from_pretrained` reads.
        destination: Folder to write into; made if missing. A single SAE is written right there.
        to: `"hfsae"`, or `"circuit-tracer"`, which makes one set of all transcoders. Or what `export_sae` takes, such
            as `"saelens"`, `"llamascopium"`, `"gemma-scope-2"`, `"clt-training"`, or `"sparsify"`, whose folders
            are called after the hooked module.
        subfolder: Only what lies in this folder of the source, or this file; of a release, an id of its SAEs.
        allow_pickle: Whether pickles may be opened.
        given: Config fields that the source does not say, such as `hook_point`.
        **hub: `revision`, `token`, `cache_dir`.

    Returns:
        The folders that were written.

    Raises:
        ValueError: If there is no SAE, one cannot be read, or the target format cannot hold it.
        OSError: If there is no such place.

    Example:
        >>> convert("EleutherAI/sae-pythia-70m-32k", "converted")  # doctest: +SKIP
        [PosixPath('converted/layers.0'), PosixPath('converted/layers.0.mlp'), ...]
    """
    if to not in (known := targets()):
        raise ValueError(f"to must be one of {', '.join(known)}, got {to!r}.{did_you_mean(to, known)}")
    source, subfolder = catalogue.located(source, subfolder)
    places = list(sae_subfolders(source, subfolder, **hub))
    if not places:
        raise UnknownFormatError(f"no SAE of a known format lies in {posixpath.join(source, subfolder)}.")
    options = {"allow_pickle": allow_pickle, **hub, **(given or {})}
    showing = tqdm(places, desc="converting", disable=len(places) == 1)
    with quietly():
        if to == _SET:
            saes = {place: SAE.from_pretrained(source, subfolder=place, **options) for place in showing}
            return [_write_set(source, saes, Path(destination))]
        written = []
        for place in showing:
            sae = SAE.from_pretrained(source, subfolder=place, **options)
            folder = Path(destination) / (_folder_of(place, subfolder) if len(places) > 1 else "")
            written.append(_write(sae, folder, to))
    return written


def _write_set(source: str | os.PathLike, saes: Mapping[str, SAE], destination: Path) -> Path:
    """Writes what circuit-tracer loads, and pages of the features that were collected of these SAEs."""
    collected = {
        place: found
        for place, sae in saes.items()
        if (found := kept_features(local_folder(os.fspath(source), place), Identity.of(sae))) is not None
    }
    scan = _PAGES if collected else None
    first, *others = saes.values()
    if any(sae.config.is_cross_layer for sae in saes.values()):
        if others:
            raise ValueError(f"a folder of circuit-tracer's holds one cross-layer transcoder, got {len(saes)} SAEs.")
        circuit_tracer_layers.write(first, destination, scan=scan)
    else:
        circuit_tracer_writer.write_transcoder_set(list(saes.values()), destination, scan=scan)
    if collected:
        pages, tokenizer = destination / posixpath.basename(_PAGES), first.load_tokenizer()
        if first.config.is_cross_layer:
            (of_all,) = collected.values()
            n = first.config.features_per_layer  # type: ignore[attr-defined]
            export_circuit_tracer(of_all, tokenizer, pages, features_per_layer=n)
        else:
            by_layer = {int(layer_of(saes[place].config.hook_point) or 0): found for place, found in collected.items()}
            export_circuit_tracer(by_layer, tokenizer, pages)
    return destination


def targets() -> list[str]:
    """What `convert` writes."""
    return ["hfsae", _SET, *export_formats()]


def sae_subfolders(source: str | os.PathLike, subfolder: str = "", **hub: Any) -> Iterator[str]:
    """Where the SAEs of a folder or repository lie.

    Args:
        source: Folder, file or Hub repository.
        subfolder: Where to look, or a file.
        **hub: `revision`, `token`, `cache_dir`.

    Yields:
        What `SAE.from_pretrained` takes as `subfolder`: folders, and files where a folder holds one SAE a file.
    """
    start = Source.open(os.fspath(source), subfolder, **hub)
    if start.chosen is not None:
        yield subfolder
        return
    whole: str | None = None  # a folder that is one SAE with all that lies in it
    for folder in Source.folders(os.fspath(source), subfolder, **hub):
        if is_unfinished(folder.folder) or (whole is not None and folder.folder.startswith(whole)):
            continue
        if not folder.is_ours and holds_folders(folder):
            whole = folder.folder and f"{folder.folder}/"
        if folder.is_ours or is_known_by_files(folder):
            files = folder.matching("layer_*.safetensors")  # transcoders of circuit-tracer: one a file
        else:
            files = folder.safetensors(is_bare) + folder.matching(*(f"*{suffix}" for suffix in PICKLES))
            if not files:
                continue
        yield from [posixpath.join(folder.folder, name) for name in files] or [folder.folder]


def _folder_of(place: str, subfolder: str) -> str:
    """The folder that an SAE is written into, relative to the destination: where it lay, a file's name being one."""
    stem, suffix = posixpath.splitext(place)
    return posixpath.relpath(stem if suffix in WEIGHTS_FILES else place, subfolder or ".")


def _write(sae: SAE, folder: Path, to: str) -> Path:
    if to != "hfsae":
        named_by_format = to == "sparsify" and folder.name == sparsify_writer.module_of(sae)
        return export_sae(sae, folder.parent if named_by_format else folder, to)
    with files_at_once(folder) as beside:
        sae.save_pretrained(beside)
    return folder
