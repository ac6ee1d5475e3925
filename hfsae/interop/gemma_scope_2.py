"""Gemma Scope 2: `config.json` that names Hugging Face places, and `params.safetensors`."""

from typing import Any

from hfsae.interop.converted import ConvertedSAE
from hfsae.interop.foreign_names import canonical
from hfsae.interop.settings import Settings
from hfsae.interop.source import Source, renamed

CONFIG, WEIGHTS = "config.json", "params.safetensors"


def recognises(source: Source) -> bool:
    """A config that names where it reads as a path of the Hugging Face model."""
    return CONFIG in source.listing and WEIGHTS in source.listing and "hf_hook_point_in" in source.json(CONFIG)


def read(source: Source) -> ConvertedSAE:
    """See `hfsae.interop.formats.Format`. Its affine connection is stored as (d_in, d_out)."""
    config, stored = source.json(CONFIG), source.tensors(WEIGHTS)
    config.one_of("architecture", {"jump_relu": "jumprelu"}, "none")
    if "w_dec" in stored and stored["w_dec"].ndim != 2:
        raise ValueError(
            f"{source.path} is one layer of several that belong together, and not named params_layer_N.safetensors as "
            "those are."
        )
    names = {"encoder.weight": "w_enc.T", "encoder.bias": "b_enc", "W_dec": "w_dec", "b_dec": "b_dec"}
    names["threshold"] = "threshold"
    tensors = renamed(stored, names, source, optional={"W_skip": "affine_skip_connection.T"})
    tensors["threshold"] = tensors["threshold"].clamp(min=0)
    base_model = gemma_3_id(config.text("model_name"))
    reads, writes = config.having("hf_hook_point_in").text("hf_hook_point_in"), config.text("hf_hook_point_out")
    target = canonical(writes, base_model) if writes != reads else None
    fields: dict[str, Any] = {
        "subtract_b_dec": False,
        "skip": "W_skip" in tensors,
        "base_model": base_model,
        "hook_point": canonical(reads, base_model),
        "target_hook_point": target,
        **as_trained(base_model, target is not None),
    }
    transcodes = "W_skip" in tensors or config.flag("affine_connection")
    return ConvertedSAE("jumprelu", tensors, fields, reported(config), transcodes=transcodes)


def as_trained(base_model: str | None, transcodes: bool) -> dict[str, Any]:
    """Config fields on how the release was trained and measured; of other language models none are known."""
    if base_model is not None and not base_model.startswith("google/gemma-3"):
        return {}
    # As Gemma Scope was, says the technical paper: 1,024 tokens, special ones left out (section 4).
    fields: dict[str, Any] = {"context_length": 1024, "prepend_bos": True, "exclude_special_tokens": True}
    if transcodes and base_model is not None and base_model.endswith("-it"):
        # "transcoders for gemma-3 instruct models were not trained on" them (circuit-tracer 0.5.0 leaves them out).
        fields["exclude_positions"] = [0, 1, 2, 3]
    return fields


def reported(config: Settings) -> dict[str, Any]:
    """What the config says of its own quality."""
    return {"reported_l0": config.number("l0") or config.number("average_l0")}


def gemma_3_id(name: str | None) -> str | None:
    """`"google/gemma-3-1b-pt"` for `"gemma-v3-1b-pt"`; the 270m model's name on the Hub lacks `-pt`."""
    if name is None or "gemma" not in name or not name.startswith("google/") and "/" in name:
        return name
    name = name.split("/")[-1].replace("-v3-", "-3-")
    return f"google/{name.removesuffix('-pt') if '270m' in name else name}"
