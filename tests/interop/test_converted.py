"""What a reader hands over becomes an SAE only if everything fits."""

import json
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hfsae import SAE, export_sae
from tests.interop.foreign import FOREIGN, D, N, saelens, write_json, write_tensors
from tests.interop.foreign import matrices as four_matrices

X = 2 * torch.randn(40, D, generator=torch.Generator().manual_seed(3)) + 0.5


# Tensors that formats do read, or know to be harmless.
EXTRA = ("W_skip", "threshold", "b_extra", "k")
READ = {
    "saelens_jumprelu": ["threshold"],
    "saelens_transcoder": ["threshold", "W_skip"],
    "sparsify_topk": ["W_skip"],
    "sparsify_groupmax": ["W_skip"],
    "sparsify_transcoder": ["W_skip"],
    "jumprelu_auto_encoder": ["threshold"],
    "auto_encoder_topk": ["threshold", "k"],
    "batch_topk": ["threshold", "k"],
    "matryoshka": ["threshold", "k"],
    "gemma_scope": ["threshold"],
    "gemma_scope_embedding": ["threshold"],
    "gemma_scope_2": ["threshold"],
    "qwen3_transcoder": ["W_skip"],
}


# -- every tensor is accounted for ------------------------------------------------------------------------------------
def weights_of(path: Path) -> Path:
    """The file that holds an SAE's tensors."""
    suffixes = (".safetensors", ".npz", ".pt", ".pth")
    return path if path.is_file() else next(file for file in sorted(path.rglob("*")) if file.suffix in suffixes)


def load_tensors(path: Path) -> dict:
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix == ".npz":
        import numpy as np

        return {name: torch.from_numpy(array) for name, array in np.load(path).items()}
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize(
    "name, extra", [pair for pair in product(FOREIGN, EXTRA) if pair[1] not in READ.get(pair[0], ())]
)
def test_a_tensor_that_nobody_reads_is_an_error_that_names_it(name: str, extra: str, tmp_path: Path):
    foreign = FOREIGN[name](tmp_path)
    file = weights_of(foreign.path)
    stored = load_tensors(file)
    value = {"W_skip": torch.ones(D, D), "k": torch.tensor(3)}.get(extra, torch.full((N,), 0.5))
    write_tensors(file, {**stored, extra: value})
    # Bare weights are recognised by all their names: with one more they are another file.
    with pytest.raises(ValueError, match=f"hold {extra} besides|holds no sparse autoencoder of a known format"):
        SAE.from_pretrained(foreign.path, **foreign.options)


@pytest.mark.parametrize("extra", [{"threshold": 0.5}, {"threshold": 0.5, "log_sigma": 0.1}])
def test_a_standard_sae_of_saelens_with_thresholds_is_refused_as_by_saelens(extra: dict, tmp_path: Path):
    tensors = {**four_matrices(), **{name: torch.full((N,), value) for name, value in extra.items()}}
    saelens(tmp_path, "standard", {}, tensors)
    with pytest.raises(ValueError, match="hold .*threshold.* besides"):
        SAE.from_pretrained(tmp_path)


def test_statistics_are_harmless(tmp_path: Path):
    foreign = FOREIGN["openai"](tmp_path)
    write_tensors(foreign.path, {**load_tensors(foreign.path), "stats_last_nonzero": torch.zeros(N)})
    sae = SAE.from_pretrained(foreign.path, **foreign.options)
    torch.testing.assert_close(sae.encode(X), foreign.features(X), rtol=0, atol=1e-5)


