"""What `generate` is given, noted as it is given: where the prompt ends cannot be told from the steps that follow."""

import inspect
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from hfsae.hooks.points import HookPointError
from hfsae.hooks.sequences import is_cache


class GenerateListener(Protocol):
    """What wants to know of calls of `generate`."""

    def listens(self) -> bool:
        """Whether the calling thread is the one whose calls are noted."""
        ...

    def generate_begins(self, arguments: dict[str, Any] | None) -> None:
        """`generate` was called with these arguments; None for a wrapper's, which may take text, or anything."""

    def generate_ends(self) -> None:
        """`generate` has returned, or failed."""


@dataclass
class Prompt:
    """What `generate` was given, and what its steps have shown since.

    Attributes:
        length: How many tokens, with the tokens of a cache that was given. It is 0 until the first pass shows it,
            where a wrapper generates in a way of its own.
        ids: (batch, length), None for embeddings; -1 for tokens that are in the cache alone.
        mask: (batch, length), None where none was given.
        has_cache: Whether a cache was given too.
        negative_length: How many tokens a negative prompt has; None where nothing is guided by one.
        virtual: How many virtual tokens stand before the text.
        seen: Up to which slot the model has read.
        passes: How many forward passes have read it.
        carried: Whether a cache or state has carried it from pass to pass.
    """

    length: int = 0
    ids: Tensor | None = None
    mask: Tensor | None = None
    has_cache: bool = False
    negative_length: int | None = None
    virtual: int = 0
    seen: int = 0
    passes: int = 0
    carried: bool = False

    @classmethod
    def given(cls, arguments: Mapping[str, Any], encoder_decoder: bool, config: Any = None) -> "Prompt":
        """What a call of `generate` is given; `config` is the model's own generation config."""
        before = "decoder_" if encoder_decoder else ""
        ids = None if encoder_decoder else arguments.get("inputs")
        ids = arguments.get(f"{before}input_ids") if ids is None else ids
        embeddings = arguments.get(f"{before}inputs_embeds")
        tokens = embeddings if embeddings is not None else ids
        mask = arguments.get(f"{before}attention_mask")
        mask = mask if isinstance(mask, Tensor) and mask.dim() == 2 else None
        ids = ids if isinstance(ids, Tensor) and ids.dim() == 2 and embeddings is None else None
        length = tokens.shape[1] if isinstance(tokens, Tensor) and tokens.dim() > 1 else 1  # nothing: BOS alone
        has_cache = any(is_cache(value) for value in arguments.values())
        if has_cache and mask is not None and mask.shape[1] > length:  # the ids are what the cache lacks
            ids = None if ids is None else F.pad(ids, (mask.shape[1] - length, 0), value=-1)
            length = mask.shape[1]
        return cls(length, ids, mask, has_cache, _negative_length(arguments, config))

    def begins(self, ids: Tensor | None) -> bool:
        """Whether a sequence that is read from its start is this prompt, or goes on from it."""
        if ids is None or self.ids is None:
            return True
        ids = ids[:, : self.length]
        return ids.shape[1] == self.length and torch.equal(ids, each_beam(self.ids, len(ids)).to(ids.device))


def _negative_length(arguments: Mapping[str, Any], config: Any) -> int | None:
    """How many tokens the negative prompt of classifier-free guidance has: the prompt's last where none is given."""
    said = (
        arguments.get("guidance_scale"),
        *(getattr(one, "guidance_scale", None) for one in (arguments.get("generation_config"), config)),
    )
    scale = next((one for one in said if one is not None), None)
    if scale is None or scale == 1:
        return None
    negative = arguments.get("negative_prompt_ids")
    return negative.shape[1] if isinstance(negative, Tensor) and negative.dim() == 2 else 1


def each_beam(rows: Tensor, batch: int) -> Tensor:
    """What `generate` was given, for every beam or returned sequence."""
    return rows if len(rows) == batch else rows.repeat_interleave(max(1, batch // len(rows)), 0)


_listening: WeakKeyDictionary[nn.Module, list[GenerateListener]] = WeakKeyDictionary()
_own_generate: WeakKeyDictionary[nn.Module, dict[str, Any]] = WeakKeyDictionary()
_lock = threading.Lock()


@contextmanager
def told_of_generate(model: nn.Module, record: GenerateListener) -> Iterator[None]:
    """While open, a record is told when the `generate` of a model or a wrapper is called, whoever calls it."""
    if not hasattr(type(model), "generate"):
        yield
        return
    with _lock:
        records = _listening.setdefault(model, [])
        if not records:
            _wrap_generate(model, records)
        records.append(record)
    try:
        yield
    finally:
        with _lock:
            records.remove(record)
            if not records:
                _unwrap_generate(model)


def _wrap_generate(model: nn.Module, records: list[GenerateListener]) -> None:
    original: Callable[..., Any] = model.generate  # pyright: ignore[reportAssignmentType]
    names = list(inspect.signature(original).parameters)
    is_wrapper = not isinstance(model, PreTrainedModel)

    @wraps(original)
    def generate(*args: Any, **kwargs: Any) -> Any:
        told = _those_of_this_thread(records)
        arguments = None if is_wrapper else dict(zip(names, args, strict=False)) | kwargs
        for record in told:
            record.generate_begins(arguments)
        try:
            return original(*args, **kwargs)
        finally:
            for record in told:
                record.generate_ends()

    def init_continuous_batching(*_: Any, **__: Any) -> Any:
        raise HookPointError(
            "continuous batching runs the model in a thread of its own, in which hooks do nothing: call "
            "model.generate with a padded batch."
        )

    _own_generate[model] = {name: vars(model).get(name) for name in ("generate", "init_continuous_batching")}
    vars(model).update(generate=generate, init_continuous_batching=init_continuous_batching)


def _unwrap_generate(model: nn.Module) -> None:
    for name, own in _own_generate.pop(model).items():
        if own is None:
            del vars(model)[name]
        else:
            vars(model)[name] = own


def _those_of_this_thread(records: list[GenerateListener]) -> list[GenerateListener]:
    told = [record for record in records if record.listens()]
    if records and not told:
        warnings.warn(
            "generate runs in a thread that has not entered the context in which an SAE is attached to this model, so "
            "it runs without the SAE: enter the context in the thread that calls generate.",
            stacklevel=3,
        )
    return told
