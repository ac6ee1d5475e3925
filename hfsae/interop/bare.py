"""Pickled weights without a config: Goodfire, Qwen Scope, and linear layers such as qresearch's for DeepSeek-R1.

They say nothing of themselves but their tensors' names; what a repository's name adds is read from there, what the
catalogue knows of a repository is taken from it, and the rest is the user's to say: `hook_point=...`, `k=...`.
"""

import re
from dataclasses import dataclass
from typing import Any

from hfsae.interop.draft import Draft
from hfsae.interop.places import canonical
from hfsae.interop.source import Source, renamed


@dataclass(frozen=True)
class Kind:
    """One way of naming the four tensors.

    Args:
        architecture: What they make.
        names: Ours to theirs.
    """

    architecture: str
    names: dict[str, str]


def _linear(encoder: str, decoder: str) -> dict[str, str]:
    return {
        "encoder.weight": f"{encoder}.weight",
        "encoder.bias": f"{encoder}.bias",
        "W_dec": f"{decoder}.weight.T",
        "b_dec": f"{decoder}.bias",
    }


KINDS = {
    "Goodfire": Kind("standard", _linear("encoder_linear", "decoder_linear")),
    "Qwen Scope": Kind(
        "topk",
        {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "W_dec": "W_dec.T", "b_dec": "b_dec"},
    ),
    "linear layers": Kind("standard", _linear("encoder", "decoder")),
}


def recognises(source: Source) -> bool:
    """A state dict of one of the kinds."""
    return _kind(source) is not None


def read(source: Source) -> Draft:
    """See `hfsae.interop.formats.Format`. Nothing is subtracted before encoding in any of them."""
    kind = _kind(source)
    assert kind is not None
    tensors = renamed(source.pickled, KINDS[kind].names, source)
    fields: dict[str, Any] = {"subtract_b_dec": False}
    if kind == "Qwen Scope":
        fields |= _qwen_scope(source)
    return Draft(KINDS[kind].architecture, tensors, fields, {"converted_from": kind})


def _kind(source: Source) -> str | None:
    stored = source.pickled
    for name, kind in KINDS.items():
        if {theirs.removesuffix(".T") for theirs in kind.names.values()} == stored.keys():
            return name
    return None


def _qwen_scope(source: Source) -> dict[str, Any]:
    """Model, layer and k, from `SAE-Res-Qwen3-8B-Base-W64K-L0_50/layer12.sae.pt`."""
    named = re.search(r"SAE-Res-(?P<model>.+?)-W\d+K-L0_(?P<k>\d+)", source.path)
    layer = source.number_after("layer")
    if named is None and "k" not in source.given:
        raise ValueError(
            f"{source.path} does not say how many features are active: its repository's name does. Pass k=...."
        )
    if named is None:
        return {}
    base_model = f"Qwen/{named['model']}"
    return {
        "k": int(named["k"]),
        "base_model": base_model,
        "hook_point": None if layer is None else canonical(f"resid_post.{layer}", base_model),
    }
