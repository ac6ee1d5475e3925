"""What a stranger's repository may hold and cannot do: run code, leave its folder, exhaust the machine."""

import json
import pickle
import resource
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.constants import HF_HUB_CACHE
from safetensors.torch import save

from hfsae import SAE, find_saes, list_saes, load_saes
from hfsae.hub import render_card
from hfsae.hub.card import read_card
from tests.hub.conftest import make
from tests.hub_server import HubServer
from tests.hub_server.repository import Blob, Commit
from tests.hub_server.state import Caller

REPO = "mallory/sae"
LFS = (".safetensors", ".bin", ".pkl")


def publish(hub: HubServer, files: Mapping[str, bytes]) -> None:
    """A commit made without the checks of the Hub or of its client."""
    mallory = hub.add_user("mallory")
    repo = hub.state.repos.get(("model", REPO)) or hub.state.create_repo(Caller(mallory, "write"), "model", REPO)
    blobs = {name: Blob(data, is_lfs=name.endswith(LFS)) for name, data in files.items()}
    hub.state.objects |= {blob.sha256: blob.data for blob in blobs.values() if blob.is_lfs}
    repo.add_commit("refs/heads/main", Commit(blobs, "evil", "mallory"))


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    """The files of an honest SAE."""
    make().save_pretrained(tmp_path / "honest")
    return {path.name: path.read_bytes() for path in (tmp_path / "honest").iterdir()}


def edited(files: dict[str, bytes], **fields: Any) -> dict[str, bytes]:
    """The same with another config."""
    return {**files, "config.json": json.dumps({**json.loads(files["config.json"]), **fields}).encode()}


