"""sparsify (EleutherAI): `cfg.json` and `sae.safetensors`, tensors named as here, the folder's name being the hook."""

from typing import Any

from hfsae.interop.converted import ConvertedSAE
from hfsae.interop.foreign_names import base_model_id, canonical
from hfsae.interop.source import Source, renamed

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"
TENSORS = {"encoder.weight": "encoder.weight", "encoder.bias": "encoder.bias", "W_dec": "W_dec", "b_dec": "b_dec"}


def recognises(source: Source) -> bool:
    """The weights' file is called as in no other format."""
    return CONFIG in source.listing and WEIGHTS in source.listing


def read(source: Source) -> ConvertedSAE:
    """See `hfsae.interop.formats.Format`.

    A transcoder reads a module's input and writes its output; a sparse autoencoder reads and writes its output. The
    folder above holds the run's config, which names the language model.
    """
    config, run = source.json(CONFIG), source.json("../config.json")
    tensors = source.tensors(WEIGHTS)
    _refuse_clt_training(tensors, source)
    base_model = base_model_id(run.text("model"))
    transcodes = config.having("k").flag("transcode")
    module = source.path.rstrip("/").split("/")[-1]
    place = module if module == "embed_tokens" or any(part.isdecimal() for part in module.split(".")) else None
    hook = canonical(f"{place}.output", base_model) if place else None
    fields: dict[str, Any] = {
        "k": config.whole("k"),
        "activation": config.one_of("activation", {"topk": "topk", "groupmax": "groupmax"}, "topk"),
        "multi_topk": config.flag("multi_topk"),
        "subtract_b_dec": not transcodes,
        "skip": "W_skip" in tensors,
        "base_model": base_model,
        "hook_point": hook,
        "context_length": run.whole("ctx_len"),
    }
    if transcodes:
        fields |= _transcoder(source, place, hook, base_model)
    return ConvertedSAE(
        "topk",
        renamed(tensors, TENSORS, source, optional={"W_skip": "W_skip"}, known=["post_enc"]),
        fields,
        {"dataset": run.text("dataset")},
        sizes={"d_in": config.whole("d_in"), "n_features": config.whole("num_latents") or None},
    )


def _refuse_clt_training(tensors: dict[str, Any], source: Source) -> None:
    """Raises for what EleutherAI's clt-training (commit cf9821f), a fork of sparsify, adds; biases of 0 do nothing."""
    if any(name.startswith(("W_decs.", "post_encs.")) for name in tensors):
        raise ValueError(
            f"{source.path} is one layer of a cross-layer transcoder of clt-training's: load the folder above it, "
            "which holds the run's config.json."
        )
    if "post_enc" in tensors and tensors["post_enc"].any():
        raise ValueError(
            f"{source.path} is of clt-training, and adds post_enc to features that are active, which has no "
            "counterpart here."
        )


def _transcoder(source: Source, place: str | None, hook: str | None, base_model: str | None) -> dict[str, Any]:
    """From a module's input to its output."""
    if place is None and "target_hook_point" not in source.given:
        raise ValueError(
            f"{source.path} is a transcoder whose folder is not called after a module ('layers.3.mlp'): say where it "
            "reads and writes with hook_point=... and target_hook_point=...."
        )
    if place is None:
        return {}
    return {"hook_point": canonical(f"{place}.input", base_model), "target_hook_point": hook}
