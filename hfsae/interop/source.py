"""`Source`: the files of one SAE that somebody else saved, in a folder or on the Hub; only what is read is fetched."""

import json
import os
import posixpath
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from huggingface_hub.hf_api import RepoFile
from torch import Tensor

from hfsae.connection import cached_snapshot, commit_in_cache, failed, reachable, refusal
from hfsae.interop.settings import Settings
from hfsae.interop.tensors import PICKLES, WEIGHTS_FILES, names_of_tensors, read_weights
from hfsae.sae_folders import natural_order

# Keyword arguments of `from_pretrained` that say how the Hub is asked.
_DOWNLOAD_KEYS = ("cache_dir", "force_download", "local_files_only", "revision", "token")
_PICKLED = tuple(f"*{suffix}" for suffix in PICKLES)


class Source:
    """Where an SAE lies: a folder, local or in a Hub repository, or one file of it where a folder holds many.

    Args:
        path: The repository's id or the local folder, with the folder inside it. Errors call the SAE by it, and
            formats without a config read facts from it.
        listing: Names of files and folders that lie there.
        fetch: Brings one file, named relative to the folder, onto this machine; `FileNotFoundError` if there is none.
        peek: Names of the tensors in a safetensors file, from its header; None fetches the file.
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
        peek: Callable[[str], set[str]] | None = None,
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
        self._peek = peek or (lambda name: names_of_tensors(fetch(name)))
        self._read: dict[str, dict[str, Any]] = {}

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
            return cls._cached(place, subfolder, hub, **options)
        try:
            with reachable():
                return cls._on_hub(place, subfolder.strip("/"), hub, **options)
        except Exception as error:
            if failed(error) and cached_snapshot(place, hub.get("revision"), hub.get("cache_dir")) is not None:
                return cls._cached(place, subfolder, hub, **options)
            if (refused := refusal(place, error)) is not None:
                raise refused from error
            raise

    @classmethod
    def _cached(cls, repo_id: str, subfolder: str, hub: dict[str, Any], **options: Any) -> "Source":
        """What the cache holds of a repository, without asking the Hub."""
        snapshot = cached_snapshot(repo_id, hub.get("revision"), hub.get("cache_dir"))
        if snapshot is None:
            raise FileNotFoundError(f"{repo_id} is neither a folder here nor in the cache, and the Hub is not asked.")
        return cls._local(snapshot / subfolder, path=posixpath.join(repo_id, subfolder), repo_id=repo_id, **options)

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
        except EntryNotFoundError as error:
            raise FileNotFoundError(f"there is no {place} in the repository {repo_id}.") from error

        at = dict(hub)

        def fetch(name: str) -> Path:
            inside = posixpath.normpath(posixpath.join(folder, name))
            try:
                with reachable():
                    path = Path(hf_hub_download(repo_id, inside, **at))
                # All files are of the first one's commit, also where somebody pushes in between.
                at["revision"] = commit_in_cache(path, inside)
                return path
            except LocalEntryNotFoundError:
                raise  # no connection: that is not the file's absence
            except EntryNotFoundError as error:
                raise FileNotFoundError(f"there is no {name} in {repo_id}/{folder}.") from error

        def peek(name: str) -> set[str]:
            inside = posixpath.join(folder, name)
            return set(api.parse_safetensors_file_metadata(repo_id, inside, revision=at.get("revision")).tensors)

        path = posixpath.join(repo_id, place).rstrip("/")
        return cls(path, listing, fetch, peek=peek, chosen=chosen, repo_id=repo_id, folder=folder, **options)

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
            raise ValueError(f"{self.path} lacks {' or '.join(patterns)}; found {some(self.listing)}.")
        return self._only(found)

    def bare_file(self, fits: Callable[[Collection[str]], bool]) -> str | None:
        """The weights file that a format without a config is told by: the names of its tensors fit.

        Safetensors come first, of which the headers alone are read; a pickle is opened only where that was allowed.

        Raises:
            ValueError: If several fit, naming them, or there is only a pickle and that was not allowed.
        """
        found = self.safetensors(fits)
        if not found and self.matching(*_PICKLED):
            pickled = self.the_one(*_PICKLED)
            found = [pickled] if fits(self.tensors(pickled).keys()) else []
        return self._only(found) if found else None

    def safetensors(self, fits: Callable[[Collection[str]], bool]) -> list[str]:
        """The safetensors that hold tensors of fitting names; their headers alone are read."""
        return [name for name in self.matching("*.safetensors") if fits(self._peek(name))]

    def _only(self, found: list[str]) -> str:
        if len(found) > 1:
            raise ValueError(
                f"{self.path} holds {len(found)} files that may be meant: {some(found)}. Name one: "
                f"subfolder={posixpath.join(self.folder, found[0])!r}."
            )
        return found[0]

    def number_after(self, pattern: str) -> int | None:
        """The last number that follows a regular expression in the path: the layer of `.../layer_12/...`."""
        found = re.findall(rf"{pattern}(\d+)", self.path)
        return int(found[-1]) if found else None

    def __str__(self) -> str:
        return f"{self.path} ({some(self.candidates)})"

    # -- reading --------------------------------------------------------------------------------------------------
    def fetch(self, name: str) -> Path:
        """Brings a file onto this machine; its name is relative to the folder and may start with `../`."""
        return self._fetch(name)

    def json(self, name: str) -> Settings:
        """A JSON file that lies here; empty if there is none, or it holds no object.

        Raises:
            ValueError: If it is no JSON.
        """
        return self._settings(name, json.loads, "JSON")

    def yaml(self, name: str) -> Settings:
        """A YAML file that lies here; empty if there is none, or it holds no object.

        Raises:
            ValueError: If it is no YAML.
        """
        return self._settings(name, yaml.safe_load, "YAML")

    def _settings(self, name: str, parse: Callable[[str], Any], kind: str) -> Settings:
        called = f"{name} of {self.path}"
        try:
            content = parse(self.fetch(name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            content = {}
        except (ValueError, RecursionError, yaml.YAMLError) as error:
            reason = "it is nested too deep" if isinstance(error, RecursionError) else error
            raise ValueError(f"{called} is not valid {kind}: {reason}.") from error
        return Settings(content if isinstance(content, dict) else {}, called)

    def tensors(self, name: str) -> dict[str, Any]:
        """What a weights file holds, read once; a pickle only where that was allowed, and then plain data alone.

        Raises:
            ValueError: If it is a pickle and that was not allowed; before it is fetched.
        """
        if name.endswith(PICKLES) and not self.allow_pickle:
            raise ValueError(
                f"{name} of {self.path} is a pickle, a kind of file that can run code when it is opened. If you trust "
                "whoever made it: SAE.from_pretrained(..., allow_pickle=True), or `hfsae convert --allow_pickle` once "
                "for a copy in safetensors. Even then only tensors and plain values are read (weights_only)."
            )
        if name not in self._read:
            self._read[name] = read_weights(self.fetch(name), self.path)
        return self._read[name]

    @property
    def is_ours(self) -> bool:
        """Whether an SAE in hfsae's own format lies here."""
        return "config.json" in self.listing and str(self.json("config.json").get("model_type")).startswith("hfsae")


