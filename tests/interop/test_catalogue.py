import json
import re
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi

from hfsae import SAE
from hfsae.cli import main
from hfsae.hooks.layout import EMBED, LAYER_ROLES
from hfsae.interop.catalogue import Release, release_of, releases, resolve, search
from hfsae.interop.formats import BY_FILES, BY_TENSORS
from hfsae.interop.unlabelled_weights import KINDS
from tests.hub_server import HubServer
from tests.interop.foreign import FOREIGN, D

X = torch.randn(5, D)


@pytest.fixture
def own_release(hub: HubServer, tmp_path: Path):
    """A release in a repository of the loopback Hub, and what its files compute."""
    foreign = FOREIGN["saelens_5"](tmp_path / "repo" / "deep" / "layer_3")
    config = json.loads((foreign.path / "cfg.json").read_text())
    (foreign.path / "cfg.json").write_text(json.dumps({**config, "model_name": None, "hook_point": None}))
    HfApi().create_repo("tester/release")
    HfApi().upload_folder(repo_id="tester/release", folder_path=tmp_path / "repo")
    releases()["a-release"] = Release(
        name="a-release",
        repo="tester/release",
        base_model="openai-community/gpt2",
        format="SAELens",
        architecture=None,
        places=["resid_pre"],
        n_saes=1,
        licence=None,
        source="this test",
        tried=True,
        patterns=[["blocks.{0}.pre", "deep/layer_{0}"]],
        input_transform="center",
        input_scales={"deep/layer_3": 0.5},
    )
    yield foreign
    del releases()["a-release"]


def test_every_entry_is_sound_and_names_its_source():
    formats = {*BY_FILES, *BY_TENSORS, *KINDS}
    for release in releases().values():
        assert release.format in formats and release.source and set(release.places) <= {*LAYER_ROLES, EMBED}
        assert release.places and release.base_model and "/" in release.base_model
        assert not re.match("Qwen/[^Q]", release.base_model)  # as its owner spells it
        for text in [text for pair in release.patterns for text in pair]:
            assert "#" not in text


def test_all_families_that_people_ask_for_are_there():
    repos = " ".join(str(release.repo) for release in releases().values())
    for family in ("gemma-scope-2b", "gemma-scope-2-", "Llama3_1-8B-Base-LX", "GPT2-Small-SAEs-Reformatted"):
        assert family in repos
    for family in ("EleutherAI/sae-", "Qwen/SAE-Res-", "Goodfire/"):
        assert family in repos
    assert search("openai", format="OpenAI")


@pytest.mark.parametrize(
    "name, sae_id, repo, path",
    [
        (
            "gpt2-small-res-jb",
            "blocks.8.hook_resid_pre",
            "jbloom/GPT2-Small-SAEs-Reformatted",
            "blocks.8.hook_resid_pre",
        ),
        (
            "gpt2-small-resid-post-v5-32k",
            "blocks.3.hook_resid_post",
            "jbloom/GPT2-Small-OAI-v5-32k-resid-post-SAEs",
            "v5_32k_layer_3.pt",
        ),
        ("llama_scope_lxr_8x", "l15r_8x", "fnlp/Llama3_1-8B-Base-LXR-8x", "Llama3_1-8B-Base-L15R-8x"),
        (
            "gemma-scope-2b-pt-res-canonical",
            "layer_0/width_16k/canonical",
            "google/gemma-scope-2b-pt-res",
            "layer_0/width_16k/average_l0_105",
        ),
        (
            "goodfire-llama-3.1-8b-instruct",
            "layer_19",
            "Goodfire/Llama-3.1-8B-Instruct-SAE-l19",
            "Llama-3.1-8B-Instruct-SAE-l19.pth",
        ),
        ("sae-llama-3-8b-32x", "layers.10", "EleutherAI/sae-llama-3-8b-32x", "layers.10"),
    ],
)
def test_names_of_saelens_lead_to_files(name: str, sae_id: str, repo: str, path: str):
    assert resolve(name, sae_id) == (repo, path)
    assert resolve(name, path) == (repo, path)
    if releases()[name].patterns or releases()[name].ids:
        known = release_of(repo, path)
        assert known is not None and known.repo == repo


