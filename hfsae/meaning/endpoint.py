"""A language model behind an OpenAI-compatible server: vLLM, llama.cpp, Ollama, TGI, or a service on the web.

The key comes from the environment. It goes into one header of each request, to the host that was named and to no
other, and is never stored, logged or shown.
"""

import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from urllib.parse import urlsplit

from hfsae.meaning.chat import Conversation, beginning_of
from hfsae.meaning.posting import Passing, Poster

KEY = "HFSAE_API_KEY"
KEYS = (KEY, "OPENAI_API_KEY")
"""Variables of the environment that may hold the key; the first that is there is taken."""

_CHARACTERS_A_TOKEN = 4


class EndpointChat:
    """A chat model behind a server that speaks the protocol of OpenAI's chat completions.

    Args:
        url: The server's address up to the version: `"http://127.0.0.1:8000/v1"`.
        name: The model, as the server calls it.
        at_once: Requests at the same time.
        retries: How often a request is sent again after a failure that may pass (no connection, silence, 429, 5xx).
            The wait doubles from 0.5 s to a minute; where the server says how long to wait, it is that long.
        timeout: Seconds that the server may be silent.

    Raises:
        ValueError: If the address is none, or a number is impossible.

    Example:
        >>> chat = EndpointChat("http://127.0.0.1:8000/v1", "Qwen/Qwen3-8B")
        >>> chat.at_once
        8
    """

    def __init__(self, url: str, name: str, *, at_once: int = 8, retries: int = 6, timeout: float = 120.0):
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"the endpoint {url!r} is no address; expected one such as http://127.0.0.1:8000/v1.")
        if parts.username or parts.password or parts.query:
            raise ValueError(f"the endpoint at {parts.hostname} holds a key in its address: put it into {KEY}.")
        if not name:
            raise ValueError("no model is named: give the name by which the server knows it (--model).")
        if at_once < 1 or retries < 0 or timeout <= 0:
            raise ValueError("expected at least one request at once, no negative retries, and a positive timeout.")
        self.name, self.at_once = name, at_once
        address = f"{url.rstrip('/').removesuffix('/chat/completions')}/chat/completions"
        kept = "What was answered is kept; the same command goes on from there."
        self._poster = Poster(address, retries=retries, timeout=timeout, kept=kept, cure=_cure)

    def answers(self, conversations: Sequence[Conversation], max_new_tokens: int) -> Iterator[tuple[int, str]]:
        """See `hfsae.meaning.chat.Chat`.

        Raises:
            EndpointError: If the server cannot be reached, or says no, after all retries.
        """
        self._poster.stopped.clear()
        pool = ThreadPoolExecutor(self.at_once)
        try:
            waiting = {
                pool.submit(self._answer, conversation, max_new_tokens): number
                for number, conversation in enumerate(conversations)
            }
            failed: Exception | None = None
            for done in as_completed(waiting):
                if done.cancelled():
                    continue
                if (error := done.exception()) is None:
                    yield waiting[done], done.result()
                elif failed is None:
                    # What is under way is still waited for, and kept; nothing else is sent.
                    failed = error if isinstance(error, Exception) else RuntimeError(str(error))
                    self._poster.stopped.set()
                    for other in waiting:
                        other.cancel()
            if failed is not None:
                raise failed
        finally:
            # After Ctrl-C nobody waits for what was not sent yet.
            self._poster.stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)

    def tokens_of(self, conversation: Conversation) -> int:
        """About how many tokens: a quarter of the characters, as the server's tokenizer is not here."""
        return sum(len(message["content"]) for message in conversation) // _CHARACTERS_A_TOKEN

    def _answer(self, conversation: Conversation, max_new_tokens: int) -> str:
        # Most servers begin a new message behind one of the assistant, and a few refuse it.
        messages = conversation[:-1] if beginning_of(conversation) else conversation
        asked = {"model": self.name, "messages": messages, "max_tokens": max_new_tokens, "temperature": 0}
        key = next((os.environ[name] for name in KEYS if os.environ.get(name)), None)
        header = None if key is None else ("Authorization", "Bearer ", key)
        return self._poster.post(asked, header, _content)


def _content(body: bytes) -> str:
    """The text of the first answer; an empty one where the model said nothing."""
    try:
        text = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError):
        raise Passing("its answer is no chat completion: " + repr(body[:80].decode("utf-8", "replace"))) from None
    return text if isinstance(text, str) else ""


def _cure(status: int) -> str:
    if status in (401, 403):
        return f" Put a key into the environment: {' or '.join(KEYS)}."
    if status == 404:
        return " Check the address, which often ends in /v1, and the model's name (--model)."
    return ""
