"""Weights without a config: told by names and shapes of tensors, and by what the user says of them."""

import logging
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi
from safetensors.torch import save_file

from hfsae import SAE
from hfsae.saved.convert import convert, sae_subfolders
from tests.hub_server import HubServer
from tests.interop.foreign import FOREIGN, D, K, N, jump, keep_largest, matrices, thresholds, write_tensors

X = 2 * torch.randn(40, D, generator=torch.Generator().manual_seed(3)) + 0.5
SUFFIXES = [".pth", ".safetensors"]


def plain(folder: Path, suffix: str, **extra: torch.Tensor) -> Path:
    write_tensors(folder / f"sae{suffix}", {**matrices(), **extra})
    return folder / f"sae{suffix}"


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("subtract", [True, False, None])
def test_plain_matrices_are_a_relu_where_the_user_says_so(suffix: str, subtract: bool | None, tmp_path: Path, caplog):
    w = matrices()
    given = {} if subtract is None else {"subtract_b_dec": subtract}
    with caplog.at_level(logging.WARNING):
        sae = SAE.from_pretrained(plain(tmp_path, suffix), architecture="standard", allow_pickle=True, **given)
    moved = X if subtract is False else X - w["b_dec"]
    features = (moved @ w["W_enc"] + w["b_enc"]).relu()
    torch.testing.assert_close(sae.encode(X), features, rtol=0, atol=1e-5)
    torch.testing.assert_close(sae(X).reconstruction, features @ w["W_dec"] + w["b_dec"], rtol=0, atol=1e-5)
    assert type(sae).__name__ == "StandardSAE" and sae.config.training == {"converted_from": "plain matrices"}
    assert ("does not say whether b_dec is subtracted" in caplog.text) == (subtract is None)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_in_a_folder_is_found_and_named(suffix: str, tmp_path: Path):
    plain(tmp_path, suffix)
    for place, subfolder in ((tmp_path, ""), (tmp_path, f"sae{suffix}")):
        sae = SAE.from_pretrained(place, subfolder=subfolder, architecture="standard", allow_pickle=True)
        assert (sae.config.d_in, sae.config.n_features) == (D, N)


def test_without_a_word_of_the_user_it_asks_and_takes_it_for_nothing(tmp_path: Path):
    path = plain(tmp_path, ".pth")
    with pytest.raises(ValueError, match=r"W_enc, W_dec, b_enc and b_dec, as many projects .*architecture='standard'"):
        SAE.from_pretrained(path, allow_pickle=True)
    with pytest.raises(ValueError, match="architecture must be one of standard, topk, jumprelu"):
        SAE.from_pretrained(path, allow_pickle=True, architecture="gated")
    with pytest.raises(ValueError, match="Pass k="):
        SAE.from_pretrained(path, allow_pickle=True, architecture="topk")


def test_qwen_scopes_way_round_is_read_by_shapes_as_a_relu_too(tmp_path: Path):
    w = matrices()
    write_tensors(tmp_path / "sae.pt", {**w, "W_enc": w["W_enc"].T.contiguous(), "W_dec": w["W_dec"].T.contiguous()})
    sae = SAE.from_pretrained(tmp_path, architecture="standard", allow_pickle=True, subtract_b_dec=False)
    torch.testing.assert_close(sae.encode(X), (X @ w["W_enc"] + w["b_enc"]).relu(), rtol=0, atol=1e-5)


