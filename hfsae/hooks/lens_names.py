"""What TransformerLens calls the places that have portable names here."""

from hfsae.hooks.layout import EMBED, FINAL_NORM

_TRANSFORMER_LENS = {
    "resid_pre": "hook_resid_pre",
    "resid_mid": "hook_resid_mid",
    "resid_post": "hook_resid_post",
    "attn_out": "hook_attn_out",
    "attn_z": "attn.hook_z",
    "mlp_in": "mlp.hook_in",
    "mlp_act": "mlp.hook_post",
    "mlp_out": "hook_mlp_out",
}
ROLE_OF_TRANSFORMER_LENS = {name: role for role, name in _TRANSFORMER_LENS.items()}
ROLE_OF_TRANSFORMER_LENS |= {"hook_in": "resid_pre", "hook_out": "resid_post"}
MODEL_WIDE = {
    EMBED: EMBED,
    "hook_embed": EMBED,
    "embed.hook_out": EMBED,
    FINAL_NORM: FINAL_NORM,
    "ln_final": FINAL_NORM,
    "ln_final.hook_out": FINAL_NORM,
}
"""Names of places that lie in no layer, ours and TransformerLens', and what they mean."""
_MODEL_WIDE_TRANSFORMER_LENS = {EMBED: "hook_embed", FINAL_NORM: "ln_final.hook_out"}


def portable_to_transformer_lens(portable: str) -> str | None:
    """The TransformerLens name of a place that is called portably, or None where it has none.

    Example:
        >>> from hfsae.hooks.lens_names import portable_to_transformer_lens
        >>> portable_to_transformer_lens("resid_post.8")
        'blocks.8.hook_resid_post'
    """
    role, _, layer = portable.partition(".")
    if role in _MODEL_WIDE_TRANSFORMER_LENS:
        return _MODEL_WIDE_TRANSFORMER_LENS[role]
    return f"blocks.{layer}.{_TRANSFORMER_LENS[role]}" if role in _TRANSFORMER_LENS and layer.isdecimal() else None
