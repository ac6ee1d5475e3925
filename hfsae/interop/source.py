"""`Source`: the files of one SAE that somebody else saved, in a folder or on the Hub; only what is read is fetched."""

import json
import os
import posixpath
import re
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError
from huggingface_hub.hf_api import RepoFile
from torch import Tensor

from hfsae.interop.tensors import PICKLES, WEIGHTS_FILES, read_tensors
from hfsae.places import natural_order

# Keyword arguments of `from_pretrained` that say how the Hub is asked.
_DOWNLOAD_KEYS = ("cache_dir", "force_download", "local_files_only", "revision", "token")


class Source:
    """Where an SAE lies: a folder, local or in a Hub repository, or one file of it where a folder holds many.

    Args:
        path: The repository's id or the local folder, with the folder inside it: what errors call the SAE, and what
            formats without a config read facts from.
        listing: Names of files and folders that lie there.
        fetch: Brings one file, named relative to the folder, onto this machine; `FileNotFoundError` if there is none.
        chosen: The file that was asked for by name, if one was.
        repo_id: Repository, None for a local folder.
        folder: Folder inside the repository.
        given: Config fields that the caller sets, for formats that do not say everything.
        allow_pickle: Whether files may be unpickled.
    """

    def __init__(
        self,
        path: str,
        listing: list[str],
        fetch: Callable[[str], Path],
        *,
        chosen: str | None = None,
        repo_id: str | None = None,
        folder: str = "",
        given: Mapping[str, Any] | None = None,
        allow_pickle: bool = False,
    ):
        self.path, self.listing, self.chosen = path, listing, chosen
        self.repo_id, self.folder = repo_id, folder
        self.given = dict(given or {})
        self.allow_pickle = allow_pickle
        self._fetch = fetch

    @classmethod
    def open(
        cls,
        place: str,
        subfolder: str = "",
        *,
        given: Mapping[str, Any] | None = None,
        allow_pickle: bool = False,
        **hub: Any,
    ) -> "Source":
        """Lists what lies at a place; nothing is fetched yet.

        Args:
            place: A folder, a file, or a Hub repository.
            subfolder: Folder inside it, or the file where it holds one SAE a file.
            given: See `Source`.
            allow_pickle: See `Source`.
            **hub: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download`.

        Raises:
            OSError: If there is no such place.
        """
        options: dict[str, Any] = {"given": given, "allow_pickle": allow_pickle}
        hub = {key: hub[key] for key in _DOWNLOAD_KEYS if hub.get(key) is not None}
        if Path(place).exists() or os.path.isabs(place) or place.startswith("."):
            return cls._local(Path(place) / subfolder, **options)
        if hub.get("local_files_only") or constants.HF_HUB_OFFLINE:
            cached = {key: hub[key] for key in ("cache_dir", "revision") if key in hub}
            snapshot = Path(snapshot_download(place, local_files_only=True, **cached))
            return cls._local(snapshot / subfolder, path=posixpath.join(place, subfolder), repo_id=place, **options)
        return cls._on_hub(place, subfolder.strip("/"), hub, **options)

    @classmethod
    def _local(cls, place: Path, path: str | None = None, **options: Any) -> "Source":
        if not place.exists():
            raise FileNotFoundError(f"there is no {place}.")
        folder, chosen = (place.parent, place.name) if place.is_file() else (place, None)

        def fetch(name: str) -> Path:
            if not (folder / name).is_file():
                raise FileNotFoundError(f"there is no {name} in {folder}.")
            return folder / name

        listing = sorted(entry.name for entry in folder.iterdir())
        return cls(path or str(place.absolute()), listing, fetch, chosen=chosen, **options)

    @classmethod
    def _on_hub(cls, repo_id: str, place: str, hub: dict[str, Any], **options: Any) -> "Source":
        api, revision = HfApi(token=hub.get("token"), library_name="hfsae"), hub.get("revision")

        def entries(folder: str) -> dict[str, bool]:
            """What lies in a folder, by name, and whether it is a file."""
            found = api.list_repo_tree(repo_id, path_in_repo=folder or None, revision=revision)
            return {posixpath.basename(entry.path): isinstance(entry, RepoFile) for entry in found}

        try:
            above, name = posixpath.split(place)
            if place.endswith(WEIGHTS_FILES) and (siblings := entries(above)).get(name):
                folder, chosen, listing = above, name, sorted(siblings)
            else:
                folder, chosen, listing = place, None, sorted(entries(place))
        except (EntryNotFoundError, HFValidationError) as error:
            raise FileNotFoundError(f"there is no {place} in the repository {repo_id}.") from error

        def fetch(name: str) -> Path:
            try:
                return Path(hf_hub_download(repo_id, posixpath.normpath(posixpath.join(folder, name)), **hub))
            except LocalEntryNotFoundError:
                raise  # no connection: that is not the file's absence
            except EntryNotFoundError as error:
                raise FileNotFoundError(f"there is no {name} in {repo_id}/{folder}.") from error

        path = posixpath.join(repo_id, place).rstrip("/")
        return cls(path, listing, fetch, chosen=chosen, repo_id=repo_id, folder=folder, **options)

    @classmethod
    def folders(cls, place: str, subfolder: str = "", **hub: Any) -> Iterator["Source"]:
        """Every folder below a place that holds files, hidden ones left out, in natural order of their names.

        Args:
            place: A folder or a Hub repository.
            subfolder: Folder inside it to start from.
            **hub: As for `open`.
        """
        start = cls.open(place, subfolder, **hub)
        if start.repo_id is None:
            root = Path(place)
            files = [path.relative_to(root).as_posix() for path in (root / subfolder).rglob("*") if path.is_file()]
        else:
            hub = {key: hub[key] for key in ("revision", "token") if hub.get(key) is not None}
            files = HfApi(library_name="hfsae").list_repo_files(place, **hub)
        inside = f"{subfolder.strip('/')}/" if subfolder.strip("/") else ""
        holding = {posixpath.dirname(file) for file in files if file.startswith(inside) and "/." not in f"/{file}"}
        for folder in sorted(holding, key=natural_order):
            source = cls.open(place, folder, **hub)
            source.folder = folder
            yield source

    # -- looking --------------------------------------------------------------------------------------------------
    @property
    def candidates(self) -> list[str]:
        """The files that may hold the weights: the one that was named, else all."""
        return [self.chosen] if self.chosen else self.listing

    def matching(self, *patterns: str) -> list[str]:
        """Candidates whose name fits a pattern such as `"*.pt"`."""
        return [name for name in self.candidates if any(fnmatch(name, pattern) for pattern in patterns)]

    def the_one(self, *patterns: str) -> str:
        """The only candidate that fits.

        Raises:
            ValueError: If there are several, naming them, or none.
        """
        found = self.matching(*patterns)
        if not found:
            raise ValueError(f"{self.path} lacks {' or '.join(patterns)}; found {_some(self.listing)}.")
        if len(found) > 1:
            raise ValueError(
                f"{self.path} holds {len(found)} files that may be meant: {_some(found)}. Name one: "
                f"subfolder={posixpath.join(self.folder, found[0])!r}."
            )
        return found[0]

    def number_after(self, pattern: str) -> int | None:
        """The last number that follows a regular expression in the path: the layer of `.../layer_12/...`."""
        found = re.findall(rf"{pattern}(\d+)", self.path)
        return int(found[-1]) if found else None

    def __str__(self) -> str:
        return f"{self.path} ({_some(self.candidates)})"

    # -- reading --------------------------------------------------------------------------------------------------
    def fetch(self, name: str) -> Path:
        """Brings a file onto this machine; its name is relative to the folder and may start with `../`."""
        return self._fetch(name)

    def json(self, name: str) -> dict[str, Any]:
        """A JSON file that lies here; empty if there is none, or it holds no object.

        Raises:
            ValueError: If it is no JSON.
        """
        try:
            text = self.fetch(name).read_text()
        except FileNotFoundError:
            return {}
        try:
            content = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{name} of {self.path} is not valid JSON: {error}.") from error
        return content if isinstance(content, dict) else {}

    def tensors(self, name: str) -> dict[str, Any]:
        """What a weights file holds; a pickle only where that was allowed, and even then nothing but plain data.

        Raises:
            ValueError: If it is a pickle and that was not allowed; before it is fetched.
        """
        if name.endswith(PICKLES) and not self.allow_pickle:
            raise ValueError(
                f"{name} of {self.path} is a pickle, a kind of file that can run code when it is opened. If you trust "
                "whoever made it: SAE.from_pretrained(..., allow_pickle=True), or `hfsae convert --allow-pickle` once "
                "for a copy in safetensors. Even then only tensors and plain values are read (weights_only)."
            )
        return read_tensors(self.fetch(name), self.path)

    @property
    def is_ours(self) -> bool:
        """Whether an SAE in hfsae's own format lies here."""
        return "config.json" in self.listing and str(self.json("config.json").get("model_type")).startswith("hfsae")

    @cached_property
    def pickled(self) -> dict[str, Any]:
        """The content of the one pickle that lies here, for formats that are told by it alone; empty without one."""
        files = self.matching(*(f"*{suffix}" for suffix in PICKLES))
        return self.tensors(self.the_one(*(f"*{suffix}" for suffix in PICKLES))) if files else {}


def renamed(tensors: Mapping[str, Any], names: Mapping[str, str], source: Source) -> dict[str, Tensor]:
    """Their tensors under our names; `names` maps ours to theirs, with `".T"` behind a matrix to be transposed.

    Raises:
        ValueError: If one is missing, naming it and what there is.
    """
    missing = [theirs for theirs in names.values() if theirs.removesuffix(".T") not in tensors]
    if missing:
        raise ValueError(f"the weights of {source.path} lack {', '.join(missing)}; found {_some(sorted(tensors))}.")
    return {
        ours: tensors[theirs.removesuffix(".T")].T if theirs.endswith(".T") else tensors[theirs]
        for ours, theirs in names.items()
    }


def _some(names: list[str], most: int = 6) -> str:
    if not names:
        return "nothing"
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
