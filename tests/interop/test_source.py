"""Where foreign files come from: folders, files and the Hub; what is fetched, and what is never opened."""

import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import HfApi

from hfsae import SAE
from hfsae.interop.source import Source
from tests.hub_server import HubServer
from tests.interop.foreign import FOREIGN, LAYER, D, Foreign, sparsify_topk, write_json, write_tensors

X = torch.randn(5, D)


def upload(folder: Path, repo_id: str) -> None:
    HfApi().create_repo(repo_id)
    HfApi().upload_folder(repo_id=repo_id, folder_path=folder)


def fetched(hub: HubServer) -> set[str]:
    """The files that were asked for and were there: what is fetched is always looked at first."""
    asked = [entry for entry in hub.requests.matching("HEAD", path="/resolve/") if entry.status in (200, 302)]
    return {re.sub(".*/resolve/[^/]+/", "", entry.path) for entry in asked}


def assert_same(sae: SAE, foreign: Foreign) -> None:
    torch.testing.assert_close(sae.encode(X), foreign.features(X), rtol=0, atol=1e-5)


# -- the Hub ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "name, subfolder, files",
    [
        (
            "sparsify_topk",
            f"layers.{LAYER}",
            {"config.json", f"layers.{LAYER}/cfg.json", f"layers.{LAYER}/sae.safetensors"},
        ),
        (
            "qwen3_transcoder",
            f"repo/layer_{LAYER}.safetensors",
            {"repo/config.yaml", f"repo/layer_{LAYER}.safetensors"},
        ),
        (
            "gemma_scope",
            f"gemma-scope-2b-pt-mlp/layer_{LAYER}/width_16k/average_l0_71",
            {f"gemma-scope-2b-pt-mlp/layer_{LAYER}/width_16k/average_l0_71/params.npz"},
        ),
        (
            "openai",
            f"gpt2-small/resid_post_mlp_v5_32k/autoencoders/{LAYER}.pt",
            {f"gpt2-small/resid_post_mlp_v5_32k/autoencoders/{LAYER}.pt"},
        ),
    ],
)
def test_only_the_files_that_hold_the_sae_are_fetched(
    name: str, subfolder: str, files: set[str], hub: HubServer, tmp_path: Path
):
    foreign = FOREIGN[name](tmp_path)
    for neighbour in ("notes.txt", "optimizer.pt", "layers.9/sae.safetensors"):
        beside = tmp_path / neighbour
        beside.parent.mkdir(exist_ok=True)
        beside.write_text("not to be fetched")
    upload(tmp_path, "tester/theirs")
    hub.requests.clear()
    sae = SAE.from_pretrained("tester/theirs", subfolder=subfolder, **foreign.options)
    assert_same(sae, foreign)
    assert {key: getattr(sae.config, key) for key in foreign.config} == foreign.config
    assert fetched(hub) == files


def test_what_was_fetched_once_is_read_without_the_hub(hub: HubServer, tmp_path: Path):
    foreign = sparsify_topk(tmp_path)
    upload(tmp_path, "tester/theirs")
    SAE.from_pretrained("tester/theirs", subfolder=foreign.path.name)
    hub.requests.clear()
    again = SAE.from_pretrained("tester/theirs", subfolder=foreign.path.name, local_files_only=True)
    assert_same(again, foreign)
    assert not hub.requests.matching("GET")


def test_a_folder_whose_name_looks_like_a_file_is_a_folder(hub: HubServer, tmp_path: Path):
    foreign = FOREIGN["saelens_standard"](tmp_path / "v5_32k_layer_0.pt")
    upload(tmp_path, "tester/theirs")
    assert_same(SAE.from_pretrained("tester/theirs", subfolder="v5_32k_layer_0.pt"), foreign)


def test_a_revision_is_followed(hub: HubServer, tmp_path: Path):
    foreign = FOREIGN["saelens_standard"](tmp_path)
    upload(tmp_path, "tester/theirs")
    first = HfApi().model_info("tester/theirs").sha
    HfApi().delete_file("cfg.json", "tester/theirs")
    assert_same(SAE.from_pretrained("tester/theirs", revision=first), foreign)
    with pytest.raises(ValueError, match="no sparse autoencoder of a known format"):
        SAE.from_pretrained("tester/theirs")