def renamed(
    tensors: Mapping[str, Any],
    names: Mapping[str, str],
    source: Source,
    *,
    optional: Mapping[str, str] | None = None,
    known: Collection[str] = (),
) -> dict[str, Tensor]:
    """Their tensors under our names, each one accounted for: what nobody reads would change what the SAE computes.

    Args:
        tensors: All that the file holds.
        names: Ours to theirs, with `".T"` behind a matrix to be transposed.
        source: What errors are about.
        optional: Likewise, the names that may be missing.
        known: Patterns of what the file may hold besides: statistics that change nothing, or what the caller reads.

    Raises:
        ValueError: If one is missing, is no tensor or no matrix, or the file holds another, naming it.
    """
    missing = [theirs for theirs in names.values() if theirs.removesuffix(".T") not in tensors]
    if missing:
        raise ValueError(f"the weights of {source.path} lack {', '.join(missing)}; found {some(sorted(tensors))}.")
    there = {ours: theirs for ours, theirs in (optional or {}).items() if theirs.removesuffix(".T") in tensors}
    wanted = {**names, **there}
    used = {theirs.removesuffix(".T") for theirs in wanted.values()}
    unread = sorted(name for name in set(tensors) - used if not any(fnmatch(name, pattern) for pattern in known))
    if unread:
        raise ValueError(
            f"the weights of {source.path} hold {some(unread)} besides {some(sorted(used))}: an SAE of another kind "
            "than its config says, which read without it would compute something else."
        )
    return {ours: _tensor(tensors, theirs, source) for ours, theirs in wanted.items()}


def _tensor(tensors: Mapping[str, Any], name: str, source: Source) -> Tensor:
    transposed, name = name.endswith(".T"), name.removesuffix(".T")
    value = tensors[name]
    if not isinstance(value, Tensor):
        raise ValueError(f"{name} in the weights of {source.path} is a {type(value).__name__}, expected a tensor.")
    if transposed and value.ndim != 2:
        raise ValueError(f"{name} in the weights of {source.path} has shape {tuple(value.shape)}, expected a matrix.")
    return value.T if transposed else value


def some(names: Collection[str], most: int = 6) -> str:
    """The first few of many names, and how many there are more."""
    names = list(names)
    if not names:
        return "nothing"
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
