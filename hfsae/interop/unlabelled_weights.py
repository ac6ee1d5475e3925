"""Weights without a config: Goodfire, Qwen Scope, linear layers such as qresearch's for DeepSeek-R1, plain matrices.

They say nothing of themselves but their tensors' names. What a repository's name adds is read from there, and what the
catalogue knows of a repository is taken from it. The rest is the user's to say: `hook_point=...`, `k=...`, and for
plain matrices, which many projects call alike, `architecture=...`.
"""

import logging
import re
from collections.abc import Collection
from typing import Any

from torch import Tensor

from hfsae.interop.converted import ConvertedSAE
from hfsae.interop.foreign_names import canonical
from hfsae.interop.source import Source, renamed

logger = logging.getLogger(__name__)


def _linear(encoder: str, decoder: str) -> dict[str, str]:
    return {
        "encoder.weight": f"{encoder}.weight",
        "encoder.bias": f"{encoder}.bias",
        "W_dec": f"{decoder}.weight.T",
        "b_dec": f"{decoder}.bias",
    }


_MATRICES = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}
_THRESHOLD = {"threshold": "threshold"}
# Ways of naming the tensors, ours to theirs; Qwen Scope's are plain matrices, which many others call so too.
KINDS = {
    "Goodfire": _linear("encoder_linear", "decoder_linear"),
    "Qwen Scope": _MATRICES,
    "linear layers": _linear("encoder", "decoder"),
}
# What plain matrices can be said to be, and the tensors that are needed besides.
_ARCHITECTURES: dict[str, dict[str, str]] = {"standard": {}, "topk": {}, "jumprelu": _THRESHOLD}


def recognises(source: Source) -> bool:
    """A state dict of one of the kinds."""
    return source.bare_file(fits) is not None


def read(source: Source) -> ConvertedSAE:
    """See `hfsae.interop.formats.Format`."""
    stored = source.tensors(str(source.bare_file(fits)))
    kind = str(_kind(stored.keys()))
    if KINDS[kind] is _MATRICES:
        return _matrices(stored, source)
    # Nothing is subtracted before encoding in either of the others.
    tensors = renamed(stored, KINDS[kind], source)
    return ConvertedSAE("standard", tensors, {"subtract_b_dec": False}, {"converted_from": kind})


def fits(names: Collection[str]) -> bool:
    """Whether tensors have the names of one of the kinds."""
    return _kind(names) is not None


def _kind(names: Collection[str]) -> str | None:
    for name, kind in KINDS.items():
        besides = set(_THRESHOLD) if kind is _MATRICES else set()
        if {theirs.removesuffix(".T") for theirs in kind.values()} == set(names) - besides:
            return name
    return None


def _matrices(stored: dict[str, Any], source: Source) -> ConvertedSAE:
    """Four matrices under the names that most projects use: Qwen Scope's, or what the user says they are."""
    scope = _qwen_scope(source)
    architecture = source.given.get("architecture") or ("topk" if scope or "k" in source.given else None)
    if architecture not in _ARCHITECTURES:
        if architecture is not None:
            known = ", ".join(_ARCHITECTURES)
            raise ValueError(f"{source.path} cannot be read as {architecture!r}: architecture must be one of {known}.")
        raise ValueError(
            f"{source.path} holds no sparse autoencoder of a known format, but W_enc, W_dec, b_enc and b_dec, as many "
            "projects call their tensors. Pass k=... for a TopK, architecture='standard' for a ReLU, or "
            "architecture='jumprelu' with a threshold in the file."
        )
    if architecture == "topk" and not scope and "k" not in source.given:
        raise ValueError(f"{source.path} does not say how many features are active. Pass k=....")
    tensors = renamed(stored, {**_MATRICES, **_ARCHITECTURES[architecture]}, source)
    theirs = _is_qwen_scopes(tensors, bool(scope), source)
    if not theirs:
        tensors["encoder.weight"] = tensors["encoder.weight"].T
    else:
        tensors["W_dec"] = tensors["W_dec"].T
    if "threshold" in tensors:
        tensors["threshold"] = tensors["threshold"].clamp(min=0).expand(len(tensors["encoder.bias"]))
    subtract = not theirs
    if subtract and "subtract_b_dec" not in source.given:
        logger.warning(
            "%s does not say whether b_dec is subtracted from what it reads. It is read as (x − b_dec) W_enc + b_enc; "
            "pass subtract_b_dec=False for x W_enc + b_enc.",
            source.path,
        )
    converted_from = "Qwen Scope" if scope else "plain matrices"
    return ConvertedSAE(
        architecture, tensors, {"subtract_b_dec": subtract, **scope}, {"converted_from": converted_from}
    )


def _is_qwen_scopes(tensors: dict[str, Tensor], named: bool, source: Source) -> bool:
    """Whether the encoder is stored as (n, d) and the decoder as (d, n), Qwen Scope's way; else it is the reverse.

    Raises:
        ValueError: If shapes do not tell.
    """
    n, d = tensors["encoder.bias"].numel(), tensors["b_dec"].numel()
    shapes = tuple(tensors["encoder.weight"].shape), tuple(tensors["W_dec"].shape)
    scopes, usual = ((n, d), (d, n)), ((d, n), (n, d))
    if shapes not in (scopes, usual) or (n == d and not named):
        raise ValueError(
            f"{source.path} holds W_enc {shapes[0]} and W_dec {shapes[1]} beside {n} encoder biases and {d} decoder "
            f"biases: expected {usual[0]} and {usual[1]}, or {scopes[0]} and {scopes[1]}, two that differ."
        )
    return shapes == scopes


def _qwen_scope(source: Source) -> dict[str, Any]:
    """Model, layer and k, from `SAE-Res-Qwen3-8B-Base-W64K-L0_50/layer12.sae.pt`; nothing for another name."""
    named = re.search(r"SAE-Res-(?P<model>.+?)-W\d+K-L0_(?P<k>\d+)", source.path)
    if named is None:
        return {}
    layer, base_model = source.number_after("layer"), f"Qwen/{named['model']}"
    return {
        "k": int(named["k"]),
        "base_model": base_model,
        "hook_point": None if layer is None else canonical(f"resid_post.{layer}", base_model),
    }
