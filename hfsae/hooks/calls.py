"""Which tokens a forward pass is about: where each row stands, which are padding, where the prompt ends.

An activation does not say which tokens it belongs to; the call that made it does. What a call says differs from model
to model and from release to release (`past_key_values` was renamed to `cache`). So arguments are told by what they
are, and the arguments of `generate` are noted as they are given.
"""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from hfsae.hooks.generating import Prompt, each_beam, told_of_generate
from hfsae.hooks.passes import Listener, Passes
from hfsae.hooks.points import HookPointError
from hfsae.hooks.sequences import Sequence, Sequences, carries, is_fresh, length


@dataclass(frozen=True)
class Call:
    """The tokens of one forward pass.

    A slot counts everything that stands before a row in its sequence: padding, what is in the cache, virtual tokens. A
    position counts the text's own tokens alone.

    Attributes:
        shape: (batch, rows).
        device: Where the tokens are.
        start: The slot of the first row.
        virtual: How many virtual tokens stand before the text.
        prompt_end: The slot after the prompt's last.
        token_ids: As the model, or the ones around it, were given them.
        mask: (batch, slots up to the last row) or of these rows alone; None where nothing is padding.
        prompt_mask: (batch, the prompt's own tokens), where the call is one of `generate` and it was given one.
        position_ids: (batch or 1, rows), where the model was given them.
    """

    shape: tuple[int, int]
    device: torch.device
    start: int
    virtual: int
    prompt_end: int
    token_ids: Tensor | None
    mask: Tensor | None
    prompt_mask: Tensor | None
    position_ids: Tensor | None

    @property
    def ids(self) -> Tensor | None:
        """Token ids (batch, rows), -1 for virtual tokens; None for embeddings of which nothing says what they are."""
        if self.token_ids is None:
            return None
        missing = self.shape[1] - self.token_ids.shape[1]
        return self.token_ids if not missing else F.pad(self.token_ids, (missing, 0), value=-1)

    @cached_property
    def real(self) -> Tensor:
        """(batch, rows) bool, False for padding and virtual tokens."""
        rows = self.shape[1]
        if self.mask is None:
            real = torch.ones(self.shape, dtype=torch.bool, device=self.device)
        else:
            real = self.mask[:, -rows:].to(self.device, torch.bool, copy=True)
        if self.virtual > self.start:
            real[:, : self.virtual - self.start] = False
        return real

    @cached_property
    def positions(self) -> Tensor:
        """(batch or 1, rows): how many of the text's tokens stand before each; negative for virtual tokens."""
        rows = self.shape[1]
        if self.position_ids is not None:
            positions = self.position_ids.to(self.device)
        elif self.mask is not None and self.mask.shape[1] == self.start + rows:
            positions = (self.mask.long().cumsum(1) - 1)[:, -rows:].to(self.device)
        else:
            positions = torch.arange(self.start, self.start + rows, device=self.device)[None]
        return positions - self.virtual if self.virtual else positions

    @property
    def slots(self) -> Tensor:
        """(rows,)"""
        return torch.arange(self.start, self.start + self.shape[1], device=self.device)

    @property
    def generated(self) -> Tensor:
        """(batch, rows) bool: what comes after the prompt."""
        return (self.slots >= self.prompt_end).expand(self.shape)

    @property
    def last(self) -> Tensor:
        """(batch, rows) bool: the prompt's last token that is no padding, and all that come after the prompt."""
        ends_later = self.prompt_mask is None and self.start + self.shape[1] < self.prompt_end
        if self.start >= self.prompt_end or ends_later:
            return self.generated
        mask, first = self.real[:, : self.prompt_end - self.start], self.start
        if self.prompt_mask is not None:
            mask, first = self.prompt_mask.bool(), self.prompt_end - self.prompt_mask.shape[1]
        slots = torch.arange(first, self.prompt_end, device=mask.device)
        # A row of padding alone has no last token: -1 is no slot.
        last = torch.where(mask, slots, -1).amax(1, keepdim=True).to(self.device)
        return self.generated | (self.slots == last)


