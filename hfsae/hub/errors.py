"""What to do when the Hub refuses: every refusal in one sentence with its remedy."""

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

# What every error of the transport derives from: httpx's or httpx2's, whichever huggingface_hub was built on.
TransportError: type[Exception] = HfHubHTTPError.__mro__[1]  # type: ignore[assignment]

_STORAGE_WORDS = ("storage limit", "storage patterns", "storage quota", "out of storage")


class PushError(OSError):
    """The Hub did not take a push. The message says what to do; nothing on this machine was lost.

    Args:
        message: One sentence.
        status: The HTTP status, None where no answer came.
    """

    def __init__(self, message: str, status: int | None = None):
        super().__init__(message)
        self.status = status


@contextmanager
def explained(repo_id: str, revision: str | None = None) -> Iterator[None]:
    """Turns what the Hub's client raises inside into a `PushError`.

    Args:
        repo_id: The repository.
        revision: The branch that was pushed to.
    """
    try:
        yield
    except Exception as raised:
        error, status = behind(raised), None
        if isinstance(error, HfHubHTTPError):
            status = error.response.status_code
            what = _remedy(error, status, repo_id, revision)
        elif isinstance(error, OfflineModeIsEnabled):
            what = "HF_HUB_OFFLINE is set; unset it and push again."
        elif isinstance(error, TransportError | LocalEntryNotFoundError):
            what = (
                "the Hub cannot be reached; check the network and HF_ENDPOINT and push again, which sends nothing "
                "twice."
            )
        else:
            raise
        raise PushError(f"{repo_id} was not pushed: {what}", status) from error


@contextmanager
def reachable() -> Iterator[None]:
    """Turns errors of the connection inside into an `OSError`, which those of the Hub itself are already."""
    try:
        yield
    except TransportError as error:
        if isinstance(error, OSError):
            raise
        raise OSError("the Hub cannot be reached; check the network and HF_ENDPOINT.") from error


def behind(error: BaseException) -> BaseException:
    """The error of the connection behind one in which the client tells what it was doing."""
    while isinstance(error, RuntimeError | LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return error


def _remedy(error: HfHubHTTPError, status: int, repo_id: str, revision: str | None) -> str:
    namespace, said = repo_id.partition("/")[0], _without_token(error, error.server_message or "")
    if status in (402, 403) and any(words in str(error).lower() for words in _STORAGE_WORDS):
        return f"the storage of {namespace} is full; free some or buy more, or push to another namespace."
    if isinstance(error, RevisionNotFoundError):
        return f"it has no branch {revision or 'main'!r}; a tag or a commit cannot be pushed to, so name a branch."
    if status == 401 and not isinstance(error, RepositoryNotFoundError):
        return "the Hub does not know the token; log in with `hf auth login`, or pass a token that is valid."
    if status in (401, 404):
        return f"no repository {repo_id} can be seen with this token; check the name, or ask its owner for access."
    if status == 403:
        return (
            f"the token may not write to {namespace}; use a write token of one of its members, or propose the change "
            "with create_pr=True."
        )
    if status == 409:
        return f"the Hub says that it conflicts with what is there ({said}); look at the repository and push again."
    if status == 412:
        return (
            f"somebody else pushed to {revision or 'main'} in the meantime; look at their commit, and push again if "
            "yours is to go on top of it."
        )
    if status == 413:
        return (
            "a file or the commit is larger than the Hub takes; push weights of a smaller dtype (bfloat16), or fewer "
            "SAEs at once."
        )
    if status == 429:
        return "the Hub limits how many requests an account makes; wait some minutes and push again."
    if status >= 500:
        return f"the Hub is out of order (HTTP {status}); push again later, which sends nothing twice."
    return f"the Hub refuses it (HTTP {status}: {said}); mend what it names and push again."


def _without_token(error: HfHubHTTPError, said: str) -> str:
    """What a server says, less the token, should it repeat it."""
    sent = error.response.request.headers.get("Authorization", "").removeprefix("Bearer ")
    return said.replace(sent, "***") if sent else said


def usable_token(token: str | None) -> str | None:
    """The token without the white space that comes with copying it.

    Raises:
        ValueError: If it holds what no token can; it is not repeated.
    """
    if token is None:
        return None
    token = token.strip()
    # An HTTP library would name it in full in its own error.
    if not (token.isascii() and token.isprintable() and token) or " " in token:
        raise ValueError("the token is empty or holds characters that no token has; copy it anew.")
    return token
