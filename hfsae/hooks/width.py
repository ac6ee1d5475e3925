"""The size of the activation at a hook point."""

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from hfsae.hooks.capture import capture
from hfsae.hooks.devices import input_device
from hfsae.hooks.layout import DecoderLayout
from hfsae.hooks.limits import refuse_without_ids, takes_token_ids
from hfsae.hooks.names import resolve_with_layout
from hfsae.hooks.points import HookPoint
from hfsae.hooks.probe import seen_at
from hfsae.hooks.side_by_side import SideBySide

_STREAM_WIDE = {"resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_in", "mlp_out"}
"""Roles whose activation is as wide as the residual stream."""
_AROUND_A_BLOCK = {"resid_pre", "resid_post"}


def width(model: nn.Module, hook_point: str | HookPoint) -> int:
    """Size of the last dimension of the activation at a hook point.

    Known without running anything for matrices, embeddings and places that are as wide as the residual stream.
    Elsewhere the model, where it reads tokens, is run on two tokens.

    Args:
        model: A Hugging Face causal LM, its base model, or a multimodal model around one.
        hook_point: One place, as `resolve_hook_point` takes it.

    Raises:
        HookPointError: If the model has no such place.
        TypeError: If only a run could tell, and the model reads no token ids (images, sound).

    Example:
        >>> width(gpt2, "mlp_act.3")
        3072
    """
    return resolve_with_width(model, hook_point)[1]


def resolve_with_width(
    model: nn.Module, hook_point: str | HookPoint, layout: DecoderLayout | None = None
) -> tuple[HookPoint, int]:
    """One place in a model, and the size of the activation there, as `width` gives it."""
    point, layout = resolve_with_layout(model, hook_point, layout)
    return point, _width_at(model, point, layout)


def _width_at(model: nn.Module, point: HookPoint, layout: DecoderLayout | None) -> int:
    if isinstance(model, SideBySide):
        return width(model.models[model.part_of(point)], model.own(point))
    match model.get_submodule(point.path), point.side:
        case nn.Linear(in_features=size), "input":
            return size
        case nn.Linear(out_features=size), "output":
            return size
        case Conv1D(nx=size), "input":
            return size
        case Conv1D(nf=size), "output":
            return size
        case nn.Embedding(embedding_dim=size), "output":
            return size
    if layout is not None and layout.roles(point) & _STREAM_WIDE and layout.has_plain_stream(point):
        return layout.config.hidden_size
    if not takes_token_ids(model) and layout is not None and layout.roles(point) & _AROUND_A_BLOCK:
        return layout.config.hidden_size
    refuse_without_ids(model)
    seen = seen_at(model, [point], layout)[point]
    if seen is not None and seen.visits:
        return seen.shapes[-1][-1][-1]
    with capture(model, point) as activations:
        activations.run(input_ids=torch.zeros(1, 2, dtype=torch.long, device=input_device(model)))
    return activations[point].shape[-1]
