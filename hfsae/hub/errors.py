"""What to do when the Hub refuses: every refusal in one sentence with its remedy."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import (
    BadRequestError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hfsae.connection import WRITING, TransportError, behind, never_silent
from hfsae.hub.backoff import asked_wait

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
        with never_silent(WRITING):
            yield
    except Exception as raised:
        error, status = behind(raised), None
        if isinstance(error, HfHubHTTPError):
            status = error.response.status_code
            what = _remedy(error, raised, repo_id, revision)
        elif isinstance(error, OfflineModeIsEnabled):
            what = "HF_HUB_OFFLINE is set; unset it and push again."
        elif isinstance(error, LocalTokenNotFoundError):
            what = "there is no token; log in with `hf auth login`."
        elif isinstance(error, json.JSONDecodeError):
            what = "what answers is not the Hub, or is out of order; check HF_ENDPOINT and push again later."
        elif isinstance(error, TransportError | LocalEntryNotFoundError):
            what = (
                "the Hub cannot be reached; check the network and HF_ENDPOINT and push again, which sends nothing "
                "twice."
            )
        else:
            raise
        # The client's own error would show a token that the server repeats.
        cause = None if isinstance(error, HfHubHTTPError) and _repeats_the_token(error) else error
        raise PushError(f"{repo_id} was not pushed: {what}", status) from cause


def _remedy(error: HfHubHTTPError, raised: Exception, repo_id: str, revision: str | None) -> str:
    status, namespace = error.response.status_code, repo_id.partition("/")[0]
    said = _without_token(error, error.server_message or "")
    if isinstance(error, BadRequestError) and raised is not error and isinstance(raised, ValueError):
        # The client checks the card's metadata before it sends files, and wraps a refusal in a ValueError.
        problems = " ".join(_without_token(error, str(raised)).split())
        return f"the Hub refuses the metadata of a card ({problems}); mend them in README.md and push again."
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
        wait = f"{asked:,.0f} s" if (asked := asked_wait(error)) else "some minutes"
        return f"the Hub limits how many requests an account makes; wait {wait} and push again."
    if status >= 500:
        return f"the Hub is out of order (HTTP {status}); push again later, which sends nothing twice."
    return f"the Hub refuses it (HTTP {status}: {said}); mend what it names and push again."


def _sent_token(error: HfHubHTTPError) -> str:
    return error.response.request.headers.get("Authorization", "").removeprefix("Bearer ")


def _repeats_the_token(error: HfHubHTTPError) -> bool:
    sent = _sent_token(error)
    return bool(sent) and sent in str(error)


def _without_token(error: HfHubHTTPError, said: str) -> str:
    """What a server says, less the token, should it repeat it."""
    sent = _sent_token(error)
    return said.replace(sent, "***") if sent else said


def usable_token(token: str | bool | None) -> str | bool | None:
    """The token without the white space that comes with copying it.

    Args:
        token: A token; True for the one that is stored, which must be there; False for none; None for the stored one
            where there is one.

    Raises:
        ValueError: If it holds what no token can; it is not repeated.
    """
    if token is None or isinstance(token, bool):
        return token
    token = token.strip()
    # An HTTP library would name it in full in its own error.
    if not (token.isascii() and token.isprintable() and token) or " " in token:
        raise ValueError("the token is empty or holds characters that no token has; copy it again.")
    return token
