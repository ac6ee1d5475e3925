"""A language model that reads the same text several times, with another activation in one place each time.

What the runs have in common is computed once: the blocks below the place answer from memory. And no run ever holds a
logit for every token. It ends with the decoder's last state, and the model's head makes logits of it in pieces. Both
shortcuts are compared with full runs on one sequence first; a model that does not stand them is run in full. No run is
given a longer sequence than that one.
"""

import copy
import inspect
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hfsae.data import TokenBatch
from hfsae.hooks import HookPoint, capture
from hfsae.hooks.devices import input_device
from hfsae.hooks.gelu import fused_gelu
from hfsae.hooks.layout import DecoderLayout
from hfsae.hooks.sites import Sites
from hfsae.hooks.splice import splicing

logger = logging.getLogger(__name__)

# Where logits must be kept for every token of every run, so many bytes of them at once.
_LOGIT_BYTES = 1 << 30
# Of the largest logit: what the order of additions may change in a head's float32 product.
_LEAST_TOLERANCE = 1e-5


def model_inputs(model: PreTrainedModel, batch: TokenBatch) -> dict[str, Tensor]:
    """What the model is called with, where it wants it."""
    device = input_device(model)
    return {"input_ids": batch.input_ids.to(device), "attention_mask": batch.attention_mask.to(device)}


