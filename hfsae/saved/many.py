"""Loading many SAEs of one repository or folder: `load_saes`."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hfsae.hub.errors import usable_token
from hfsae.hub.snapshot import is_remembered, look
from hfsae.modeling import SAE
from hfsae.sae_folders import CONFIG_FILE, matching, sae_folders


def load_saes(
    source: str | os.PathLike,
    pattern: str = "*",
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    **kwargs: Any,
) -> dict[str, SAE]:
    """Loads those SAEs of a repository or a folder whose names fit a pattern, all from one commit.

    Args:
        source: A Hub repository, or a folder.
        pattern: A shell pattern: `"resid_post.*"`, `"*/topk-*"`.
        revision: Branch, tag or commit.
        token: A token, instead of the one that `hf auth login` stored; False for none.
        **kwargs: As for `SAE.from_pretrained`: `dtype`, `device_map`, ...

    Returns:
        The SAEs by name, in natural order.

    Raises:
        ValueError: If none fits; names those there are. And as `SAE.from_pretrained`.
        OSError: If there is no such repository, or it cannot be reached.
    """
    if Path(source).is_dir():
        names = _chosen(source, sae_folders(source), pattern)
        return {name: SAE.from_pretrained(source, subfolder=name, **kwargs) for name in names}
    repo_id, token = str(source), usable_token(token)
    cache_dir = kwargs.get("cache_dir")
    while True:
        snapshot = look(
            repo_id, revision, token, cache_dir=cache_dir, local_files_only=kwargs.get("local_files_only", False)
        )
        names = _chosen(repo_id, snapshot.with_weights, pattern)
        config = f"{names[0]}/{CONFIG_FILE}" if names[0] else CONFIG_FILE
        if is_remembered(snapshot, config, revision, token, cache_dir):
            break
    hub = {"token": token, **kwargs, **snapshot.where}
    return {name: SAE.from_pretrained(repo_id, subfolder=name, **hub) for name in names}


def _chosen(source: str | os.PathLike, names: Sequence[str], pattern: str) -> list[str]:
    chosen = matching(names, pattern)
    if not chosen:
        raise ValueError(f"no SAE of {source} fits {pattern!r}; there are {', '.join(names) or 'none'}.")
    return chosen
