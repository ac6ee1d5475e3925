"""A tiny SAE in every foreign format, written by hand, beside the source's own formula written out.

No code of hfsae and none of the projects themselves is used: what is here follows from their published formulas, so
that a reader that misunderstands a format cannot agree with it.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

D, N, K, LAYER = 6, 24, 3, 2

Features = Callable[[Tensor], Tensor]


@dataclass
class Foreign:
    """An SAE on disk, and what it computes.

    Args:
        path: What is loaded.
        features: (T, D) activations to (T, N) features, by the source's formula.
        decode: Features and activations to reconstructions.
        config: Config fields that must come out.
        architecture: What must come out.
        options: Further arguments that loading needs.
    """

    path: Path
    features: Features
    decode: Callable[[Tensor, Tensor], Tensor]
    config: dict[str, Any]
    architecture: str
    options: dict[str, Any] = field(default_factory=dict)


def random(*shape: int, seed: int = 0, scale: float = 0.5) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed + 100 * len(shape) + sum(shape)))


def thresholds(seed: int = 5) -> Tensor:
    return random(N, seed=seed).abs()


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_tensors(path: Path, tensors: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    elif path.suffix == ".npz":
        np.savez(path, **{name: tensor.numpy() for name, tensor in tensors.items()})
    else:
        torch.save(tensors, path)


def keep_largest(h: Tensor, k: int) -> Tensor:
    """ReLU of h at the k largest of each row, 0 elsewhere."""
    kept = torch.zeros_like(h)
    for row, indices in enumerate(h.topk(k, dim=1).indices):
        kept[row, indices] = h[row, indices].clamp(min=0)
    return kept


def jump(h: Tensor, threshold: Tensor | float) -> Tensor:
    return torch.where(h > threshold, h, torch.zeros(()))


def linear(encoder: str, decoder: str) -> dict[str, Tensor]:
    return {
        f"{encoder}.weight": random(N, D, seed=1),
        f"{encoder}.bias": random(N, seed=2),
        f"{decoder}.weight": random(D, N, seed=3),
    }


def matrices(d_out: int = D) -> dict[str, Tensor]:
    return {
        "W_enc": random(D, N, seed=1),
        "b_enc": random(N, seed=2),
        "W_dec": random(N, d_out, seed=3),
        "b_dec": random(d_out, seed=4),
    }


# -- SAELens ----------------------------------------------------------------------------------------------------------
def saelens(folder: Path, architecture: str, extra: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    metadata = {
        "sae_lens_version": "6.5.0",
        "model_name": "gpt2-small",
        "hook_name": f"blocks.{LAYER}.hook_resid_pre",
        "hook_head_index": None,
        "context_size": 64,
        "prepend_bos": True,
        "dataset_path": "some/text",
        **extra.pop("metadata", {}),
    }
    config = {
        "architecture": architecture,
        "d_in": D,
        "d_sae": N,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": metadata,
        **extra,
    }
    write_json(folder / "cfg.json", config)
    write_tensors(folder / "sae_weights.safetensors", tensors)
    return folder


GPT2 = {"base_model": "openai-community/gpt2", "context_length": 64, "prepend_bos": True}
RESID_PRE = {**GPT2, "hook_point": f"transformer.h.{LAYER}.input"}


def saelens_standard(folder: Path) -> Foreign:
    w = matrices()
    saelens(folder, "standard", {"apply_b_dec_to_input": False}, w)
    return Foreign(
        folder,
        lambda x: (x @ w["W_enc"] + w["b_enc"]).relu(),
        lambda z, x: z @ w["W_dec"] + w["b_dec"],
        {**RESID_PRE, "subtract_b_dec": False, "input_transform": "none"},
        "standard",
    )


def saelens_centred(folder: Path) -> Foreign:
    """Trained on a TransformerLens model whose writing weights were centred: it never saw a mean."""
    w = matrices()
    saelens(folder, "standard", {"metadata": {"model_from_pretrained_kwargs": {"center_writing_weights": True}}}, w)

    def mean(x: Tensor) -> Tensor:
        return x.mean(1, keepdim=True)

    return Foreign(
        folder,
        lambda x: ((x - mean(x) - w["b_dec"]) @ w["W_enc"] + w["b_enc"]).relu(),
        lambda z, x: z @ w["W_dec"] + w["b_dec"] + mean(x),
        {**RESID_PRE, "input_transform": "center"},
        "standard",
    )


def saelens_topk(folder: Path) -> Foreign:
    w = matrices()
    saelens(folder, "topk", {"k": K, "rescale_acts_by_decoder_norm": True}, w)
    norm = w["W_dec"].norm(dim=1)
    return Foreign(
        folder,
        lambda x: keep_largest(((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]) * norm, K),
        lambda z, x: (z / norm) @ w["W_dec"] + w["b_dec"],
        {**RESID_PRE, "k": K, "rescale_by_decoder_norm": True},
        "topk",
    )


def saelens_abstopk(folder: Path) -> Foreign:
    w = matrices()
    saelens(folder, "abstopk", {"k": K, "rescale_acts_by_decoder_norm": True}, w)
    norm = w["W_dec"].norm(dim=1)

    def features(x: Tensor) -> Tensor:
        h = ((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]) * norm
        return h.sign() * keep_largest(h.abs(), K)

    return Foreign(
        folder,
        features,
        lambda z, x: (z / norm) @ w["W_dec"] + w["b_dec"],
        {**RESID_PRE, "k": K, "rescale_by_decoder_norm": True},
        "abs_topk",
    )


def saelens_matching_pursuit(folder: Path) -> Foreign:
    w = {name: tensor for name, tensor in matrices().items() if name in ("W_dec", "b_dec")}
    w["W_dec"] = w["W_dec"] / w["W_dec"].norm(dim=1, keepdim=True)
    ends = {"max_iterations": 2 * K, "residual_threshold": 0.5, "stop_on_duplicate_support": False}
    saelens(folder, "matching_pursuit", ends, w)

    def features(x: Tensor) -> Tensor:
        codes = torch.zeros(len(x), len(w["W_dec"]))
        for token, code in zip(x - w["b_dec"], codes, strict=True):
            missing = token
            for _ in range(2 * K):
                products = (missing @ w["W_dec"].T).clamp(min=0)
                best = products.argmax()
                code[best] += products[best]
                missing = missing - products[best] * w["W_dec"][best]
                if missing.norm() < 0.5:
                    break
        return codes

    return Foreign(
        folder,
        features,
        lambda z, x: z @ w["W_dec"] + w["b_dec"],
        {**RESID_PRE, "k": 2 * K, "residual_threshold": 0.5, "stop_on_duplicate": False},
        "matching_pursuit",
    )


def saelens_jumprelu(folder: Path) -> Foreign:
    w = {**matrices(), "threshold": thresholds()}
    saelens(folder, "jumprelu", {"normalize_activations": "layer_norm"}, w)

    def normed(x: Tensor) -> Tensor:
        return (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-5)

    return Foreign(
        folder,
        lambda x: jump((normed(x) - w["b_dec"]) @ w["W_enc"] + w["b_enc"], w["threshold"]),
        lambda z, x: (z @ w["W_dec"] + w["b_dec"]) * x.std(1, keepdim=True) + x.mean(1, keepdim=True),
        {**RESID_PRE, "input_transform": "layer_norm"},
        "jumprelu",
    )


def saelens_gated(folder: Path) -> Foreign:
    w = matrices()
    del w["b_enc"]
    w |= {"b_gate": random(N, seed=6), "b_mag": random(N, seed=7), "r_mag": random(N, seed=8)}
    saelens(folder, "gated", {"metadata": {"hook_name": f"blocks.{LAYER}.attn.hook_z"}}, w)

    def features(x: Tensor) -> Tensor:
        projected = (x - w["b_dec"]) @ w["W_enc"]
        magnitude = ((x - w["b_dec"]) @ (w["W_enc"] * w["r_mag"].exp()) + w["b_mag"]).relu()
        return torch.where(projected + w["b_gate"] > 0, magnitude, torch.zeros(()))

    return Foreign(
        folder,
        features,
        lambda z, x: z @ w["W_dec"] + w["b_dec"],
        {**GPT2, "hook_point": f"transformer.h.{LAYER}.attn.c_proj.input"},
        "gated",
    )


def saelens_transcoder(folder: Path) -> Foreign:
    w = {**matrices(), "threshold": thresholds(), "W_skip": random(D, D, seed=9)}
    hooks = {"hook_name": f"blocks.{LAYER}.mlp.hook_in", "hook_name_out": f"blocks.{LAYER}.hook_mlp_out"}
    extra = {"apply_b_dec_to_input": False, "d_out": D, "metadata": hooks}
    saelens(folder, "jumprelu_skip_transcoder", extra, w)
    return Foreign(
        folder,
        lambda x: jump(x @ w["W_enc"] + w["b_enc"], w["threshold"]),
        lambda z, x: z @ w["W_dec"] + w["b_dec"] + x @ w["W_skip"].T,
        {
            **GPT2,
            "hook_point": f"transformer.h.{LAYER}.mlp.input",
            "target_hook_point": f"transformer.h.{LAYER}.mlp.output",
        },
        "jumprelu",
    )


def saelens_5(folder: Path) -> Foreign:
    """Flat, `hook_point`, a boolean, a dtype spelled out, and a factor left by finetuning."""
    w = {**matrices(), "scaling_factor": 1 + random(N, seed=10).abs()}
    config = {
        "hook_point": f"blocks.{LAYER}.hook_mlp_out",
        "model_name": "pythia-70m-deduped",
        "d_in": D,
        "d_sae": N,
        "dtype": "torch.float32",
        "normalize_activations": False,
        "context_size": 64,
        "dataset_path": "some/text",
    }
    write_json(folder / "cfg.json", config)
    write_tensors(folder / "sae_weights.safetensors", w)
    return Foreign(
        folder,
        lambda x: ((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]).relu(),
        lambda z, x: (z * w["scaling_factor"]) @ w["W_dec"] + w["b_dec"],
        {
            "base_model": "EleutherAI/pythia-70m-deduped",
            "hook_point": f"gpt_neox.layers.{LAYER}.mlp.output",
            "prepend_bos": True,
        },
        "standard",
    )


def saelens_5_topk(folder: Path) -> Foreign:
    w = matrices()
    config = {
        "hook_name": f"blocks.{LAYER}.hook_resid_post",
        "model_name": "mistral-7b",
        "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": K},
        "normalize_activations": "constant_norm_rescale",
        "prepend_bos": False,
    }
    write_json(folder / "cfg.json", config)
    write_tensors(folder / "sae_weights.safetensors", w)

    def length(x: Tensor) -> Tensor:
        return D**0.5 / x.norm(dim=1, keepdim=True)

    return Foreign(
        folder,
        lambda x: keep_largest((x * length(x) - w["b_dec"]) @ w["W_enc"] + w["b_enc"], K),
        lambda z, x: (z @ w["W_dec"] + w["b_dec"]) / length(x),
        {
            "base_model": "mistralai/Mistral-7B-v0.1",
            "hook_point": f"model.layers.{LAYER}.output",
            "prepend_bos": False,
        },
        "topk",
    )


# -- sparsify ---------------------------------------------------------------------------------------------------------
def sparsify(folder: Path, name: str, config: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    write_json(folder / "config.json", {"model": "EleutherAI/pythia-70m", "dataset": "some/text", "ctx_len": 2048})
    base = {"num_latents": 0, "expansion_factor": N // D, "k": K, "d_in": D, "normalize_decoder": True}
    write_json(folder / name / "cfg.json", {**base, **config})
    write_tensors(folder / name / "sae.safetensors", tensors)
    return folder / name


def sparsify_tensors() -> dict[str, Tensor]:
    return {
        "encoder.weight": random(N, D, seed=1),
        "encoder.bias": random(N, seed=2),
        "W_dec": random(N, D, seed=3),
        "b_dec": random(D, seed=4),
    }


PYTHIA = {"base_model": "EleutherAI/pythia-70m", "context_length": 2048}


def sparsify_topk(folder: Path) -> Foreign:
    w = sparsify_tensors()
    path = sparsify(folder, f"layers.{LAYER}", {}, w)
    return Foreign(
        path,
        lambda x: keep_largest((x - w["b_dec"]) @ w["encoder.weight"].T + w["encoder.bias"], K),
        lambda z, x: z @ w["W_dec"] + w["b_dec"],
        {**PYTHIA, "hook_point": f"gpt_neox.layers.{LAYER}.output", "k": K},
        "topk",
    )


def sparsify_groupmax(folder: Path) -> Foreign:
    w = sparsify_tensors()
    path = sparsify(folder, f"layers.{LAYER}.mlp", {"activation": "groupmax", "num_latents": N}, w)

    def features(x: Tensor) -> Tensor:
        h = ((x - w["b_dec"]) @ w["encoder.weight"].T + w["encoder.bias"]).relu()
        z = torch.zeros_like(h)
        for row in range(len(h)):
            for group in range(K):
                members = range(group * N // K, (group + 1) * N // K)
                best = max(members, key=lambda i: float(h[row, i]))
                z[row, best] = h[row, best]
        return z

    return Foreign(
        path,
        features,
        lambda z, x: z @ w["W_dec"] + w["b_dec"],
        {**PYTHIA, "hook_point": f"gpt_neox.layers.{LAYER}.mlp.output", "activation": "groupmax"},
        "topk",
    )


def sparsify_transcoder(folder: Path) -> Foreign:
    w = {**sparsify_tensors(), "W_skip": random(D, D, seed=9)}
    path = sparsify(folder, f"layers.{LAYER}.mlp", {"transcode": True, "skip_connection": True}, w)
    return Foreign(
        path,
        lambda x: keep_largest(x @ w["encoder.weight"].T + w["encoder.bias"], K),
        lambda z, x: z @ w["W_dec"] + w["b_dec"] + x @ w["W_skip"].T,
        {
            **PYTHIA,
            "hook_point": f"gpt_neox.layers.{LAYER}.mlp.input",
            "target_hook_point": f"gpt_neox.layers.{LAYER}.mlp.output",
            "skip": True,
        },
        "topk",
    )


# -- dictionary_learning ----------------------------------------------------------------------------------------------
def dictionary_learning(
    folder: Path, dict_class: str, tensors: dict[str, Tensor], features: Features, architecture: str, **config: Any
) -> Foreign:
    trainer = {
        "dict_class": dict_class,
        "activation_dim": D,
        "dict_size": N,
        "lm_name": "EleutherAI/pythia-70m-deduped",
        "layer": LAYER,
        "submodule_name": f"resid_post_layer_{LAYER}",
        **config,
    }
    write_json(folder / "config.json", {"trainer": trainer, "buffer": {"ctx_len": 128, "d_submodule": D}})
    write_tensors(folder / "ae.pt", tensors)
    decoder = tensors["W_dec"] if "W_dec" in tensors else tensors["decoder.weight"].T
    bias = next(tensors[name] for name in ("b_dec", "bias", "decoder_bias", "decoder.bias") if name in tensors)
    return Foreign(
        folder,
        features,
        lambda z, x: z @ decoder + bias,
        {
            "base_model": "EleutherAI/pythia-70m-deduped",
            "hook_point": f"gpt_neox.layers.{LAYER}.output",
            "context_length": 128,
        },
        architecture,
        {"allow_pickle": True},
    )


def auto_encoder(folder: Path) -> Foreign:
    w = {**linear("encoder", "decoder"), "bias": random(D, seed=4)}

    def features(x: Tensor) -> Tensor:
        return ((x - w["bias"]) @ w["encoder.weight"].T + w["encoder.bias"]).relu()

    return dictionary_learning(folder, "AutoEncoder", w, features, "standard")


def auto_encoder_new(folder: Path) -> Foreign:
    w = {**linear("encoder", "decoder"), "decoder.bias": random(D, seed=4)}

    def features(x: Tensor) -> Tensor:
        return (x @ w["encoder.weight"].T + w["encoder.bias"]).relu()

    return dictionary_learning(folder, "AutoEncoderNew", w, features, "standard")


def gated_auto_encoder(folder: Path) -> Foreign:
    w = linear("encoder", "decoder")
    del w["encoder.bias"]
    w |= {"decoder_bias": random(D, seed=4), "r_mag": random(N, seed=5)}
    w |= {"gate_bias": random(N, seed=6), "mag_bias": random(N, seed=7)}

    def features(x: Tensor) -> Tensor:
        projected = (x - w["decoder_bias"]) @ w["encoder.weight"].T
        magnitude = (w["r_mag"].exp() * projected + w["mag_bias"]).relu()
        return torch.where(projected + w["gate_bias"] > 0, magnitude, torch.zeros(()))

    return dictionary_learning(folder, "GatedAutoEncoder", w, features, "gated")


def jumprelu_auto_encoder(folder: Path) -> Foreign:
    w = {**matrices(), "threshold": thresholds()}

    def features(x: Tensor) -> Tensor:
        return jump(x @ w["W_enc"] + w["b_enc"], w["threshold"])

    return dictionary_learning(folder, "JumpReluAutoEncoder", w, features, "jumprelu")


def auto_encoder_topk(folder: Path) -> Foreign:
    w = {**linear("encoder", "decoder"), "b_dec": random(D, seed=4)}
    w |= {"k": torch.tensor(K, dtype=torch.int32), "threshold": torch.tensor(0.4)}

    def features(x: Tensor) -> Tensor:
        return keep_largest((x - w["b_dec"]) @ w["encoder.weight"].T + w["encoder.bias"], K)

    return dictionary_learning(folder, "AutoEncoderTopK", w, features, "topk", k=K)


def batch_topk(folder: Path) -> Foreign:
    w = {**linear("encoder", "decoder"), "b_dec": random(D, seed=4)}
    w |= {"k": torch.tensor(K, dtype=torch.int32), "threshold": torch.tensor(0.4)}

    def features(x: Tensor) -> Tensor:
        return jump((x - w["b_dec"]) @ w["encoder.weight"].T + w["encoder.bias"], 0.4)

    return dictionary_learning(folder, "BatchTopKSAE", w, features, "batch_topk", k=K)


def matryoshka(folder: Path) -> Foreign:
    w = {**matrices(), "k": torch.tensor(K, dtype=torch.int32), "threshold": torch.tensor(-1.0)}
    w["group_sizes"] = torch.tensor([4, 8, 12])

    def features(x: Tensor) -> Tensor:
        return ((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]).relu()  # a threshold that was never set lets all pass

    foreign = dictionary_learning(folder, "MatryoshkaBatchTopKSAE", w, features, "matryoshka", k=K)
    foreign.config |= {"prefix_sizes": [4, 12, 24], "k": K}
    return foreign


# -- OpenAI, and others that are bare pickles -------------------------------------------------------------------------
def openai(folder: Path) -> Foreign:
    w = {**linear("encoder", "decoder"), "pre_bias": random(D, seed=4)}
    w["latent_bias"] = w.pop("encoder.bias")
    path = folder / "gpt2-small" / "resid_post_mlp_v5_32k" / "autoencoders" / f"{LAYER}.pt"
    write_tensors(path, {**w, "activation": "TopK", "activation_state_dict": {"k": K}})

    def features(x: Tensor) -> Tensor:
        normed = (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-5)
        return keep_largest((normed - w["pre_bias"]) @ w["encoder.weight"].T + w["latent_bias"], K)

    return Foreign(
        path,
        features,
        lambda z, x: (z @ w["decoder.weight"].T + w["pre_bias"]) * x.std(1, keepdim=True) + x.mean(1, keepdim=True),
        {"base_model": "openai-community/gpt2", "hook_point": f"transformer.h.{LAYER}.output", "k": K},
        "topk",
        {"allow_pickle": True},
    )


def _bare(path: Path, w: dict[str, Tensor], encoder: str, decoder: str, **config: Any) -> Foreign:
    write_tensors(path, w)
    return Foreign(
        path,
        lambda x: (x @ w[f"{encoder}.weight"].T + w[f"{encoder}.bias"]).relu(),
        lambda z, x: z @ w[f"{decoder}.weight"].T + w[f"{decoder}.bias"],
        {"subtract_b_dec": False, **config},
        "standard",
        {"allow_pickle": True, **config},
    )


def goodfire(folder: Path) -> Foreign:
    w = {**linear("encoder_linear", "decoder_linear"), "decoder_linear.bias": random(D, seed=4)}
    return _bare(folder / "SAE-l19.pth", w, "encoder_linear", "decoder_linear", hook_point="model.layers.19.output")


def deepseek_r1(folder: Path) -> Foreign:
    w = {**linear("encoder", "decoder"), "decoder.bias": random(D, seed=4)}
    return _bare(folder / "SAE.pt", w, "encoder", "decoder", hook_point="resid_post.19")


def qwen_scope(folder: Path) -> Foreign:
    w = matrices()
    w["W_enc"], w["W_dec"] = w["W_enc"].T.contiguous(), w["W_dec"].T.contiguous()
    path = folder / "SAE-Res-Qwen3-8B-Base-W64K-L0_3" / f"layer{LAYER}.sae.pt"
    write_tensors(path, w)
    return Foreign(
        path,
        lambda x: keep_largest(x @ w["W_enc"].T + w["b_enc"], 3),
        lambda z, x: z @ w["W_dec"].T + w["b_dec"],
        {"base_model": "Qwen/Qwen3-8B-Base", "hook_point": f"model.layers.{LAYER}.output", "k": 3},
        "topk",
        {"allow_pickle": True},
    )


# -- Gemma Scope, Llama Scope and the like ----------------------------------------------------------------------------
def gemma_scope(folder: Path) -> Foreign:
    w = {**matrices(), "threshold": thresholds()}
    path = folder / "gemma-scope-2b-pt-mlp" / f"layer_{LAYER}" / "width_16k" / "average_l0_71"
    old = {name.lower() if name.startswith("W_") else name: tensor for name, tensor in w.items()}
    write_tensors(path / "params.npz", old)
    return Foreign(
        path,
        lambda x: jump(x @ w["W_enc"] + w["b_enc"], w["threshold"]),
        lambda z, x: z @ w["W_dec"] + w["b_dec"],
        {
            "base_model": "google/gemma-2-2b",
            "hook_point": f"model.layers.{LAYER}.post_feedforward_layernorm.output",
            "context_length": 1024,
            "prepend_bos": True,
        },
        "jumprelu",
    )


def gemma_scope_embedding(folder: Path) -> Foreign:
    w = {**matrices(), "threshold": thresholds()}
    path = folder / "gemma-scope-9b-it-res" / "embedding" / "width_4k" / "average_l0_6"
    write_tensors(path / "params.npz", w)
    return Foreign(
        path,
        lambda x: jump(x @ (w["W_enc"] / D**0.5) + w["b_enc"], w["threshold"]),
        lambda z, x: z @ (w["W_dec"] * D**0.5) + w["b_dec"],
        {"base_model": "google/gemma-2-9b-it", "hook_point": "model.embed_tokens.output"},
        "jumprelu",
    )


def gemma_scope_2(folder: Path) -> Foreign:
    w = {"w_enc": random(D, N, seed=1), "b_enc": random(N, seed=2), "w_dec": random(N, 4, seed=3)}
    w |= {"b_dec": random(4, seed=4), "threshold": thresholds(), "affine_skip_connection": random(D, 4, seed=9)}
    reads, writes = (f"model.layers.{LAYER}.{side}_feedforward_layernorm.output" for side in ("pre", "post"))
    config = {
        "architecture": "jump_relu",
        "model_name": "gemma-v3-270m-pt",
        "hf_hook_point_in": reads,
        "hf_hook_point_out": writes,
        "affine_connection": True,
    }
    write_json(folder / "config.json", config)
    write_tensors(folder / "params.safetensors", w)
    return Foreign(
        folder,
        lambda x: jump(x @ w["w_enc"] + w["b_enc"], w["threshold"]),
        lambda z, x: z @ w["w_dec"] + w["b_dec"] + x @ w["affine_skip_connection"],
        {"base_model": "google/gemma-3-270m", "hook_point": reads, "target_hook_point": writes, "d_out": 4},
        "jumprelu",
    )


def llama_scope(folder: Path) -> Foreign:
    w = {**linear("encoder", "decoder"), "decoder.bias": random(D, seed=4)}
    path = folder / "Llama3_1-8B-Base-LXR-8x" / f"Llama3_1-8B-Base-L{LAYER}R-8x"
    hook = f"blocks.{LAYER}.hook_resid_post"
    config = {
        "hook_point_in": hook,
        "hook_point_out": hook,
        "d_model": D,
        "d_sae": N,
        "act_fn": "jumprelu",
        "jump_relu_threshold": 0.3,
        "norm_activation": "dataset-wise",
        "dataset_average_activation_norm": {"in": 5.0, "out": 5.0},
    }
    write_json(path / "hyperparams.json", config)
    write_tensors(path / "checkpoints" / "final.safetensors", w)
    scale = D**0.5 / 5.0
    return Foreign(
        path,
        lambda x: jump(x * scale @ w["encoder.weight"].T + w["encoder.bias"], 0.3),
        lambda z, x: (z @ w["decoder.weight"].T + w["decoder.bias"]) / scale,
        {
            "base_model": "meta-llama/Llama-3.1-8B",
            "hook_point": f"model.layers.{LAYER}.output",
            "context_length": 1024,
        },
        "jumprelu",
    )


def llama_scope_r1(folder: Path) -> Foreign:
    w = {
        **linear("encoder", "decoder"),
        "decoder.bias": random(D, seed=4),
        "log_jumprelu_threshold": random(N, seed=5),
    }
    path = folder / "Llama-Scope-R1-Distill" / f"L{LAYER}R"
    hook = f"blocks.{LAYER}.hook_resid_post"
    norms = {"in": 2.0, "out": 2.0}
    config = {"hook_point_in": hook, "hook_point_out": hook, "d_model": D, "expansion_factor": N // D}
    write_json(path / "config.json", {**config, "act_fn": "jumprelu", "dataset_average_activation_norm": norms})
    write_tensors(path / "sae_weights.safetensors", w)
    scale = D**0.5 / 2.0
    return Foreign(
        path,
        lambda x: jump(x * scale @ w["encoder.weight"].T + w["encoder.bias"], w["log_jumprelu_threshold"].exp()),
        lambda z, x: (z @ w["decoder.weight"].T + w["decoder.bias"]) / scale,
        {
            "base_model": "deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
            "hook_point": f"model.layers.{LAYER}.output",
        },
        "jumprelu",
    )


def llamascopium(folder: Path) -> Foreign:
    hook = f"blocks.{LAYER}.hook_resid_post"
    w = {"W_E": random(D, N, seed=1), "b_E": random(N, seed=2), "W_D": random(N, D, seed=3), "b_D": random(D, seed=4)}
    w["activation_function.log_jumprelu_threshold"] = random(N, seed=5)
    w[f"dataset_average_activation_norm.{hook}"] = torch.tensor(3.0)
    config = {
        "sae_type": "sae",
        "d_model": D,
        "act_fn": "jumprelu",
        "hook_point_in": hook,
        "hook_point_out": hook,
        "norm_activation": "dataset-wise",
        "sparsity_include_decoder_norm": True,
        "model_name": "qwen3-1.7b",
    }
    write_json(folder / "config.json", config)
    write_tensors(folder / "sae_weights.safetensors", w)
    scale, norm = D**0.5 / 3.0, w["W_D"].norm(dim=1)
    threshold = w["activation_function.log_jumprelu_threshold"].exp()
    return Foreign(
        folder,
        lambda x: jump((x * scale @ w["W_E"] + w["b_E"]) * norm, threshold) / norm,
        lambda z, x: (z @ w["W_D"] + w["b_D"]) / scale,
        {"base_model": "Qwen/qwen3-1.7b", "hook_point": f"model.layers.{LAYER}.output", "subtract_b_dec": False},
        "jumprelu",
    )


def qwen3_transcoder(folder: Path) -> Foreign:
    w = matrices()
    w["W_enc"] = w["W_enc"].T.contiguous()
    (folder / "repo").mkdir(parents=True)
    for name, content in (("wanb-config", {"d_model": {"value": D}}), ("config", {"model_name": "Qwen/Qwen3-4B"})):
        (folder / "repo" / f"{name}.yaml").write_text(yaml.safe_dump(content))
    for layer in (LAYER, LAYER + 1):
        write_tensors(folder / "repo" / f"layer_{layer}.safetensors", w)
    return Foreign(
        folder / "repo" / f"layer_{LAYER}.safetensors",
        lambda x: (x @ w["W_enc"].T + w["b_enc"]).relu(),
        lambda z, x: z @ w["W_dec"] + w["b_dec"],
        {
            "base_model": "Qwen/Qwen3-4B",
            "hook_point": f"model.layers.{LAYER}.mlp.input",
            "target_hook_point": f"model.layers.{LAYER}.mlp.output",
        },
        "standard",
    )


FOREIGN: dict[str, Callable[[Path], Foreign]] = {
    make.__name__: make
    for make in (
        saelens_standard,
        saelens_centred,
        saelens_topk,
        saelens_abstopk,
        saelens_matching_pursuit,
        saelens_jumprelu,
        saelens_gated,
        saelens_transcoder,
        saelens_5,
        saelens_5_topk,
        sparsify_topk,
        sparsify_groupmax,
        sparsify_transcoder,
        auto_encoder,
        auto_encoder_new,
        gated_auto_encoder,
        jumprelu_auto_encoder,
        auto_encoder_topk,
        batch_topk,
        matryoshka,
        openai,
        goodfire,
        deepseek_r1,
        qwen_scope,
        gemma_scope,
        gemma_scope_embedding,
        gemma_scope_2,
        llama_scope,
        llama_scope_r1,
        llamascopium,
        qwen3_transcoder,
    )
}
