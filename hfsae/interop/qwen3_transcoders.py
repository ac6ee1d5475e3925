"""Transcoders for Qwen3 (mwhanna): `layer_N.safetensors` as circuit-tracer has them, with the run's YAML beside."""

from hfsae.interop.circuit_tracer import CONFIG, WEIGHTS, layer_converted, layer_of_file, of_a_run
from hfsae.interop.converted import ConvertedSAE
from hfsae.interop.source import Source


def recognises(source: Source) -> bool:
    """Numbered weights beside a config of Weights & Biases."""
    return of_a_run(source) and bool(source.matching(WEIGHTS))


def read(source: Source) -> ConvertedSAE:
    """See `hfsae.interop.formats.Format`."""
    layer = layer_of_file(source)
    return layer_converted(source, _base_model(source), f"mlp_in.{layer}", f"mlp_out.{layer}")


def _base_model(source: Source) -> str | None:
    """From `config.yaml`, which some repositories lack; their name says it then."""
    if (name := source.yaml(CONFIG).text("model_name")) is not None:
        return name
    size = source.path.rpartition("qwen3-")[2].split("b-")[0]
    return f"Qwen/Qwen3-{size}B" if "qwen3-" in source.path else None
