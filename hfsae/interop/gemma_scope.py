"""Gemma Scope (Lieberum et al. 2024, arXiv:2408.05147): `params.npz` in `layer_L/width_W/average_l0_K`, no config.

What the file leaves out stands in the repository's name: the language model, and which place of a layer.
"""

import re
from typing import Any

from hfsae.interop.converted import ConvertedSAE
from hfsae.interop.foreign_names import canonical
from hfsae.interop.source import Source, renamed

WEIGHTS = "params.npz"

# How a repository's name ends, and the place that its SAEs read.
_PLACES = {"res": "resid_post", "mlp": "mlp_out", "att": "attn_z", "transcoders": "mlp_in"}


def recognises(source: Source) -> bool:
    """The weights' file is called as in no other format."""
    return WEIGHTS in source.listing


def read(source: Source) -> ConvertedSAE:
    """See `hfsae.interop.formats.Format`; older files call their tensors `w_enc` and `w_dec`.

    A skip connection is stored as (d_in, d_out).
    """
    stored = {re.sub("^w_", "W_", name): tensor for name, tensor in source.tensors(WEIGHTS).items()}
    names = {"encoder.weight": "W_enc.T", "encoder.bias": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}
    optional = {"W_skip": "affine_skip_connection.T"}
    tensors = renamed(stored, {**names, "threshold": "threshold"}, source, optional=optional)
    tensors["threshold"] = tensors["threshold"].clamp(min=0)
    if "/embedding/" in source.path:
        # It was trained on rows of the embedding, which transformers gives out times √d.
        root = tensors["encoder.weight"].shape[1] ** 0.5
        tensors["encoder.weight"], tensors["W_dec"] = tensors["encoder.weight"] / root, tensors["W_dec"] * root
    fields = {
        "subtract_b_dec": False,
        "skip": "W_skip" in tensors,
        # The paper measures on sequences of 1,024 tokens with padding, start and end of sequence left out (section 4).
        "context_length": 1024,
        "prepend_bos": True,
        "exclude_special_tokens": True,
        **_where(source),
    }
    facts = {"dataset": None, "reported_l0": source.number_after("average_l0_")}
    return ConvertedSAE(
        "jumprelu", tensors, fields, facts, transcodes="W_skip" in tensors or "-transcoders" in source.path
    )


def _where(source: Source) -> dict[str, Any]:
    """Language model and hook points, as far as the path tells."""
    named = re.search(r"gemma-scope-(\d+b)-(pt|it)-(res|mlp|att|transcoders)", source.path)
    if named is None:
        return {}
    size, tuning, kind = named.groups()
    base_model = f"google/gemma-2-{size}{'-it' if tuning == 'it' else ''}"
    layer = source.number_after("layer_")
    place = "embed" if "/embedding/" in source.path else f"{_PLACES[kind]}.{layer}"
    where = {"base_model": base_model, "hook_point": canonical(place, base_model)}
    if kind == "transcoders":
        where["target_hook_point"] = canonical(f"mlp_out.{layer}", base_model)
    return where
