"""What an activation source is, and the main one: a frozen language model that reads text.

A source gives chunks: for each hook point a tensor (rows, d), with the same number of rows everywhere. Row i belongs
to the same token at every hook point.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hfsae.data.narrow import LowPrecision
from hfsae.data.prefetch import Prefetcher
from hfsae.data.token_blocks import TokenBatch, TokenBlocks
from hfsae.finite_numbers import all_finite, count_non_finite
from hfsae.hooks import capture, width
from hfsae.hooks.devices import input_device
from hfsae.hooks.gelu import fused_gelu
from hfsae.hooks.limits import context_length_of, refuse_unknown_ids, refuse_without_ids
from hfsae.hooks.sites import Sites
from hfsae.hooks.tokens import of_tokens

_ADVICE = "float16 overflows in many language models, use bfloat16 or float32; else check the model's weights"


class NonFiniteActivationsError(RuntimeError):
    """Activations hold NaN or infinity."""


class RowSource(Protocol):
    """What `ActivationStream` reads: an iterator over chunks that can tell its place and go back to it."""

    @property
    def widths(self) -> dict[str, int]:
        """The size d of the activations at each hook point; the keys are those of the chunks."""
        ...

    def __iter__(self) -> Iterator[dict[str, Tensor]]: ...

    def __next__(self) -> dict[str, Tensor]:
        """The next chunk, which may have no row."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Where the next chunk begins, in values that JSON can hold."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to where `state_dict` was called."""
        ...

    def close(self) -> None:
        """Ends threads; the source is not used again."""
        ...

    # A source that can pass over its next chunk without making it has `skip() -> int`, which gives the chunk's rows.


class LMActivations:
    """Runs a frozen language model over token blocks; one pass, stopped after the last hook point, feeds them all.

    The model is put into eval mode and run in inference mode. Text is tokenised ahead in a thread.

    Args:
        model: A Hugging Face causal LM.
        blocks: The tokens to read; they belong to this source until it is closed.
        hook_points: Where to read, as `capture` takes it; the names are the keys of the chunks.
        dtype: What the rows are cast to.
        prefetch: How many batches of tokens to prepare ahead; 0 makes each one when it is needed, without a thread.
        autocast_dtype: Run the model under autocast to this dtype; a float32 model on a CPU with weights in it too
            (`hfsae.data.narrow`), which takes copies of them.

    Raises:
        HookPointError: If the model lacks a hook point.
        ValueError: If the blocks are longer than the model's context. While iterating, if a token is not in its
            vocabulary or a hook point does not see every token.
        NonFiniteActivationsError: While iterating, if a row holds NaN or infinity; found at once on a CPU, elsewhere
            within 16 chunks.

    Example:
        >>> source = LMActivations(model, blocks, ["resid_post.4", "resid_post.8"])
        >>> {name: rows.shape for name, rows in next(source).items()}
        {'resid_post.4': torch.Size([4064, 768]), 'resid_post.8': torch.Size([4064, 768])}
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: TokenBlocks,
        hook_points: str | Sequence[str],
        *,
        dtype: torch.dtype = torch.bfloat16,
        prefetch: int = 2,
        autocast_dtype: torch.dtype | None = None,
    ) -> None:
        refuse_without_ids(model)
        context = context_length_of(model)
        if context is not None and blocks.context_length > context:
            raise ValueError(
                f"context_length is {blocks.context_length}, but the language model's context is {context} tokens"
            )
        self._sites = Sites.find(model, hook_points)
        self._sites.check()
        self._widths = {name: width(model, point) for name, point in self._sites.hook_points.items()}
        self._model = model.eval()
        self._device = input_device(model)
        self._dtype = dtype
        self._precision = LowPrecision(model, self._sites.hook_points.values(), autocast_dtype)
        self._prefetcher = Prefetcher(blocks, prefetch) if prefetch else None
        self._batches = blocks if self._prefetcher is None else self._prefetcher
        self._late_check = _LateCheck()

    @property
    def widths(self) -> dict[str, int]:
        """The size of the activations at each hook point."""
        return self._widths

    @property
    def precision(self) -> torch.dtype:
        """What the model's products are made in."""
        return self._precision.dtype

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return self

    def __next__(self) -> dict[str, Tensor]:
        batch = next(self._batches)
        refuse_unknown_ids(batch.input_ids, self._model)
        chunk = self._read(batch)
        if self._device.type == "cpu":
            check_finite(chunk)
        else:
            self._late_check.add(chunk)
        return chunk

    def _read(self, batch: TokenBatch) -> dict[str, Tensor]:
        inputs = {"input_ids": _send(batch.input_ids, self._device)}
        # Of a mask that masks nothing the model would ask the device whether it does, and wait for the answer.
        if not batch.attention_mask.all():
            inputs["attention_mask"] = _send(batch.attention_mask, self._device)
        with capture(self._model, self._sites) as activations:
            with self._precision.entered(), torch.inference_mode(), fused_gelu(self._model):
                activations.run(**inputs)
            # Found on the CPU: a boolean mask on an accelerator would wait for the model to count its rows.
            kept = batch.keep.flatten().nonzero().squeeze(1)
            # Outside inference mode, so that the rows are ordinary tensors that autograd may save.
            return {
                name: _rows(name, activations[point], batch, kept).to(self._dtype)
                for name, point in self._sites.hook_points.items()
            }

    def skip(self) -> int:
        """Passes over the next chunk without a pass of the model; gives the rows that it would have had."""
        return int(next(self._batches).keep.sum())

    def state_dict(self) -> dict[str, Any]:
        """The place in the text where the next chunk begins."""
        return self._batches.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to where `state_dict` was called."""
        self._batches.load_state_dict(state)

    def close(self) -> None:
        """Ends the thread that tokenises, and frees what a pass in low precision needs."""
        self._precision.close()
        if self._prefetcher is not None:
            self._prefetcher.close()


def _rows(name: str, activation: Tensor, batch: TokenBatch, kept: Tensor) -> Tensor:
    rows = of_tokens(activation, batch.input_ids.shape, name).flatten(0, 1)
    return rows.index_select(0, _send(kept, rows.device))


def _send(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device; to CUDA from pinned memory, which does not wait for what the device has yet to do."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class _LateCheck:
    """`check_finite` off the CPU: asked for every chunk, the host would wait for the model and the device for it."""

    _CHUNKS = 16

    def __init__(self) -> None:
        self._finite: dict[str, Tensor] = {}
        self._chunks = 0

    def add(self, chunk: Mapping[str, Tensor]) -> None:
        """Asks the device about a chunk, and looks at the answers every 16 chunks."""
        for name, rows in chunk.items():
            finite = all_finite(rows)
            self._finite[name] = self._finite[name] & finite if name in self._finite else finite
        self._chunks += 1
        if self._chunks < self._CHUNKS:
            return
        for name, finite in self._finite.items():
            if not finite:
                raise NonFiniteActivationsError(
                    f"NaN or infinity at {name}, in one of the last {self._CHUNKS} batches of text: {_ADVICE}"
                )
        self._finite, self._chunks = {}, 0


def check_finite(chunk: Mapping[str, Tensor]) -> None:
    """Refuses a chunk that holds NaN or infinity, asked with one reduction a hook point.

    Args:
        chunk: For each hook point a tensor (rows, d).

    Raises:
        NonFiniteActivationsError: If there is NaN or infinity, naming the hook point.
    """
    for name, rows in chunk.items():
        if not all_finite(rows):
            bad = count_non_finite(rows)
            raise NonFiniteActivationsError(
                f"NaN or infinity at {name}, in {bad} of {len(rows)} rows of {rows.dtype}: {_ADVICE}"
            )
