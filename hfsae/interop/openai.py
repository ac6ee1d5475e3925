"""OpenAI's sparse autoencoders for GPT-2 (Gao et al. 2024, arXiv:2406.04093), version 5: a state dict in a pickle.

Those with TopK normalise each token and undo it on the way out. The place stands in the path, as their site lays it
out: `gpt2-small/resid_post_mlp_v5_32k/autoencoders/6.pt`.
"""

import re
from collections.abc import Collection
from typing import Any

from hfsae.interop.converted import ConvertedSAE
from hfsae.interop.foreign_names import canonical
from hfsae.interop.source import Source, renamed

_TENSORS = {
    "encoder.weight": "encoder.weight",
    "encoder.bias": "latent_bias",
    "W_dec": "decoder.weight.T",
    "b_dec": "pre_bias",
}
# Statistics of training, which change nothing, and what is read besides the tensors.
_KNOWN = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square", "activation*")
_PLACES = {
    "mlp_post_act": "mlp_act",
    "resid_delta_attn": "attn_out",
    "resid_post_attn": "resid_mid",
    "resid_delta_mlp": "mlp_out",
    "resid_post_mlp": "resid_post",
}


def recognises(source: Source) -> bool:
    """A state dict with `pre_bias` and `latent_bias`."""
    return source.bare_file(fits) is not None


def read(source: Source) -> ConvertedSAE:
    """See `hfsae.interop.formats.Format`."""
    stored = source.tensors(str(source.bare_file(fits)))
    # "a context length of 64 tokens for all experiments" (section 2.1); nothing is said of BOS.
    fields: dict[str, Any] = {"subtract_b_dec": True, "context_length": 64, **_where(source)}
    k = _k(stored, source)
    if k is not None:
        fields |= {"k": k, "input_transform": "layer_norm"}
    return ConvertedSAE("standard" if k is None else "topk", renamed(stored, _TENSORS, source, known=_KNOWN), fields)


def fits(names: Collection[str]) -> bool:
    """Whether tensors have the names of OpenAI's."""
    return {"pre_bias", "latent_bias"} <= set(names)


def _k(stored: dict[str, Any], source: Source) -> int | None:
    """How many features TopK keeps; None for ReLU. A copy in safetensors cannot say it: its user has to."""
    if "activation" not in stored:
        if "k" not in source.given and source.given.get("architecture") != "standard":
            raise ValueError(
                f"{source.path} does not say its activation function: pass k=... for TopK, or architecture='standard' "
                "for ReLU."
            )
        return source.given.get("k")
    activation, state = stored["activation"], stored.get("activation_state_dict") or {}
    plain = isinstance(state, dict) and state.get("postact_fn", "ReLU") == "ReLU"
    if activation == "ReLU" and plain:
        return None
    if activation != "TopK" or not plain or not isinstance(state.get("k"), int):
        raise ValueError(
            f"{source.path} has the activation {activation!r} {state}; expected TopK of some k with ReLU, or ReLU."
        )
    return state["k"]


def _where(source: Source) -> dict[str, Any]:
    base_model = "openai-community/gpt2" if re.search(r"gpt2(-small)?\b", source.path) else None
    kind = next((role for name, role in _PLACES.items() if name in source.path), None)
    layer = source.number_after(r"(?:layer_|autoencoders/)")
    place = canonical(f"{kind}.{layer}", base_model) if kind is not None and layer is not None else None
    return {"base_model": base_model, "hook_point": place}
