"""Language models that answer: what labelling asks of them, and one of transformers that runs here."""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import torch
from transformers import PreTrainedModel

from hfsae.hooks.devices import input_device
from hfsae.hooks.limits import context_length_of
from hfsae.host_memory import give_freed_memory_back
from hfsae.language_model import find, load, tokenizer_of
from hfsae.model_kwargs import checked

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

Conversation: TypeAlias = list[dict[str, str]]
"""Messages with `role` and `content`. A last one of the `assistant` is the beginning of the answer."""


class Chat(Protocol):
    """A language model that answers conversations.

    Attributes:
        name: Which one; it is recorded with what it wrote.
        at_once: Conversations that it takes at once.
    """

    name: str
    at_once: int

    def answers(self, conversations: Sequence[Conversation], max_new_tokens: int) -> Iterator[tuple[int, str]]:
        """The answer to each conversation with its number, in the order in which they come; always the likeliest one.

        Where the beginning of an answer is given and the model goes on from it, it is part of the answer.

        Args:
            conversations: What is asked.
            max_new_tokens: Tokens of an answer, at most.

        Raises:
            OSError: If the model cannot be reached, or does not want to answer.
            ValueError: If a conversation is longer than it can read.
        """
        ...

    def tokens_of(self, conversation: Conversation) -> int:
        """How many tokens a conversation has, or about how many."""
        ...


