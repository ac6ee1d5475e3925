"""Tiny real models of several families in float64, with random transcoders of all their MLPs."""

import copy
from functools import cache

import torch
from transformers import PreTrainedModel

from hfsae import SAE, TopKCrossLayerTranscoderSAE, TopKCrossLayerTranscoderSAEConfig, TopKSAEConfig
from hfsae.architectures.cross_layer import CrossLayer
from hfsae.hooks.layout import DecoderLayout
from tests.hooks.families import build, input_ids

IDS = input_ids(batch=1, seq=6)[0]
FAMILIES = ("llama", "gpt2", "gemma3", "qwen3", "gpt-oss")


@cache
def model_of(family: str, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    model = copy.deepcopy(build(family)).to(dtype)
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")  # others compute in float32 or less
    return model


@cache
def width_of(family: str) -> int:
    return model_of(family).get_input_embeddings().weight.shape[1]


def sae_at(family: str, reads: str, writes: str | None = None, *, seed: int = 0, **fields) -> SAE:
    """A random SAE or transcoder, of topk or `config_class`, its scales and biases all at work."""
    torch.manual_seed(seed)
    width = width_of(family)
    fields = {"k": 3, "n_features": 24, "subtract_b_dec": writes is None, "config_class": TopKSAEConfig} | fields
    config_class = fields.pop("config_class")
    sae = SAE.from_config(config_class(d_in=width, hook_point=reads, target_hook_point=writes, **fields)).double()
    with torch.no_grad():
        sae.encoder.bias.normal_(std=0.1)
        sae.b_dec.normal_(std=0.3)
        sae.input_scale.fill_(0.7)
        if writes is not None:
            sae.output_scale.fill_(0.4)
        if sae.config.skip:
            sae.W_skip.normal_(std=0.2)
    return sae.eval()


def transcoders(family: str, **fields) -> dict[str, SAE]:
    """One for every MLP."""
    layers = range(len(DecoderLayout(model_of(family)).blocks))
    return {
        f"mlp.{layer}": sae_at(family, f"mlp_in.{layer}", f"mlp_out.{layer}", seed=layer, **fields) for layer in layers
    }


def cross_layer(family: str, **fields) -> CrossLayer:
    """A random cross-layer transcoder of all MLPs, its scales and biases all at work."""
    torch.manual_seed(0)
    layers = range(len(DecoderLayout(model_of(family)).blocks))
    config = TopKCrossLayerTranscoderSAEConfig(
        source_names=[f"mlp_in.{layer}" for layer in layers],
        source_widths=[width_of(family) for _ in layers],
        n_features=24 * len(layers),
        k=3,
        hook_point="+".join(f"mlp_in.{layer}" for layer in layers),
        target_hook_point="+".join(f"mlp_out.{layer}" for layer in layers),
        **fields,
    )
    sae = TopKCrossLayerTranscoderSAE(config).double()
    with torch.no_grad():
        sae.encoder.bias.normal_(std=0.1)
        sae.b_dec.normal_(std=0.3)
        sae.input_scale.copy_(torch.linspace(0.6, 0.9, len(layers)))
        sae.output_scale.copy_(torch.linspace(0.4, 0.7, len(layers)))
        for scale in sae.decoder_scale if config.tied_decoder else []:
            scale.normal_()
        if config.skip:
            sae.W_skip.normal_(std=0.2)
    return sae.eval()


def stream_saes(family: str, **fields) -> dict[str, SAE]:
    """One at the end of every block."""
    layers = range(len(DecoderLayout(model_of(family)).blocks))
    return {f"stream.{layer}": sae_at(family, f"resid_post.{layer}", seed=layer, **fields) for layer in layers}