class SplicedModel:
    """Runs a language model over one batch at a time: `read` it, then `write` into a place, any number of times.

    What a run gives is called its final state: (batch, seq, ...), of which `logits` makes logits.

    Args:
        model: A language model in evaluation mode. Between calls nothing of this is on it.
        reads: The places whose activations `read` gives.
        writes: The places that `write` writes to; `read` gives their activations too.
        inputs: A first batch (`input_ids`, `attention_mask`), on whose first sequence the shortcuts are checked.

    Attributes:
        vocabulary: Number of logits a position has.
        memory: What `read` keeps for `write` of the batch that was read last. Whoever reads several batches before
            the first `write` keeps each one's, and puts it back.
        shortcuts: Whether the model stands them.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        reads: Iterable[HookPoint],
        writes: Iterable[HookPoint],
        inputs: Mapping[str, Tensor],
    ):
        self._model = model
        self._writes = list(dict.fromkeys(writes))
        self._places = list(dict.fromkeys([*reads, *self._writes]))
        self._sites = Sites.at(model, self._places)
        self.vocabulary: int = model.config.get_text_config().vocab_size
        accepted = inspect.signature(model.forward).parameters
        self._options = {"use_cache": False} if "use_cache" in accepted else {}
        self.memory: dict[nn.Module, Any] = {}
        self._decoder_output: type = tuple
        self._longest = inputs["input_ids"].shape[1]
        self.shortcuts = False
        layout = DecoderLayout.find(model)
        if layout is not None and self._inside(layout.decoder_path):
            self._end = HookPoint(layout.decoder_path, "output")
            self._end_site = Sites.at(model, [self._end])
            self._decoder = model.get_submodule(layout.decoder_path)
            self._below = {place: _blocks_below(place, layout) for place in self._writes}
            self._check({name: value[:1] for name, value in inputs.items()})

    def read(self, inputs: Mapping[str, Tensor]) -> tuple[dict[HookPoint, Tensor], Tensor]:
        """The untouched model's activations at all places, (batch, seq, d) each, and its final state."""
        with capture(self._model, self._sites) as activations, self._remembering():
            final = self.run(inputs)
        return {place: activations[place] for place in self._places}, final

    def write(self, inputs: Mapping[str, Tensor], place: HookPoint, activation: Tensor) -> Tensor:
        """The final state of the batch that was read last, with `activation` (batch, seq, d) in one place."""
        below = self._below[place] if self.shortcuts else []
        with ExitStack() as stack:
            if below:
                remembered = self.memory[below[-1]]
                # A copy each time, because some models write into what their blocks return.
                stack.enter_context(_answering(below, lambda: copy.deepcopy(remembered)))
            passes = stack.enter_context(self._sites.passes())
            stack.enter_context(splicing(self._sites[place], lambda _: activation, passes))
            return self.run(inputs)

    def logits(self, final: Tensor) -> Tensor:
        """Logits (n, vocabulary) of n positions of a final state, (n, ...)."""
        if not self.shortcuts:
            return final
        # Laid out in sequences that the model can read: its embeddings run even where its decoder does not.
        n_rows = len(final)
        sequences = -(-n_rows // self._longest)
        length = -(-n_rows // sequences)
        padding = final.new_zeros(sequences * length - n_rows, *final.shape[1:])
        states = torch.cat([final, padding]).unflatten(0, (sequences, length))
        ids = torch.zeros(sequences, length, dtype=torch.long, device=input_device(self._model))
        with _answering([self._decoder], lambda: self._decoder_output(last_hidden_state=states)):
            return self._model(input_ids=ids, **self._options).logits.flatten(0, 1)[:n_rows]

    def sequences_at_once(self, length: int, runs: int) -> int | None:
        """How many sequences fit where the final states of so many runs are kept; None for any number."""
        return None if self.shortcuts else max(1, _LOGIT_BYTES // (4 * length * self.vocabulary * runs))

    def run(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """The final state of a batch, with whatever hooks the caller has hung on the model; differentiable."""
        with fused_gelu(self._model):
            if not self.shortcuts:
                return self._model(**inputs, **self._options).logits
            with capture(self._model, self._end_site, detach=not torch.is_grad_enabled()) as end:
                return end.run(**inputs)[self._end]

    @contextmanager
    def _remembering(self) -> Iterator[None]:
        """Keeps what the last of the blocks below each place returns."""
        self.memory = {}

        def remember(block: nn.Module, _: Any, output: Any) -> None:
            self.memory[block] = copy.deepcopy(output)

        with ExitStack() as hooks:
            for below in self._below.values() if self.shortcuts else ():
                if below:
                    hooks.callback(below[-1].register_forward_hook(remember).remove)
            yield

    def _inside(self, decoder_path: str) -> bool:
        """Whether nothing is read or written outside the decoder, whose last state ends a run."""
        return bool(decoder_path) and all(place.path.startswith(f"{decoder_path}.") for place in self._places)

    def _check(self, inputs: Mapping[str, Tensor]) -> None:
        """Takes the shortcuts if they change nothing, neither in the untouched run nor where the activation is 0.

        Logits are made of the states in their order and, in a sequence of their own, backwards, then of some of them:
        so a head that looks at a token, at its position or at its neighbours shows itself.
        """

        def finals() -> list[Tensor]:
            activations, final = self.read(inputs)
            zeroed = [self.write(inputs, place, torch.zeros_like(activations[place])) for place in self._writes]
            return [run.flatten(0, 1) for run in (final, *zeroed)]

        def see(_: nn.Module, __: Any, output: Any) -> None:
            self._decoder_output = type(output)

        with ExitStack() as hooks:
            hooks.callback(self._decoder.register_forward_hook(see).remove)
            full = finals()
        self.shortcuts = True
        try:
            self.shortcuts = all(
                _equal(self.logits(arranged(final)), arranged(known))
                for final, known in zip(finals(), full, strict=True)
                for arranged in (_and_backwards, _first_half)
            )
        except Exception as error:  # whatever a head fails with that is not one of the decoder's last state alone
            self.shortcuts = False
            logger.debug("a run with shortcuts failed: %s", error)
        if not self.shortcuts:
            logger.info("%s does not stand shortcuts: every run is a full one.", type(self._model).__name__)


def _blocks_below(place: HookPoint, layout: DecoderLayout) -> list[nn.Module]:
    """The blocks whose outputs do not depend on a change at a place."""
    layer = layout.layer_of(place.path)
    if layer is None:
        return []
    is_block_output = place == HookPoint(layout.block_path(layer), "output")
    return list(layout.blocks[: layer + 1 if is_block_output else layer])


def rounding_of(logits: Tensor, least: float) -> Tensor:
    """() float32, how far rounding moves logits: a share of the largest finite one.

    Args:
        logits: Of any shape.
        least: The smallest share.
    """
    share = max(4 * torch.finfo(logits.dtype).eps, least)
    return share * logits.float().abs().masked_fill(logits.isinf(), 0).max()


def agree(logits: Tensor, others: Tensor, tolerance: Tensor) -> bool:
    """Whether logits of one shape are as good as equal; −inf, which rules a token out, equals itself."""
    return bool(((logits == others) | ((logits.float() - others.float()).abs() <= tolerance)).all())


@contextmanager
def _answering(modules: Iterable[nn.Module], answer: Callable[[], Any]) -> Iterator[None]:
    """Lets modules return an answer instead of computing one; their hooks run as ever."""
    own = {module: vars(module).get("forward") for module in modules}
    try:
        for module in own:
            module.forward = lambda *_, **__: answer()
        yield
    finally:
        for module, forward in own.items():
            if forward is None:
                vars(module).pop("forward", None)
            else:  # accelerate's, which moves weights around
                module.forward = forward


def _and_backwards(rows: Tensor) -> Tensor:
    return torch.cat([rows, rows.flip(0)])


def _first_half(rows: Tensor) -> Tensor:
    return rows[: (len(rows) + 1) // 2]


def _equal(logits: Tensor, known: Tensor) -> bool:
    """Equal but for the order of additions in the head's product, which is another one where it has more rows."""
    return logits.shape == known.shape and agree(logits, known, rounding_of(known, _LEAST_TOLERANCE))