class LocalChat:
    """A chat model of transformers that runs here.

    Args:
        name: Hub id or folder of a model, or of a PEFT adapter.
        batch_size: Conversations at once.
        revision: Commit, branch or tag on the Hub.
        dtype: What it computes in, as `"bfloat16"`; None: what its weights are saved in.
        model_kwargs: For `from_pretrained`: `{"quantization_config": ...}`.
        device: Where it runs; None: the first GPU, or else the CPU.

    Raises:
        OSError: If there is no such model.
        ValueError: If it has no chat template, or does not generate text.

    Example:
        >>> chat = LocalChat("HuggingFaceTB/SmolLM2-135M-Instruct")  # doctest: +SKIP
        >>> dict(chat.answers([[{"role": "user", "content": "Say yes."}]], max_new_tokens=3))  # doctest: +SKIP
        {0: 'Yes.'}
    """

    def __init__(
        self,
        name: str,
        *,
        batch_size: int = 8,
        revision: str | None = None,
        dtype: str | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
        device: str | torch.device | None = None,
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, expected 1 or more.")
        if dtype is not None and not isinstance(getattr(torch, dtype, None), torch.dtype):
            raise ValueError(f"dtype is {dtype!r}, expected one of torch's, such as 'bfloat16'.")
        origin = find(name, revision, checked(model_kwargs or {}))
        # What is recorded, and published, names no folder of this machine.
        self.name, self.at_once = Path(name).resolve().name if os.path.isdir(name) else name, batch_size
        # The tokenizer first: it is read in a moment, and says whether this is a chat model at all.
        self._tokenizer = _chat_tokenizer(name, tokenizer_of(origin))
        quantised = "quantization_config" in origin.kwargs
        self._model: PreTrainedModel = load(origin, **({} if dtype is None else {"dtype": dtype}))
        if not quantised and getattr(self._model, "hf_device_map", None) is None:
            self._model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))  # type: ignore[arg-type]
        if not self._model.can_generate():
            raise ValueError(f"{name} does not generate text; expected a causal language model that chats.")
        self._longest = context_length_of(self._model)
        self._has_system = _takes_system(self._tokenizer)

    @property
    def model(self) -> PreTrainedModel:
        """The model."""
        return self._model

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """Its tokenizer."""
        return self._tokenizer

    def rendered(self, conversation: Conversation) -> str:
        """A conversation in the model's chat template, as it reads it; its last message is begun by the assistant."""
        asked = conversation if self._has_system else without_system(conversation)
        return str(self._tokenizer.apply_chat_template(asked, continue_final_message=True, tokenize=False))

    def refuse_long(self, prompt: int) -> None:
        """Refuses a prompt of more tokens than the model reads.

        Raises:
            ValueError: With both numbers.
        """
        if self._longest is not None and prompt > self._longest:
            raise ValueError(f"a prompt of {prompt} tokens does not fit the context of {self.name} ({self._longest}).")

    def answers(self, conversations: Sequence[Conversation], max_new_tokens: int) -> Iterator[tuple[int, str]]:
        """See `Chat`; batches are of about the same length, so that little is padding."""
        lengths = [self.tokens_of(conversation) for conversation in conversations]
        longest = max(lengths, default=0)
        if self._longest is not None and longest + max_new_tokens > self._longest:
            raise ValueError(
                f"a prompt of {longest} tokens and an answer of {max_new_tokens} do not fit the context of "
                f"{self.name} ({self._longest}): show fewer examples (n_shown, shown_at_once), or take another model."
            )
        order = sorted(range(len(conversations)), key=lambda number: -lengths[number])
        for first in range(0, len(order), self.at_once):
            numbers = order[first : first + self.at_once]
            asked = [conversations[number] for number in numbers]
            texts = self._generate(asked, max_new_tokens)
            give_freed_memory_back()
            yield from zip(numbers, map(str.__add__, map(beginning_of, asked), texts), strict=True)

    def tokens_of(self, conversation: Conversation) -> int:
        """How many tokens the conversation has in the model's chat template."""
        return len(self._encode([conversation])["input_ids"][0])

    @torch.no_grad()
    def _generate(self, conversations: Sequence[Conversation], max_new_tokens: int) -> list[str]:
        inputs = self._encode(conversations, padding=True, return_tensors="pt").to(input_device(self._model))
        made = self._model.generate(  # type: ignore[operator]
            **inputs,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            # Settings that a model brings along for sampling mean nothing here, and would be warned of.
            temperature=None,
            top_p=None,
            top_k=None,
            pad_token_id=self._tokenizer.pad_token_id,
        )
        new = made[:, inputs["input_ids"].shape[1] :]
        return self._tokenizer.batch_decode(new, skip_special_tokens=True)

    def _encode(self, conversations: Sequence[Conversation], **options: Any) -> Any:
        chats = [chat if self._has_system else without_system(chat) for chat in conversations]
        begun = bool(beginning_of(chats[0]))
        if any(bool(beginning_of(chat)) != begun for chat in chats):
            raise ValueError("either all answers of a batch have a beginning or none has.")
        return self._tokenizer.apply_chat_template(
            chats,
            add_generation_prompt=not begun,
            continue_final_message=begun,
            tokenize=True,
            return_dict=True,
            **options,
        )


def beginning_of(conversation: Conversation) -> str:
    """The beginning of the answer that a conversation gives; empty where it gives none."""
    return conversation[-1]["content"] if conversation[-1]["role"] == "assistant" else ""


def without_system(conversation: Conversation) -> Conversation:
    """A conversation whose system message stands at the beginning of the first of the user."""
    if conversation[0]["role"] != "system" or len(conversation) < 2:
        return conversation
    first, second, *rest = conversation
    return [{"role": second["role"], "content": f"{first['content']}\n\n{second['content']}"}, *rest]


def _chat_tokenizer(name: str, tokenizer: "PreTrainedTokenizerBase") -> "PreTrainedTokenizerBase":
    if not tokenizer.chat_template:
        raise ValueError(
            f"{name} has no chat template, so it is no model that answers: name one that was trained to chat (its "
            "name often ends in -Instruct or -it), or a server (--endpoint URL)."
        )
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.bos_token
    return tokenizer


def _takes_system(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether a chat template has a place for a system message; that of Gemma raises at one, others leave it out."""
    asked = [{"role": "system", "content": "zyxw"}, {"role": "user", "content": "a"}]
    try:
        return "zyxw" in str(tokenizer.apply_chat_template(asked, tokenize=False))
    except Exception:  # templates raise what they like
        return False