class Trap:
    """Opened by pickle, it makes a folder."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.mkdir, (self.path,)


def test_pickled_weights_are_neither_opened_nor_fetched(hub, files, tmp_path):
    sprung = tmp_path / "sprung"
    publish(hub, {"config.json": files["config.json"], "pytorch_model.bin": pickle.dumps(Trap(sprung))})
    with pytest.raises(OSError, match="Can't load the model for 'mallory/sae'"):
        SAE.from_pretrained(REPO)
    assert not sprung.exists() and not hub.requests.matching("GET", "/objects/")


def test_code_in_the_repository_is_not_run_even_by_those_who_trust_it(hub, files, tmp_path):
    sprung = tmp_path / "sprung"
    code = f"from pathlib import Path\nPath({str(sprung)!r}).mkdir()\n".encode()
    auto_map = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}
    publish(hub, {**edited(files, auto_map=auto_map), "evil.py": code})
    for trust in ({}, {"trust_remote_code": True}):
        loaded = SAE.from_pretrained(REPO, **trust)
        assert torch.equal(loaded.W_dec, make().W_dec)
    publish(hub, {**edited(files, auto_map=auto_map, model_type="evil"), "evil.py": code})
    for trust in ({}, {"trust_remote_code": True}):
        with pytest.raises(ValueError, match="'evil' model with code of its own.*hfsae runs no code of a repo"):
            SAE.from_pretrained(REPO, **trust)
    assert not sprung.exists() and not hub.requests.matching(path="evil.py")


@pytest.mark.parametrize(
    "name", ["../../escaped/config.json", "a/../../../escaped/config.json", "/escaped/config.json"]
)
def test_names_of_files_that_lead_out_of_the_repository_write_nothing_there(hub, files, name):
    publish(hub, {**files, name: files["config.json"]})
    assert [entry.name for entry in list_saes(REPO)] == [""]
    with pytest.raises((ValueError, OSError)):
        SAE.from_pretrained(REPO, subfolder="/".join(name.split("/")[:-1]) or "x")
    cache = Path(HF_HUB_CACHE)
    assert not list(cache.rglob("escaped"))
    assert not [above for above in cache.parents if (above / "escaped").exists()]


@pytest.mark.parametrize("subfolder", ["../honest", "a/../../honest"])
def test_a_subfolder_that_leads_out_of_the_repository_is_refused(hub, files, subfolder):
    publish(hub, files)
    with pytest.raises((ValueError, OSError)):
        SAE.from_pretrained(REPO, subfolder=subfolder)


@pytest.mark.parametrize("n_features", [10**9, 10**15])
def test_a_config_that_claims_to_be_huge_costs_no_memory(hub, files, n_features):
    publish(hub, edited(files, n_features=n_features))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=f"not those of d_in=16, n_features={n_features}"):
        SAE.from_pretrained(REPO)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kilobytes


def test_weights_of_another_shape_are_refused_by_name(hub, files):
    weights = {name: tensor.clone() for name, tensor in make().state_dict().items()}
    publish(hub, {**files, "model.safetensors": save(weights | {"W_dec": torch.zeros(3, 5)})})
    with pytest.raises(ValueError, match=r"W_dec \(stored \(3, 5\), expected \(64, 16\)\)"):
        SAE.from_pretrained(REPO)


def test_a_config_of_many_megabytes_is_not_fetched_for_a_list(hub, files):
    publish(hub, {**{f"good/{name}": data for name, data in files.items()}, "big/config.json": b" " * 5 * 2**20})
    assert [entry.name for entry in list_saes(REPO)] == ["good"]
    assert not hub.requests.matching("GET", "big/config.json")


@pytest.mark.parametrize(
    "index",
    [
        b"[]", b"{", b'{"version": 1}', b'{"version": 1, "saes": {"": 3}}', b"[" * 100_000,
        b'{"version": 2, "saes": 5}',
        b'{"version": 1, "saes": {"": {"config": "BLOB", "n_features": "many"}}}',
        b'{"version": 1, "saes": {"": {"config": "BLOB", "evil": 1, "d_in": 1, "n_features": 1, "metrics": []}}}',
    ],
)  # fmt: skip
def test_an_index_that_is_none_is_passed_over(hub, files, index, caplog):
    blob = Blob(files["config.json"]).git_oid.encode()
    publish(hub, {**files, "saes.json": index.replace(b"BLOB", blob)})
    (entry,) = list_saes(REPO)
    assert (entry.architecture, entry.n_features) == ("topk", 64)


def test_figures_that_are_no_numbers_are_left_out_of_lists(hub, files):
    metrics = {"l0": float("nan"), "explained_variance": "0.99", "loss_recovered": float("inf"), "dead_fraction": 0.5}
    publish(hub, edited(files, metrics=metrics))
    assert list_saes(REPO)[0].metrics == {"dead_fraction": 0.5}


@pytest.mark.parametrize(
    "config", [b"[]", b"{", b'{"model_type": "hfsae_topk", "k": "x"}', b"[" * 100_000, b"\xff\xfe"]
)
def test_configs_that_are_none_do_not_end_a_list(hub, files, config, caplog):
    publish(hub, {"bad/config.json": config, **{f"good/{name}": data for name, data in files.items()}})
    assert [entry.name for entry in list_saes(REPO)] == ["good"]
    assert "bad of mallory/sae is left out" in caplog.text
    assert list(load_saes(REPO, "good")) == ["good"]


ODD = {
    "infinite dtype": {"dtype": float("inf")},
    "no such dtype": {"dtype": "int9"},
    "empty dtype": {"dtype": ""},
    "dtype of torch that is none": {"dtype": "nn"},
    "labels of another kind": {"id2label": [1, 2]},
    "layers of another kind": {"per_layer_config": "x"},
    "a text for a number": {"n_features": "many"},
    "a number for a record": {"training": 5},
    "a record of odd kinds": {"training": {"dataset": 7, "n_tokens": "x", "portable_name": [], "versions": 3}},
    "metrics of odd kinds": {"metrics": {"l0": [], "protocol": 3, "density": "x", "baselines": 5, "notes": 1}},
}


@pytest.mark.parametrize("fields", ODD.values(), ids=ODD)
def test_an_odd_config_ends_neither_a_list_nor_a_search_nor_the_push_of_another(hub, files, fields, caplog):
    odd = edited(files, **fields)
    good = {f"good/{name}": data for name, data in files.items()}
    card = b"---\nlibrary_name: hfsae\ntags: [hfsae]\n---\n"
    publish(hub, {**{f"odd/{name}": data for name, data in odd.items()}, **good, "README.md": card})
    assert "good" in [entry.name for entry in list_saes(REPO)]
    assert "good" in [entry.name for entry in find_saes()]
    token = hub.state.users["mallory"].write_token
    make(seed=1).push_to_hub(REPO, subfolder="new", token=token)
    assert {"good", "new"} <= {entry.name for entry in list_saes(REPO)}
    assert torch.equal(load_saes(REPO, "new")["new"].W_dec, make(seed=1).W_dec)


@pytest.mark.parametrize("broken", [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000])
def test_a_push_mends_a_broken_config(hub, files, broken):
    publish(hub, {**files, "config.json": broken})
    sae = make()
    sae.config.training = {"n_tokens": 5}
    sae.push_to_hub(REPO, token=hub.state.users["mallory"].write_token)
    assert SAE.from_pretrained(REPO).config.training == {"n_tokens": 5}


def test_an_index_of_many_megabytes_is_neither_fetched_nor_parsed(hub, files):
    publish(hub, {**files, "saes.json": b" " * 17 * 2**20})
    assert [entry.name for entry in list_saes(REPO)] == [""]
    make(seed=1).push_to_hub(REPO, subfolder="new", token=hub.state.users["mallory"].write_token)
    assert not hub.requests.matching(path="resolve/.*/saes.json")
    assert [entry.name for entry in list_saes(REPO)] == ["", "new"]


def test_a_yaml_bomb_in_a_card_does_not_go_off(tmp_path):
    """Each level names the one before nine times: nine levels stand for 10⁹ words."""
    levels = [f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]" for before, name in pairwise("abcdefghij")]
    bomb = "\n".join(["a: &a [x,x,x,x,x,x,x,x,x]", *levels, "tags: *j"])
    path = tmp_path / "README.md"
    path.write_text(f"---\n{bomb}\n---\nboom\n")
    with pytest.raises(ValueError, match="metadata that cannot be read"):
        render_card(make(), existing=read_card(path))


def test_a_pickle_in_the_yaml_of_a_card_is_not_opened(tmp_path):
    sprung = tmp_path / "sprung"
    path = tmp_path / "README.md"
    path.write_text(
        f"---\na: !!python/object/apply:pathlib.Path.mkdir [!!python/object/apply:pathlib.Path ['{sprung}']]\n---\n"
    )
    with pytest.raises(ValueError, match="metadata that cannot be read"):
        read_card(path)
    assert not sprung.exists()
