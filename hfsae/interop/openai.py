"""OpenAI's sparse autoencoders for GPT-2 (Gao et al. 2024, arXiv:2406.04093), version 5: a pickled state dict.

Those with TopK normalise each token and undo it on the way out. The place stands in the path, as their site lays it
out: `gpt2-small/resid_post_mlp_v5_32k/autoencoders/6.pt`.
"""

import re
from typing import Any

from hfsae.interop.draft import Draft
from hfsae.interop.places import canonical
from hfsae.interop.source import Source, renamed

_TENSORS = {
    "encoder.weight": "encoder.weight",
    "encoder.bias": "latent_bias",
    "W_dec": "decoder.weight.T",
    "b_dec": "pre_bias",
}
_PLACES = {
    "mlp_post_act": "mlp_act",
    "resid_delta_attn": "attn_out",
    "resid_post_attn": "resid_mid",
    "resid_delta_mlp": "mlp_out",
    "resid_post_mlp": "resid_post",
}


def recognises(source: Source) -> bool:
    """A state dict with `pre_bias` and `latent_bias`."""
    return {"pre_bias", "latent_bias"} <= source.pickled.keys()


def read(source: Source) -> Draft:
    """See `hfsae.interop.formats.Format`."""
    stored = source.pickled
    activation, state = stored.get("activation", "ReLU"), stored.get("activation_state_dict") or {}
    if activation not in ("TopK", "ReLU") or state.get("postact_fn", "ReLU") != "ReLU":
        raise ValueError(f"{source.path} has the activation {activation!r} {state}; expected TopK with ReLU, or ReLU.")
    # "a context length of 64 tokens for all experiments" (section 2.1); nothing is said of BOS.
    fields: dict[str, Any] = {"subtract_b_dec": True, "context_length": 64, **_where(source)}
    if activation == "TopK":
        fields |= {"k": int(state["k"]), "input_transform": "layer_norm"}
    return Draft("topk" if activation == "TopK" else "standard", renamed(stored, _TENSORS, source), fields)


def _where(source: Source) -> dict[str, Any]:
    base_model = "openai-community/gpt2" if re.search(r"gpt2(-small)?\b", source.path) else None
    kind = next((role for name, role in _PLACES.items() if name in source.path), None)
    layer = source.number_after(r"(?:layer_|autoencoders/)")
    place = canonical(f"{kind}.{layer}", base_model) if kind is not None and layer is not None else None
    return {"base_model": base_model, "hook_point": place}
