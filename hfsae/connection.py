"""The connection to the Hub: what its failures are, and how long a server may be silent."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import constants, get_session, snapshot_download
from huggingface_hub.errors import (
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

# What every error of the transport derives from: httpx's or httpx2's, whichever huggingface_hub was built on.
TransportError: type[Exception] = HfHubHTTPError.__mro__[1]  # type: ignore[assignment]

# Statuses of an answer that says nothing of what was asked for, and may be another one the next time.
PASSING_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})

# Seconds that a server may stay silent before a request counts as failed.
READING, WRITING = 10.0, 60.0

_lock = threading.Lock()
_limits: list[float] = []


def behind(error: BaseException) -> BaseException:
    """The error of the connection behind one in which the client tells what it was doing."""
    told = (RuntimeError, ValueError, LocalEntryNotFoundError)
    # Some answers of the Hub are kinds of ValueError themselves.
    while not isinstance(error, HfHubHTTPError) and isinstance(error, told) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return error


def failed(error: BaseException) -> bool:
    """Whether an error means that the Hub could not be asked, and not that it said no."""
    for link in _chain(error):
        if isinstance(link, HfHubHTTPError):
            return link.response.status_code in PASSING_STATUSES
        if isinstance(link, TransportError | OfflineModeIsEnabled | FileMetadataError):
            return True
    return False


def refusal(name: str, error: BaseException) -> OSError | None:
    """What to say where a name is no folder here, and the Hub gave no repository of that name.

    Args:
        name: What was asked for.
        error: What was raised when it was looked for.

    Returns:
        The error to raise; None where the repository is there, and something else is wrong.
    """
    kinds = tuple(type(link) for link in _chain(error))
    if any(issubclass(kind, GatedRepoError) for kind in kinds):
        return PermissionError(
            f"{name} is gated: ask for access on its page on the Hub, then log in: `hf auth login`."
        )
    if any(issubclass(kind, RepositoryNotFoundError) for kind in kinds):
        return FileNotFoundError(
            f"there is no folder {name} here, and the Hub shows no repository of that name. Check the name and, for a "
            "private repository, `hf auth login`."
        )
    if any(issubclass(kind, HFValidationError) for kind in kinds):
        return FileNotFoundError(f"there is no folder {name} here, and no repository of the Hub can have that name.")
    if failed(error):
        return OSError(
            f"there is no folder {name} here, and the Hub cannot be reached to look for a repository of that name; "
            "check the network and HF_ENDPOINT."
        )
    if any(issubclass(kind, LocalEntryNotFoundError) for kind in kinds):
        return OSError(f"{name} is neither a folder here nor in the cache, and the Hub is not to be asked.")
    return None


def commit_in_cache(path: Path, name: str) -> str:
    """The commit of a file that lies in the Hub's cache, under `.../snapshots/<commit>/<name>`.

    Args:
        path: Where it lies.
        name: Its name in the repository.
    """
    return path.parents[name.count("/")].name


def cached_snapshot(repo_id: str, revision: str | None = None, cache_dir: str | Path | None = None) -> Path | None:
    """The folder in which the cache holds what was fetched of a repository; None where it holds nothing."""
    try:
        # The pattern of no file: it counts what lies there as complete, however little it is.
        return Path(
            snapshot_download(
                repo_id, revision=revision, cache_dir=cache_dir, local_files_only=True, allow_patterns=[]
            )
        )
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those behind it."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


@contextmanager
def reachable() -> Iterator[None]:
    """Turns errors of the connection inside into an `OSError`, which those of the Hub itself are already.

    A server that takes a request and stays silent counts as one that cannot be reached. It has 10 seconds, or what
    HF_HUB_ETAG_TIMEOUT and HF_HUB_DOWNLOAD_TIMEOUT say, where that is more. Where `huggingface_hub` asks again by
    itself, that is after 8 times 10 and its own waits of 23, less than two minutes in all.
    """
    with never_silent(max(READING, constants.HF_HUB_ETAG_TIMEOUT, constants.HF_HUB_DOWNLOAD_TIMEOUT)):
        try:
            yield
        except TransportError as error:
            if isinstance(error, OSError):
                raise
            raise OSError(f"the Hub cannot be reached; check the network and HF_ENDPOINT ({_kind(error)}).") from error


@contextmanager
def never_silent(seconds: float) -> Iterator[None]:
    """Lets no request of `huggingface_hub` wait for a silent server longer than so.

    Most of them it sends without any limit: a server that takes them and never answers would hold the program for
    good. Others it repeats six times with a minute for each.

    Args:
        seconds: Without a byte after which a request has failed.
    """
    hooks = get_session().event_hooks
    if _limit not in hooks["request"]:
        get_session().event_hooks = {**hooks, "request": [*hooks["request"], _limit]}
    with _lock:
        _limits.append(seconds)
    try:
        yield
    finally:
        with _lock:
            _limits.remove(seconds)


def _limit(request: Any) -> None:
    """A hook of the HTTP client. Threads of the client do not inherit contexts, so the limit is the process's."""
    with _lock:
        if not _limits:
            return
        longest = max(_limits)
    timeouts = request.extensions.get("timeout", {})
    kinds = ("connect", "read", "write", "pool")
    request.extensions["timeout"] = {kind: min(timeouts.get(kind) or longest, longest) for kind in kinds}


def _kind(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")
