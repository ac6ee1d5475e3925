"""What a repository holds at one commit: as the Hub lists it, or as far as the cache has it where there is none."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, hf_hub_download, try_to_load_from_cache

from hfsae.connection import cached_snapshot, failed, reachable, refusal
from hfsae.hub.backoff import Backoff
from hfsae.hub.errors import usable_token
from hfsae.hub.metadata import LIBRARY
from hfsae.hub.repository import git_blob_id
from hfsae.sae_folders import CONFIG_FILE, folders_among

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Snapshot:
    """The files of a repository at one commit.

    Args:
        repo_id: The repository.
        commit: The sha of the commit.
        files: Git's blob id, where it is known, and the size of every file, by path.
        from_cache: Whether these are the files that the cache holds, the Hub not being asked.
    """

    repo_id: str
    commit: str
    files: Mapping[str, tuple[str | None, int | None]]
    from_cache: bool = False

    @property
    def where(self) -> dict[str, Any]:
        """The arguments by which `from_pretrained` reads at this commit."""
        return {"revision": self.commit, **({"local_files_only": True} if self.from_cache else {})}

    @property
    def with_weights(self) -> list[str]:
        """The folders of SAEs; of those in the cache the ones that can be loaded from there."""
        holding = {path.rpartition("/")[0] for path in self.files if path.endswith(".safetensors")}
        return [name for name in folders_among(self.files) if not self.from_cache or name in holding]


def look(
    repo_id: str,
    revision: str | None = None,
    token: str | bool | None = None,
    *,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Snapshot:
    """Looks at a repository.

    Args:
        repo_id: The repository.
        revision: Branch, tag or commit.
        token: As `huggingface_hub` takes it.
        cache_dir: Of the cache.
        local_files_only: Whether the Hub is not to be asked.

    Raises:
        OSError: If there is no such repository, or if it can neither be reached nor is in the cache.
    """
    if local_files_only or constants.is_offline_mode():
        return _cached(repo_id, revision, cache_dir, None)
    api = HfApi(token=usable_token(token), library_name=LIBRARY)
    try:
        with reachable():
            info = Backoff(of_limits_alone=True)(
                lambda: api.model_info(repo_id, revision=revision, files_metadata=True)
            )
    except Exception as error:
        if failed(error):
            return _cached(repo_id, revision, cache_dir, error)
        raise (refusal(repo_id, error) or error) from error
    assert info.sha is not None
    return Snapshot(repo_id, info.sha, {file.rfilename: (file.blob_id, file.size) for file in info.siblings or ()})


def is_remembered(
    snapshot: Snapshot,
    path: str,
    revision: str | None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
) -> bool:
    """Has the cache write down that a branch is at the commit of a snapshot, as it does of files fetched by its name.

    What is fetched of the commit then loads by that name without a network.

    Args:
        snapshot: What `look` gave.
        path: A file that is going to be fetched.
        revision: The branch or tag.
        token: As for `look`.
        cache_dir: As for `look`.

    Returns:
        False if the branch has moved on.

    Raises:
        OSError: If the Hub cannot be reached.
    """
    if snapshot.from_cache or revision == snapshot.commit:
        return True
    cache: dict[str, Any] = {} if cache_dir is None else {"cache_dir": cache_dir}
    with reachable():
        fetched = hf_hub_download(snapshot.repo_id, path, revision=revision, token=usable_token(token), **cache)
    return fetched == try_to_load_from_cache(snapshot.repo_id, path, revision=snapshot.commit, **cache)


def _cached(repo_id: str, revision: str | None, cache_dir: str | Path | None, error: Exception | None) -> Snapshot:
    folder = cached_snapshot(repo_id, revision, cache_dir)
    if folder is None:
        at = f" at {revision}" if revision else ""
        raise OSError(
            f"the Hub cannot be reached; check the network and HF_ENDPOINT. Nothing of {repo_id}{at} is in the cache."
            if error is not None
            else f"nothing of {repo_id}{at} is in the cache, and the Hub is not asked."
        ) from error
    if error is not None:
        logger.warning("the Hub cannot be reached: of %s there is what the cache holds", repo_id)
    found = [path for path in folder.rglob("*") if path.is_file()]
    files = {path.relative_to(folder).as_posix(): (_blob_id(path), path.stat().st_size) for path in found}
    return Snapshot(repo_id, folder.name, files, from_cache=True)


def _blob_id(path: Path) -> str | None:
    """Git's id of a config, of which an index says for which it is."""
    return git_blob_id(path.read_bytes()) if path.name == CONFIG_FILE else None