def test_all_files_are_of_one_commit_also_where_somebody_pushes_in_between(hub: HubServer, tmp_path: Path):
    for name in ("first.json", "second.json"):
        write_json(tmp_path / "old" / name, {"of": "old"})
        write_json(tmp_path / "new" / name, {"of": "new"})
    upload(tmp_path / "old", "tester/theirs")
    source = Source.open("tester/theirs")
    assert source.json("first.json") == {"of": "old"}
    HfApi().upload_folder(repo_id="tester/theirs", folder_path=tmp_path / "new")
    assert source.json("second.json") == {"of": "old"}
    assert Source.open("tester/theirs").json("second.json") == {"of": "new"}
    assert Source.open("tester/theirs", local_files_only=True).json("second.json") == {"of": "new"}


def test_a_missing_place_is_an_oserror(hub: HubServer, tmp_path: Path):
    upload(sparsify_topk(tmp_path).path, "tester/theirs")
    for place, subfolder in (("tester/none", ""), ("tester/theirs", "nowhere"), ("tester/theirs", "nowhere.pt")):
        with pytest.raises(OSError):
            SAE.from_pretrained(place, subfolder=subfolder)
    for place in (tmp_path / "nowhere", "./nowhere"):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            SAE.from_pretrained(place)


# -- pickles ----------------------------------------------------------------------------------------------------------
class Bomb:
    """An object whose unpickling makes a folder: what a malicious pickle could do with anything."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.mkdir, (self.path,))


def test_a_pickle_is_not_even_fetched_unasked(hub: HubServer, tmp_path: Path):
    FOREIGN["auto_encoder"](tmp_path)
    upload(tmp_path, "tester/theirs")
    hub.requests.clear()
    with pytest.raises(ValueError, match="ae.pt of tester/theirs is a pickle.* allow_pickle=True"):
        SAE.from_pretrained("tester/theirs")
    assert fetched(hub) == {"config.json"}


@pytest.mark.parametrize("protocol", ["torch", "plain"])
@pytest.mark.parametrize("name, file", [("auto_encoder", "ae.pt"), ("goodfire", "SAE-l19.pth")])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_malicious_pickle_does_nothing_even_where_pickles_are_allowed(
    name: str, file: str, protocol: str, tmp_path: Path
):
    foreign = FOREIGN[name](tmp_path / "sae")
    content = {"encoder.weight": torch.zeros(2, 2), "bias": Bomb(tmp_path / "harm")}
    if protocol == "torch":
        torch.save(content, tmp_path / "sae" / file)
    else:
        (tmp_path / "sae" / file).write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=f"{file} of .* was refused"):
        SAE.from_pretrained(foreign.path, allow_pickle=True)
    assert not (tmp_path / "harm").exists()
    (torch.load if protocol == "torch" else _unpickle)(tmp_path / "sae" / file, weights_only=False)
    assert (tmp_path / "harm").exists()  # the bomb is real


def _unpickle(path: Path, weights_only: bool) -> None:
    assert not weights_only
    pickle.loads(path.read_bytes())


def test_a_pickled_archive_of_numpy_is_refused_too(tmp_path: Path):
    np.savez(tmp_path / "params.npz", W_enc=np.array([Bomb(tmp_path / "harm")], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        SAE.from_pretrained(tmp_path)
    assert not (tmp_path / "harm").exists()


def test_a_pickle_of_something_else_than_named_tensors_is_refused(tmp_path: Path):
    torch.save([torch.zeros(2)], tmp_path / "x.pt")
    with pytest.raises(ValueError, match="x.pt of .* holds a list, expected named tensors"):
        SAE.from_pretrained(tmp_path, allow_pickle=True)


# -- the parts --------------------------------------------------------------------------------------------------------
def test_a_number_is_the_last_one_of_the_path(tmp_path: Path):
    write_json(tmp_path / "layer_3" / "width_16k" / "layer_12" / "x.json", {"a": 1})
    source = Source.open(str(tmp_path / "layer_3" / "width_16k" / "layer_12"))
    assert source.number_after("layer_") == 12 and source.number_after("width_") == 16
    assert source.number_after("average_l0_") is None
    assert source.json("x.json") == {"a": 1} and source.json("y.json") == {}


def test_the_only_file_that_fits_is_found(tmp_path: Path):
    write_tensors(tmp_path / "a.safetensors", {"x": torch.ones(1)})
    source = Source.open(str(tmp_path))
    assert source.the_one("*.safetensors") == "a.safetensors"
    assert torch.equal(source.tensors("a.safetensors")["x"], torch.ones(1))
    with pytest.raises(ValueError, match=r"lacks \*.npz; found a.safetensors"):
        source.the_one("*.npz")
