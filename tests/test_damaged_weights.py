"""Damaged weights, whoever reads them: an SAE, another project's, collected features. Weights that cannot be right."""

import os
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hfsae import SAE, JumpReLUSAEConfig, StandardSAEConfig, TopKSAEConfig
from hfsae.cli import main
from hfsae.storage import DamagedFileError
from tests.test_storage import DAMAGE


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    SAE.from_config(JumpReLUSAEConfig(d_in=8, n_features=32)).save_pretrained(tmp_path / "sae")
    return tmp_path / "sae"


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("summed", [True, False])
def test_an_sae_without_whole_weights_is_an_oserror_with_a_cure(folder: Path, kind: str, summed: bool, capsys):
    path = folder / "model.safetensors"
    damage, message = DAMAGE[kind]
    path.write_bytes(damage(path.read_bytes()))
    if not summed:
        (folder / "SHA256SUMS").unlink()
    with pytest.raises(DamagedFileError, match=f"(?s)model.safetensors .*{message}"):
        SAE.from_pretrained(folder)
    assert main(["card", str(folder)]) != 0
    assert "model.safetensors" in capsys.readouterr().err


def test_a_flipped_bit_is_found(folder: Path):
    flip(folder / "model.safetensors", -5)
    with pytest.raises(DamagedFileError, match="model.safetensors is not what was written.*SHA256SUMS"):
        SAE.from_pretrained(folder)
    (folder / "SHA256SUMS").unlink()
    SAE.from_pretrained(folder)


@pytest.mark.parametrize("depth", [300, 500, 2000])
def test_a_config_that_is_nested_deep_is_read_or_refused_in_our_own_words(folder: Path, depth: int):
    config = (folder / "config.json").read_text()
    deep = '{"a":' * depth + "1" + "}" * depth
    (folder / "config.json").write_text(config.replace("{", f'{{"training": {deep},', 1))
    try:
        SAE.from_pretrained(folder)
    except (ValueError, OSError) as error:
        assert str(folder) in str(error)


def test_saving_again_vouches_for_the_new_weights(folder: Path):
    sae = SAE.from_pretrained(folder)
    with torch.no_grad():
        sae.W_dec[0, 0] = 7
    sae.save_pretrained(folder)
    assert SAE.from_pretrained(folder).W_dec[0, 0] == 7


def test_weights_can_be_read_by_whoever_can_read_the_config(folder: Path):
    modes = {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    before = os.umask(0)
    os.umask(before)
    assert modes == {0o666 & ~before}


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("encoder.weight", torch.nan, r"encoder\.weight of .* holds NaN or infinity, in 1 of 256 places"),
        ("W_dec", torch.inf, "W_dec of .* holds NaN or infinity"),
        ("threshold", torch.nan, "threshold of .* holds NaN or infinity"),
        ("threshold", torch.inf, "threshold of .* holds NaN or infinity"),
        ("input_scale", 0.0, "input_scale of .* is 0.0, expected a number above 0"),
        ("input_scale", -1.0, "input_scale of .* is -1.0, expected a number above 0"),
        ("input_scale", torch.inf, "input_scale of .* holds NaN or infinity"),
        ("input_scale", torch.nan, "input_scale of .* holds NaN or infinity"),
    ],
)
def test_weights_that_cannot_be_right_are_refused(folder: Path, name: str, value: float, message: str):
    tensors = {key: tensor.clone() for key, tensor in load_file(folder / "model.safetensors").items()}
    tensors[name].view(-1)[-1:] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "SHA256SUMS").unlink()
    with pytest.raises(ValueError, match=message):
        SAE.from_pretrained(folder)


def test_weights_of_other_projects_that_cannot_be_right_are_refused(tmp_path: Path):
    sae = SAE.from_config(StandardSAEConfig(d_in=8, n_features=32, hook_point="transformer.h.1.output"))
    with torch.no_grad():
        sae.encoder.weight[3, 3] = torch.nan
    weights = {"W_enc": sae.W_enc.contiguous(), "W_dec": sae.W_dec, "b_enc": sae.b_enc, "b_dec": sae.b_dec}
    save_file(weights, tmp_path / "sae.safetensors")
    with pytest.raises(ValueError, match="holds NaN or infinity"):
        SAE.from_pretrained(tmp_path, architecture="standard")


def test_large_finite_weights_pass(tmp_path: Path):
    sae = SAE.from_config(StandardSAEConfig(d_in=8, n_features=32))
    with torch.no_grad():
        sae.W_dec.fill_(1e38)
    sae.save_pretrained(tmp_path)
    assert SAE.from_pretrained(tmp_path).W_dec[0, 0] == torch.tensor(1e38)


@pytest.mark.parametrize("kind", ["empty", "half", "one byte short", "git-lfs", "web page"])
@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pt"])
def test_weights_of_other_projects_that_are_not_whole_are_an_oserror(tmp_path: Path, kind: str, suffix: str):
    sae = SAE.from_config(TopKSAEConfig(d_in=8, n_features=32, k=4))
    weights = {"W_enc": sae.W_enc.contiguous(), "W_dec": sae.W_dec, "b_enc": sae.b_enc, "b_dec": sae.b_dec}
    weights = {name: tensor.detach() for name, tensor in weights.items()}
    path = tmp_path / f"params{suffix}"
    if suffix == ".npz":
        arrays = {name: tensor.numpy() for name, tensor in weights.items()}
        np.savez(path, **arrays, threshold=np.zeros(32, dtype=np.float32))
    elif suffix == ".pt":
        torch.save(weights, path)
    else:
        save_file(weights, path)
    damage, _ = DAMAGE[kind]
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises((OSError, ValueError), match=rf"params\{suffix}"):
        SAE.from_pretrained(tmp_path, allow_pickle=True, **({"architecture": "standard"} if suffix != ".npz" else {}))