# -- config and weights have to agree ---------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "name, file, section, key",
    [
        ("saelens_standard", "cfg.json", None, "d_sae"),
        ("saelens_standard", "cfg.json", None, "d_in"),
        ("sparsify_topk", "cfg.json", None, "d_in"),
        ("sparsify_topk", "cfg.json", None, "num_latents"),
        ("auto_encoder", "config.json", "trainer", "dict_size"),
        ("llamascopium", "config.json", None, "d_model"),
    ],
)
def test_sizes_that_config_and_weights_say_differently_are_refused(name, file, section, key, tmp_path: Path):
    foreign = FOREIGN[name](tmp_path)
    config = json.loads((foreign.path / file).read_text())
    (config if section is None else config[section])[key] = 5
    write_json(foreign.path / file, config)
    with pytest.raises(ValueError, match="says .* = 5, its weights say"):
        SAE.from_pretrained(foreign.path, **foreign.options)


@pytest.mark.parametrize("name", ["auto_encoder_topk", "batch_topk", "matryoshka"])
def test_two_values_of_k_are_refused_until_one_is_given(name: str, tmp_path: Path):
    foreign = FOREIGN[name](tmp_path)
    config = json.loads((foreign.path / "config.json").read_text())
    config["trainer"]["k"] = 7
    write_json(foreign.path / "config.json", config)
    with pytest.raises(ValueError, match="config.json of .* says k = 7, its weights say k = 3. Pass the right one"):
        SAE.from_pretrained(foreign.path, **foreign.options)
    assert SAE.from_pretrained(foreign.path, k=3, **foreign.options).config.k == 3


# -- dtype ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["saelens_standard", "saelens_5"])
def test_the_dtype_is_that_of_the_sources_config(name: str, tmp_path: Path):
    foreign = FOREIGN[name](tmp_path)
    file = foreign.path / "sae_weights.safetensors"
    save_file({key: tensor.bfloat16() for key, tensor in load_file(file).items()}, file)
    sae = SAE.from_pretrained(foreign.path)
    assert sae.dtype == torch.float32
    sae.save_pretrained(tmp_path / "ours")
    assert SAE.from_pretrained(tmp_path / "ours").dtype == torch.float32
    assert SAE.from_pretrained(foreign.path, dtype="bfloat16").dtype == torch.bfloat16
    assert SAE.from_pretrained(foreign.path, dtype="auto").dtype == torch.float32
    write_json(foreign.path / "cfg.json", {**json.loads((foreign.path / "cfg.json").read_text()), "dtype": "bfloat16"})
    assert SAE.from_pretrained(foreign.path).dtype == torch.bfloat16
    write_json(foreign.path / "cfg.json", {**json.loads((foreign.path / "cfg.json").read_text()), "dtype": "nn"})
    with pytest.raises(ValueError, match="dtype = 'nn', expected one such as 'float32'"):
        SAE.from_pretrained(foreign.path)


def test_without_a_dtype_in_the_config_the_files_own_stays(tmp_path: Path):
    foreign = FOREIGN["sparsify_topk"](tmp_path)
    file = foreign.path / "sae.safetensors"
    save_file({key: tensor.bfloat16() for key, tensor in load_file(file).items()}, file)
    assert SAE.from_pretrained(foreign.path).dtype == torch.bfloat16


# -- transcoders ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("architecture", ["skip_transcoder", "jumprelu_skip_transcoder", "transcoder"])
def test_a_transcoder_that_does_not_say_where_it_writes_asks(architecture: str, tmp_path: Path):
    tensors = four_matrices()
    if "skip" in architecture:
        tensors["W_skip"] = torch.ones(D, D)
    if "jumprelu" in architecture:
        tensors["threshold"] = torch.full((N,), 0.5)
    extra = {"apply_b_dec_to_input": False, "metadata": {"hook_name": "blocks.2.mlp.hook_in"}}
    saelens(tmp_path, architecture, extra, tensors)
    with pytest.raises(ValueError, match="is a transcoder and does not say where it writes: pass target_hook_point"):
        SAE.from_pretrained(tmp_path)
    sae = SAE.from_pretrained(tmp_path, target_hook_point="transformer.h.2.mlp.output")
    assert sae.config.is_transcoder and sae.config.skip == ("skip" in architecture)
    assert (
        json.loads((export_sae(sae, tmp_path / "out", "saelens") / "cfg.json").read_text())["architecture"]
        == architecture
    )
