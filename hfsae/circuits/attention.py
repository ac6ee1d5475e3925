"""Attention whose pattern is that of one prompt: noted once, then constant, so that it is linear in what it reads.

It goes through transformers' own attention interface: a function that is registered under a name, which the config
then asks for. The probabilities are those of the family's own eager function, with its sinks, caps and windows.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedConfig
from transformers.masking_utils import AttentionMaskInterface, eager_mask

_NAME = "hfsae_frozen"
_EAGER = "eager_attention_forward"

# How far the family's own output may be from probabilities times values.
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Scores:
    """What the attention of one layer made of a prompt.

    Attributes:
        queries: (1, heads, S, d), as the probabilities are made of them: turned by position, where they are.
        keys: (1, heads or fewer, S, d).
        scaling: What their products are multiplied by.
        cap: What scores are capped at; None where they are not.
        probabilities: (1, heads, S, S).
    """

    queries: Tensor
    keys: Tensor
    scaling: float
    cap: float | None
    probabilities: Tensor

    def of(self, head: int, query: int) -> Tensor:
        """(S,), the scores of all keys for one query, before a cap."""
        own = head * self.keys.shape[1] // self.queries.shape[1]
        return self.scaling * (self.keys[0, own] @ self.queries[0, head, query])

    def capped(self, scores: Tensor) -> Tensor:
        """Scores as the softmax gets them."""
        return scores if self.cap is None else self.cap * (scores / self.cap).tanh()


class AttentionPatterns:
    """The attention probabilities of one prompt, by module.

    Attributes:
        frozen: Whether the noted patterns are used; otherwise patterns are computed and noted.
        frozen_for: The modules of which some were noted.
        scores: What each module made of the prompt, once for each call.
        watched: A module whose queries and keys are kept as they pass, in `seen`; None keeps none.
        seen: (queries, keys) of the watched module.
    """

    def __init__(self) -> None:
        self.frozen = False
        self.watched: nn.Module | None = None
        self.seen: list[Tensor] = []
        self.scores: dict[nn.Module, list[Scores]] = {}
        self._calls: Counter[nn.Module] = Counter()

    @property
    def frozen_for(self) -> set[nn.Module]:
        return set(self.scores)

    @contextmanager
    def in_place(self, model: nn.Module) -> Iterator[None]:
        """One forward pass of a model with this attention; its configs are then what they were.

        Args:
            model: A model of transformers whose attention goes through `AttentionInterface`.

        Raises:
            ValueError: From inside of the pass, for attention that is more than probabilities times values.
        """
        AttentionInterface.register(_NAME, _attend)
        AttentionMaskInterface.register(_NAME, eager_mask)
        configs = _configs_of(model)
        before = [config._attn_implementation_internal for config in configs]
        self._calls.clear()
        token = _PATTERNS.set(self)
        try:
            for config in configs:
                config._attn_implementation_internal = _NAME
            yield
        finally:
            _PATTERNS.reset(token)
            for config, implementation in zip(configs, before, strict=True):
                config._attn_implementation_internal = implementation

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
    ) -> tuple[Tensor, Tensor]:
        """What the registered function does for a module."""
        if module is self.watched:
            self.seen += [query, key]
        if self.frozen:
            probabilities = self.scores[module][self._calls[module]].probabilities
            self._calls[module] += 1
            return _mixed(probabilities, value), probabilities
        mixed, probabilities = _eager_of(module)(module, query, key, value, mask, **options)
        if probabilities is None or not _close(_mixed(probabilities, value), mixed):
            raise ValueError(
                f"{type(module).__name__} does more to its values than to mix them by its probabilities: such an "
                "attention is not linear when its pattern is held."
            )
        scaling = options.get("scaling") or query.shape[-1] ** -0.5
        made = Scores(query.detach(), key.detach(), scaling, options.get("softcap"), probabilities.detach())
        self.scores.setdefault(module, []).append(made)
        return mixed, probabilities


_PATTERNS: ContextVar[AttentionPatterns] = ContextVar("the attention patterns of the pass under way")


def _attend(module: nn.Module, *args: Any, **options: Any) -> tuple[Tensor, Tensor]:
    return _PATTERNS.get().attend(module, *args, **options)


def _mixed(probabilities: Tensor, value: Tensor) -> Tensor:
    """(batch, seq, heads, d) from probabilities (1 or batch, heads, seq, seq) and values of as many heads or fewer."""
    groups = probabilities.shape[1] // value.shape[1]
    return (probabilities @ value.repeat_interleave(groups, dim=1)).transpose(1, 2).contiguous()


def _close(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool((one - other).abs().max() <= _TOLERANCE * other.abs().max())


def _eager_of(module: nn.Module) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """The family's own attention, which stands in the file of the class that asks for it."""
    for owner in type(module).__mro__:
        eager = getattr(sys.modules.get(owner.__module__), _EAGER, None)
        if eager is not None:
            return eager
    raise ValueError(
        f"{type(module).__name__} has no {_EAGER} in its file, so that its probabilities cannot be read: it does not "
        "follow transformers' attention interface."
    )


def _configs_of(model: nn.Module) -> list[PreTrainedConfig]:
    """All configs that modules of a model may ask for the attention to use."""
    found: dict[int, PreTrainedConfig] = {}
    waiting = [getattr(module, "config", None) for module in model.modules()]
    while waiting:
        config = waiting.pop()
        if isinstance(config, PreTrainedConfig) and id(config) not in found:
            found[id(config)] = config
            waiting += [getattr(config, name, None) for name in config.sub_configs]
    return list(found.values())


def attends(block: nn.Module, patterns: AttentionPatterns) -> bool:
    """Whether a block's attention went through the interface."""
    return any(module in patterns.frozen_for for module in block.modules())