class CallRecord(Listener):
    """Notes the calls of a model while it is open; `call` is the one whose activations pass now.

    Args:
        model: The model whose `generate` may be called.
        passes: Its forward passes.
        prompt_length: How many tokens the prompt has, for a model that is called by hand. Without it the prompt is
            what `generate` was given, or what the first call of a sequence holds.
        wrapper: What is around the model; its `generate` may call the model in a way of its own.

    Raises:
        ValueError: If the prompt's length is negative.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        passes: Passes,
        prompt_length: int | None = None,
        wrapper: nn.Module | None = None,
    ):
        self._model = model
        self._around = [model] if wrapper is None or wrapper is model else [model, wrapper]
        self._passes = passes
        if prompt_length is not None and prompt_length < 0:
            raise ValueError(f"prompt_length is {prompt_length}: expected how many tokens the prompt has, 0 or more.")
        self._prompt_length = prompt_length
        self._prompts: list[Prompt] = []
        self._sequences = Sequences()
        self._given = _Given()
        self._call: Call | None = None
        passes.tell(self)

    @contextmanager
    def open(self) -> Iterator["CallRecord"]:
        """Listens to `generate`; leaving ends that."""
        with ExitStack() as stack:
            for model in self._around:
                stack.enter_context(told_of_generate(model, self))
            yield self

    @property
    def call(self) -> Call | None:
        """The call under way, or the last one; None where only a part of the model was called, without tokens."""
        if self._call is None:
            self._call = self._given.call(self._prompt_length)
        return self._call

    def begins(self) -> None:
        """A forward pass begins."""
        self._given, self._call = _Given(), None

    def called(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """A model is called: what it is given completes or corrects what the ones around it were given."""
        parameters = _parameters(type(module))
        if "decoder_input_ids" in parameters:  # its encoder and its decoder are models that have tokens of their own
            self._given = _Given()
            return
        arguments = dict(zip(parameters, args, strict=False)) | kwargs
        self._given.add(arguments, self._prompts[-1] if self._prompts else None, self._sequences)

    def ends(self, output: Any) -> None:
        """A forward pass has ended."""
        self._given.end(self._sequences, output)

    def generate_begins(self, arguments: dict[str, Any] | None) -> None:
        """`generate` was called with these arguments, or that of a wrapper with others."""
        encoder_decoder = bool(getattr(self._model.config, "is_encoder_decoder", False))
        config = getattr(self._model, "generation_config", None)
        self._prompts.append(Prompt() if arguments is None else Prompt.given(arguments, encoder_decoder, config))

    def generate_ends(self) -> None:
        """`generate` has returned, or failed."""
        self._prompts.pop()

    def listens(self) -> bool:
        """Whether the calling thread is the one whose calls are noted."""
        return self._passes.act()


@dataclass
class _Given:
    """What the models of one forward pass were given; the innermost one's word counts."""

    ids: Tensor | None = None
    tokens: Tensor | None = None
    mask: Tensor | None = None
    position_ids: Tensor | None = None
    carriers: tuple[Any, ...] = ()
    prompt: Prompt | None = None
    aside: bool = False
    start: int | None = None
    virtual: int = 0
    prompt_end: int = 0

    def add(self, arguments: dict[str, Any], prompt: Prompt | None, sequences: Sequences) -> None:
        """Adds what the next model inside was given."""
        ids, embeddings = arguments.get("input_ids"), arguments.get("inputs_embeds")
        tokens = ids if embeddings is None else embeddings
        if not isinstance(tokens, Tensor) or tokens.dim() < 2:
            return
        if isinstance(ids, Tensor) and ids.dim() == 2:
            self.ids = ids
        around = None if self.tokens is None or self.start is None else self.start + self.tokens.shape[1]
        self.tokens = tokens
        mask, position_ids = arguments.get("attention_mask"), arguments.get("position_ids")
        if isinstance(mask, Tensor) and mask.dim() == 2:
            self.mask = mask
        if isinstance(position_ids, Tensor) and position_ids.dim() == 2:
            self.position_ids = position_ids
        self.carriers = tuple(value for name, value in arguments.items() if carries(name, value)) or self.carriers
        rows = tokens.shape[1]
        known = sequences.find(self.carriers)
        self.aside = self.aside or (prompt is not None and self._is_aside(prompt, known))
        self.prompt = None if self.aside else prompt
        self.start = self._start(rows, self.prompt, known)
        if self.prompt is not None:
            if not self.prompt.length:
                self.prompt.length = self.start + rows
            self.virtual = self._virtual(rows, self.prompt)
            self.prompt_end = self.prompt.length + self.prompt.virtual
            return
        if around is not None:  # the models around this one know nothing of the virtual tokens that a wrapper adds
            self.virtual += max(0, self.start + rows - around)
        self.prompt_end = self.start + rows
        if known is not None and self.start > 0:
            self.virtual = max(self.virtual, known.virtual)
            if self.start >= known.prompt_end:  # else its cache was cropped, and the prompt is read again from there
                self.prompt_end = known.prompt_end
        elif self.aside and prompt is not None and prompt.negative_length is not None:
            self.prompt_end = prompt.negative_length

    def _is_aside(self, prompt: Prompt, known: Sequence | None) -> bool:
        """Whether `generate` reads another sequence than the prompt's, as guidance does with a negative prompt."""
        if known is not None and known.aside:
            return True
        if self.carriers or not prompt.passes:
            return False
        return prompt.carried or (prompt.negative_length is not None and not prompt.begins(self.ids))

    def _start(self, rows: int, prompt: Prompt | None, known: Sequence | None) -> int:
        """How many slots stand before the first row."""
        unknown: list[Any] = []
        for carrier in self.carriers:
            if (counted := length(carrier)) is not None:
                return counted
            unknown.append(carrier)
        if self.mask is not None and self.mask.shape[1] > rows:
            return self.mask.shape[1] - rows
        if unknown and known is not None:
            return known.read
        fresh = all(is_fresh(carrier) for carrier in unknown)
        if prompt is not None:
            if not prompt.passes and not fresh and prompt.has_cache:
                return max(0, prompt.length - rows)
            # A model without a cache reads everything again; one with a state that nobody counts, only what is new.
            return 0 if rows > prompt.seen else prompt.seen
        if fresh:
            return 0
        if self.position_ids is not None:
            return int(self.position_ids.min())
        raise HookPointError(
            "the model goes on from a state that was made outside of this context, and which does not say how many "
            "tokens it holds: pass position_ids, or an attention_mask over all tokens, or read the text inside."
        )

    def _virtual(self, rows: int, prompt: Prompt) -> int:
        """How many virtual tokens a wrapper has put before the text that `generate` was given."""
        assert self.start is not None
        if prompt.passes == 0:
            if prompt.ids is not None and self.ids is None:  # prompt tuning: embeddings of more rows than ids
                prompt.virtual = max(0, self.start + rows - prompt.length)
            elif self.start and not prompt.has_cache:  # prefix tuning: a cache that nobody gave
                prompt.virtual = self.start
        return prompt.virtual

    def end(self, sequences: Sequences, output: Any) -> None:
        """The pass is over: notes how far its sequences were read."""
        if self.tokens is None or self.start is None:
            return
        read = self.start + self.tokens.shape[1]
        if self.prompt is not None:
            self.prompt.seen = max(self.prompt.seen, read)
            self.prompt.passes += 1
            self.prompt.carried |= bool(self.carriers)
        given_back = output.items() if isinstance(output, Mapping) else ()
        carried = [value for name, value in given_back if carries(name, value)]
        sequences.note([*self.carriers, *carried], Sequence(read, self.prompt_end, self.virtual, self.aside))

    def call(self, prompt_length: int | None) -> Call | None:
        if self.tokens is None or self.start is None:
            return None
        batch, rows = self.tokens.shape[:2]
        position_ids, prompt = self.position_ids, self.prompt
        prompt_mask = None if prompt is None or prompt.mask is None else each_beam(prompt.mask, batch)
        return Call(
            shape=(batch, rows),
            device=self.tokens.device,
            start=self.start,
            virtual=self.virtual,
            prompt_end=self.prompt_end if prompt_length is None else prompt_length + self.virtual,
            token_ids=self._ids(batch, rows),
            mask=self._mask(rows, prompt_mask),
            prompt_mask=None if prompt_length is not None else prompt_mask,
            position_ids=position_ids if position_ids is not None and position_ids.shape[1] == rows else None,
        )

    def _ids(self, batch: int, rows: int) -> Tensor | None:
        """The rows' ids; where the innermost model is given embeddings, the ids that models around it were given."""
        assert self.start is not None
        if self.ids is not None:
            return each_beam(self.ids, batch) if self.ids.shape[1] <= rows else None
        if self.prompt is None or self.prompt.ids is None:
            return None
        ids = F.pad(each_beam(self.prompt.ids, batch), (self.virtual, 0), value=-1)[:, self.start : self.start + rows]
        return ids if ids.shape[1] == rows else None

    def _mask(self, rows: int, prompt_mask: Tensor | None) -> Tensor | None:
        """(batch, slots up to the last row), where it is known: this call's, or what `generate` was given."""
        assert self.start is not None
        end = self.start + rows
        if self.mask is not None and self.mask.shape[1] >= end:
            return self.mask[:, :end]
        if prompt_mask is not None:
            after = max(0, end - self.virtual - prompt_mask.shape[1])
            return F.pad(prompt_mask, (self.virtual, after), value=1)[:, :end]
        return self.mask if self.mask is not None and self.mask.shape[1] == rows else None


@cache
def _parameters(model_class: type[nn.Module]) -> list[str]:
    return list(inspect.signature(model_class.forward).parameters)[1:]
