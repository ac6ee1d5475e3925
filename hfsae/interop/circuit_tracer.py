"""circuit-tracer's sets of transcoders: `config.yaml` and one `layer_N.safetensors` for each layer.

A file says by its tensors what it is: thresholds make a JumpReLU, `W_skip` a skip connection (circuit-tracer 0.5.0).
A TopK is told by the config alone (circuit-tracer's repository, commit 4bb8c0e, which 0.5.0 reads as a ReLU).

A config with `transcoders` is a list of files of other repositories, and no weights lie beside it. It is refused with
the call that loads the first of them: each belongs to a format of its own.
"""

import posixpath
from typing import Any
from urllib.parse import parse_qs, urlparse

from hfsae.interop import circuit_tracer_layers
from hfsae.interop.converted import ConvertedSAE
from hfsae.interop.foreign_names import base_model_id, canonical
from hfsae.interop.source import Source, renamed

CONFIG, WEIGHTS = "config.yaml", "layer_*.safetensors"
TENSORS = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}
OPTIONAL = {"threshold": "activation_function.threshold", "W_skip": "W_skip"}
# `activation` of a config: what its value makes of weights; without it their tensors say it.
_ACTIVATIONS = {"relu": "", "jumprelu": "", "jump_relu": "", "topk": "topk"}
# k of repositories that do not say it, as circuit-tracer has them.
_KNOWN_K = {"crv-8b-instruct-transcoders": 128}
_POINTERS = "transcoders"
# Configs of Weights & Biases; one of the two is a slip of the pen that some repositories carry.
RUN_CONFIGS = ("wandb-config.yaml", "wanb-config.yaml")


def recognises(source: Source) -> bool:
    """A config of circuit-tracer's, with weights or a list of them; transcoders for Qwen3 have another one besides."""
    if CONFIG not in source.listing or of_a_run(source):
        return False
    config = source.yaml(CONFIG)
    kind, has_weights = config.get("model_kind"), _POINTERS in config or bool(source.matching(WEIGHTS))
    return kind == circuit_tracer_layers.KIND or (kind == "transcoder_set" and has_weights)


def read(source: Source) -> ConvertedSAE:
    """See `hfsae.interop.formats.Format`."""
    config = source.yaml(CONFIG)
    if config.get(_POINTERS) is not None:
        raise ValueError(_refusal_of_pointers(config.called, config[_POINTERS]))
    if config.get("model_kind") == circuit_tracer_layers.KIND:
        return circuit_tracer_layers.read(source)
    config.having("feature_input_hook", "feature_output_hook")
    layer = layer_of_file(source)
    reads, writes = (f"blocks.{layer}.{config.text(key)}" for key in ("feature_input_hook", "feature_output_hook"))
    draft = layer_converted(source, base_model_id(config.text("model_name")), reads, writes)
    if config.one_of("activation", _ACTIVATIONS, "relu") == "topk":
        if draft.architecture != "standard":
            raise ValueError(f"{source.path} has thresholds, and a config that says activation = 'topk'.")
        known = next((k for name, k in _KNOWN_K.items() if name in source.path), None)
        draft.architecture, draft.fields["k"] = "topk", known or config.having("k").whole("k")
    return draft


def _refusal_of_pointers(called: str, pointers: Any) -> str:
    """What to say of a config that names files of other places, and how to load the first of them."""
    named = list(map(str, pointers)) if isinstance(pointers, list) else []
    if not named:
        return f"{called} has {_POINTERS} = {pointers!r}, expected a list of files, or no such key."
    first = urlparse(named[0])
    if first.scheme == "hf":
        repository, _, inside = first.path.strip("/").partition("/")
        revision = parse_qs(first.query).get("revision")
        options = {"subfolder": inside, **({"revision": revision[0]} if revision else {})}
        call = ", ".join(
            [repr(f"{first.netloc}/{repository}"), *(f"{key}={value!r}" for key, value in options.items())]
        )
    else:
        call = repr(posixpath.normpath(named[0]))
    return (
        f"{called} only names files that lie elsewhere ({_POINTERS}: {len(named)} of them), and hfsae does not follow "
        f"such names. Load each from where it lies; the first is SAE.from_pretrained({call})."
    )


def of_a_run(source: Source) -> bool:
    """Whether a config of Weights & Biases lies there."""
    return any(name in source.listing for name in RUN_CONFIGS)


def layer_of_file(source: Source) -> str:
    """The layer in the name of the file that was asked for."""
    return source.the_one(WEIGHTS).removesuffix(".safetensors").split("_")[-1]


def layer_converted(source: Source, base_model: str | None, reads: str, writes: str) -> ConvertedSAE:
    """The transcoder of one layer.

    Raises:
        ValueError: If the file holds other tensors, or thresholds that let negative values pass.
    """
    stored = source.tensors(source.the_one(WEIGHTS))
    tensors = renamed(stored, TENSORS, source, optional=OPTIONAL)
    if "threshold" in tensors:
        if (tensors["threshold"] < 0).any():
            raise ValueError(
                f"{source.path} has negative thresholds: negative features pass them, which has no counterpart here."
            )
        tensors["threshold"] = tensors["threshold"].expand(len(tensors["encoder.bias"]))
    fields: dict[str, Any] = {
        "subtract_b_dec": False,
        "skip": "W_skip" in tensors,
        "base_model": base_model,
        "hook_point": canonical(reads, base_model),
        "target_hook_point": canonical(writes, base_model),
    }
    return ConvertedSAE("jumprelu" if "threshold" in tensors else "standard", tensors, fields, transcodes=True)