def test_a_topk_and_a_jumprelu_can_be_said(tmp_path: Path):
    w = matrices()
    h = (X - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    topk = SAE.from_pretrained(plain(tmp_path, ".safetensors"), k=K)
    torch.testing.assert_close(topk.encode(X), keep_largest(h, K), rtol=0, atol=1e-5)
    path = plain(tmp_path / "jump", ".safetensors", threshold=thresholds())
    jumps = SAE.from_pretrained(path, architecture="jumprelu", subtract_b_dec=True)
    torch.testing.assert_close(jumps.encode(X), jump(h, thresholds()), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="hold threshold besides"):
        SAE.from_pretrained(path, architecture="standard")
    with pytest.raises(ValueError, match="lack threshold"):
        SAE.from_pretrained(plain(tmp_path, ".safetensors"), architecture="jumprelu")


@pytest.mark.parametrize("size", [D, N])
def test_shapes_that_do_not_tell_the_way_round_are_refused(size: int, tmp_path: Path):
    w = {"W_enc": torch.ones(size, size), "W_dec": torch.ones(size, size)}
    save_file({**w, "b_enc": torch.ones(size), "b_dec": torch.ones(size)}, tmp_path / "sae.safetensors")
    with pytest.raises(ValueError, match="two that differ"):
        SAE.from_pretrained(tmp_path, architecture="standard")


def test_architecture_is_for_weights_that_do_not_say_it(tmp_path: Path):
    with pytest.raises(ValueError, match="is of SAELens, which says its architecture itself"):
        SAE.from_pretrained(FOREIGN["saelens_standard"](tmp_path).path, architecture="standard")


@pytest.mark.parametrize("name", ["goodfire", "deepseek_r1", "qwen_scope"])
def test_bare_safetensors_are_read_like_bare_pickles(name: str, tmp_path: Path):
    foreign = FOREIGN[name](tmp_path)
    path = foreign.path.with_suffix(".safetensors")
    stored = torch.load(foreign.path, weights_only=True)
    write_tensors(path, stored)
    foreign.path.unlink()
    options = {key: value for key, value in foreign.options.items() if key != "allow_pickle"}
    sae = SAE.from_pretrained(path, **options)
    torch.testing.assert_close(sae.encode(X), foreign.features(X), rtol=0, atol=1e-5)
    assert {key: getattr(sae.config, key) for key in foreign.config} == foreign.config


def test_openais_weights_in_safetensors_ask_for_their_activation_function(tmp_path: Path):
    foreign = FOREIGN["openai"](tmp_path)
    stored = torch.load(foreign.path, weights_only=True)
    path = foreign.path.with_suffix(".safetensors")
    write_tensors(path, {name: value for name, value in stored.items() if isinstance(value, torch.Tensor)})
    with pytest.raises(ValueError, match="does not say its activation function: pass k="):
        SAE.from_pretrained(path)
    torch.testing.assert_close(SAE.from_pretrained(path, k=K).encode(X), foreign.features(X), rtol=0, atol=1e-5)
    assert type(SAE.from_pretrained(path, architecture="standard")).__name__ == "StandardSAE"


def test_of_several_files_one_has_to_be_named_and_all_are_converted(tmp_path: Path):
    for number in (1, 2):
        write_tensors(tmp_path / f"layer_{number}.safetensors", {**matrices()})
    write_tensors(tmp_path / "statistics.safetensors", {"mean": torch.zeros(D)})
    with pytest.raises(ValueError, match="2 files that may be meant: layer_1.safetensors, layer_2.safetensors"):
        SAE.from_pretrained(tmp_path, architecture="standard")
    assert list(sae_subfolders(tmp_path)) == ["layer_1.safetensors", "layer_2.safetensors"]
    written = convert(tmp_path, tmp_path / "out", given={"architecture": "standard"})
    assert [folder.name for folder in written] == ["layer_1", "layer_2"]


def test_on_the_hub_headers_alone_are_read_of_what_is_no_sae(hub: HubServer, tmp_path: Path):
    plain(tmp_path, ".safetensors")
    write_tensors(tmp_path / "other.safetensors", {"a": torch.zeros(1000)})
    HfApi().create_repo("tester/theirs")
    HfApi().upload_folder(repo_id="tester/theirs", folder_path=tmp_path)
    hub.requests.clear()
    sae = SAE.from_pretrained("tester/theirs", architecture="standard")
    assert sae.config.n_features == N
    # A file that is fetched is first asked for by HEAD.
    asked = [entry.path for entry in hub.requests.matching("HEAD", path="/resolve/") if entry.status in (200, 302)]
    assert [path for path in asked if path.endswith(".safetensors")] == [path for path in asked if "sae." in path]
