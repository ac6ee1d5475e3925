"""Where the SAEs of a folder or of a Hub repository lie, by names of files alone."""

import fnmatch
import os
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import HfApi

CONFIG_FILE = "config.json"

# Where training keeps what a run is resumed from: SAEs in the middle of their training.
LAST_CHECKPOINT = "last-checkpoint"
_UNFINISHED = ("checkpoint-*", LAST_CHECKPOINT, ".saving-*", ".*.part")  # the last two: saves under way, or killed


def must_be_local(name: str) -> bool:
    """Whether a name can only be that of a file or folder on this machine: ids of the Hub look otherwise."""
    return os.path.isabs(name) or name.startswith((".", "~")) or name.count("/") > 1 or "\\" in name


def place_of(source: str, subfolder: str = "", revision: str | None = None) -> tuple[str, dict[str, Any]]:
    """The folder or repository that a name says, and where in it: `org/name/subfolder@revision`.

    Args:
        source: A folder, an id of the Hub, or an id with a folder in it or a revision.
        subfolder: The folder in it, where that is said beside the name.
        revision: Likewise the revision.

    Returns:
        The source, and `subfolder` and `revision` as `SAE.from_pretrained` takes them.

    Raises:
        ValueError: If the name says a folder or a revision that is said beside it, too.

    Example:
        >>> from hfsae.sae_folders import place_of
        >>> place_of("org/zoo/resid_post.8/topk@v2")
        ('org/zoo', {'subfolder': 'resid_post.8/topk', 'revision': 'v2'})
    """
    place, _, said = source.partition("@")
    begins, *inside = place.split("/")
    # What begins with a folder that is here is a folder, even one that is missing.
    below = len(inside) > 1 and os.path.isdir(begins)
    if below or os.path.exists(source) or os.path.isabs(place) or place.startswith((".", "~")) or "\\" in place:
        return source, {"subfolder": subfolder, "revision": revision}
    folder = "/".join(inside[1:]).strip("/")
    if (folder and subfolder) or (said and revision):
        raise ValueError(
            f"{source} says where the SAE lies: leave out subfolder and revision, or name the repository."
        )
    return "/".join([begins, *inside[:1]]), {"subfolder": folder or subfolder, "revision": said or revision}


def folders_among(files: Iterable[str]) -> list[str]:
    """The folders that hold a config, `""` for the root, from the paths of all files; in natural order.

    Example:
        >>> folders_among(["resid_post.10/config.json", "resid_post.9/config.json", "README.md"])
        ['resid_post.9', 'resid_post.10']
    """
    parents = [PurePosixPath(path).parent for path in files if path.rpartition("/")[2] == CONFIG_FILE]
    # A stranger's repository may name files outside of it.
    inside = [folder for folder in parents if not (folder.is_absolute() or ".." in folder.parts)]
    names = ["/".join(folder.parts) for folder in inside if not is_unfinished(folder)]
    return sorted(names, key=natural_order)


def sae_folders(source: str | os.PathLike, revision: str | None = None, token: str | bool | None = None) -> list[str]:
    """The folders of a directory or a repository that hold a config, `""` for the root.

    Raises:
        OSError: If there is no such repository, or it cannot be reached.
    """
    root = Path(source)
    if root.is_dir():
        return folders_among(path.relative_to(root).as_posix() for path in root.rglob(CONFIG_FILE))
    return folders_among(HfApi(token=token).list_repo_files(str(source), revision=revision))


def weights_alone(root: Path) -> list[str]:
    """The folders of a directory that hold weights and no config: an SAE of which a part is gone; `"."` for the root.

    Example:
        >>> weights_alone(Path("runs/gpt2"))  # doctest: +SKIP
        ['resid_post.8']
    """
    folders = {path.parent for path in root.rglob("model*.safetensors")}
    names = {folder.relative_to(root).as_posix() for folder in folders if not (folder / CONFIG_FILE).is_file()}
    return sorted((name for name in names if not is_unfinished(name)), key=natural_order)


def matching(names: Iterable[str], pattern: str) -> list[str]:
    """The names that a shell pattern fits, in which `*` also stands for what is in folders below."""
    return [name for name in names if fnmatch.fnmatchcase(name, pattern)]


def natural_order(name: str) -> list[tuple[str, int]]:
    """A key to sort names by in which 9 comes before 10."""
    return [(text, int(digits or -1)) for text, digits in re.findall(r"([^0-9]*)([0-9]*)", name)]


def is_unfinished(folder: str | PurePosixPath) -> bool:
    """Whether a folder lies among the checkpoints of a run, or in a save that has not ended."""
    return any(fnmatch.fnmatchcase(part, pattern) for part in PurePosixPath(folder).parts for pattern in _UNFINISHED)