def test_unknown_names_and_ids():
    assert resolve("org/sae", "x") is None and release_of("org/sae", "x") is None
    with pytest.raises(ValueError, match=r"no SAE 'layer_8'; its ids are such as blocks.N.hook_resid_pre"):
        resolve("gpt2-small-res-jb", "layer_8")
    with pytest.raises(ValueError, match="not on the Hub: download it from where https://github.com/openai"):
        resolve("openai-gpt2-small-v5", "")


def test_what_files_leave_out_is_known_of_their_release():
    known = releases()["goodfire-llama-3.1-8b-instruct"]
    assert known.facts("Llama-3.1-8B-Instruct-SAE-l19.pth") == {
        "base_model": "meta-llama/Llama-3.1-8B-Instruct",
        "hook_point": "model.layers.19.output",
    }
    assert releases()["gpt2-small-res-jb"].input_transform == "center"
    transcoder = releases()["mwhanna-qwen3-4b-transcoders"].facts("layer_7.safetensors")
    assert transcoder["hook_point"] == "model.layers.7.mlp.input"
    assert transcoder["target_hook_point"] == "model.layers.7.mlp.output"


@pytest.mark.parametrize(
    "place, subfolder",
    [("a-release", "blocks.3.pre"), ("a-release", "deep/layer_3"), ("tester/release", "deep/layer_3")],
)
def test_a_release_is_loaded_by_its_name_with_what_its_files_leave_out(own_release, place: str, subfolder: str):
    sae = SAE.from_pretrained(place, subfolder=subfolder)
    assert (sae.config.base_model, sae.config.hook_point) == ("openai-community/gpt2", "transformer.h.3.input")
    assert sae.config.input_transform == "center"
    torch.testing.assert_close(sae.encode(X), own_release.features(0.5 * (X - X.mean(1, keepdim=True))))


def test_a_release_is_converted_and_described_by_its_name(own_release, tmp_path: Path, capsys):
    place = ["a-release", "--subfolder", "blocks.3.pre"]
    assert main(["info", *place]) == 0 and "transformer.h.3.input" in capsys.readouterr().out
    assert main(["convert", "a-release", str(tmp_path / "out"), *place[1:]]) == 0
    sae = SAE.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(sae.encode(X), own_release.features(0.5 * (X - X.mean(1, keepdim=True))))
    assert main(["convert", "a-release", str(tmp_path / "all")]) == 1
    assert "its ids are such as blocks.N.pre" in capsys.readouterr().err


def test_the_command_lists_and_filters(capsys: pytest.CaptureFixture[str]):
    assert main(["catalogue", "llama", "scope", "--architecture", "jumprelu"]) == 0
    said = capsys.readouterr().out
    assert "llama_scope_lxr_8x\n  fnlp/Llama3_1-8B-Base-LXR-8x: meta-llama/Llama-3.1-8B, resid_post\n" in said
    assert "32 SAEs, Llama Scope, jumprelu, licence apache-2.0  (not tried on its files)" in said
    assert "gemma" not in said
    assert main(["catalogue", "--format", "Goodfire", "--json"]) == 0
    assert {entry["format"] for entry in json.loads(capsys.readouterr().out)} == {"Goodfire"}
    for asked in (["--format", "gemma scope"], ["--base_model", "gpt2"], ["--base_model", "OpenAI-Community/GPT2"]):
        assert main(["catalogue", *asked, "--json"]) == 0  # as the words, in any case
        entries = json.loads(capsys.readouterr().out)
        assert {entry[asked[0][2:]] for entry in entries} <= {"Gemma Scope", "openai-community/gpt2"} and entries
    assert main(["catalogue", "no", "such"]) == 0
    assert capsys.readouterr().out == "no release fits.\n"


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["--architecture", "jumprelo"], "the architecture 'jumprelo'. Did you mean 'jumprelu'? Known: "),
        (["--format", "nothing"], "Llama Scope, "),
        (["--base_model", "gpt3"], "openai-community/gpt2"),
    ],
)
def test_what_no_release_has_is_refused_with_what_there_is(asked, said, capsys: pytest.CaptureFixture[str]):
    assert main(["catalogue", *asked]) == 1
    assert said in capsys.readouterr().err
