"""A repository with many SAEs: pushed in one commit, listed without weights, loaded by pattern, found by tags."""

import json
import re
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi, ModelCard

from hfsae import (
    SAE,
    BatchTopKSAEConfig,
    CrosscoderSAEConfig,
    StandardSAEConfig,
    find_saes,
    list_saes,
    load_saes,
    push_saes,
)
from hfsae.evaluation import weights_sha256
from hfsae.hub import zoo_name
from tests.hub.samples import config, metrics, snippet, training
from tests.hub_server import HubServer

ZOO = "tester/zoo"


def member(layer: int = 8, k: int = 4, seed: int = 0, **others: Any) -> SAE:
    """A measured SAE."""
    torch.manual_seed(seed)
    fields = {"hook_point": f"transformer.h.{layer}.output", "training": training(portable_name=f"resid_post.{layer}")}
    # Without densities there is no plot to draw, which takes longer than the push.
    sae = SAE.from_config(config(k=k, metrics=metrics(l0=float(k), density=None), **fields | others))
    sae.config.metrics["protocol"]["weights_sha256"] = weights_sha256(sae)
    return sae


@pytest.fixture
def zoo(hub: HubServer) -> HubServer:
    """`tester/zoo` with three SAEs, at two places."""
    push_saes([member(8, 4), member(8, 8), member(10, 4)], ZOO, license="mit")
    return hub


NAMES = ["resid_post.8/topk-32-4", "resid_post.8/topk-32-8", "resid_post.10/topk-32-4"]


# -- pushing ----------------------------------------------------------------------------------------------------------
def test_many_are_pushed_in_one_commit_under_names_that_say_what_they_are(zoo):
    files = zoo.repo(ZOO).files()
    assert len(zoo.requests.matching("POST", "/commit/")) == 1
    assert {f"{name}/model.safetensors" for name in NAMES} <= files.keys()
    assert f'subfolder="{NAMES[0]}"' in files[f"{NAMES[0]}/README.md"].decode()


def test_the_root_card_has_a_row_for_each(zoo):
    card = ModelCard(zoo.repo(ZOO).files()["README.md"].decode())
    rows = [line for line in card.text.splitlines() if line.startswith("| [")]
    assert [re.match(r"\| \[(.+?)\]", row)[1].replace("\\", "") for row in rows] == NAMES
    assert rows[1].endswith("| topk | 32 | 8 | 0.9688 | 0.9625 | 0.25 |") and "resid\\_post.8" in rows[1]
    assert card.data.license == "mit" and card.data.base_model == ["org/lm"]
    assert {"topk", "resid_post.8", "resid_post.10", "transformer.h.8.output"} <= set(card.data.tags)
    for link in re.findall(r"\]\(([^)h]\S+)\)", card.text):
        assert link in zoo.repo(ZOO).files()


def test_figures_for_programs_are_on_the_card_of_each_and_in_the_index_not_on_the_root_card(zoo):
    """The client would give the figures of all entries of a `model-index` to the name of the last."""
    cards = {name: ModelCard(zoo.repo(ZOO).files()[f"{name}README.md"].decode()) for name in ("", f"{NAMES[1]}/")}
    assert not cards[""].data.eval_results and "model-index" not in cards[""].data.to_dict()
    results = {result.metric_type: result.metric_value for result in cards[f"{NAMES[1]}/"].data.eval_results}
    index = json.loads(zoo.repo(ZOO).files()["saes.json"])["saes"][NAMES[1]]
    assert index["metrics"].items() <= results.items() and results["l0"] == 8.0


def test_a_further_push_adds_a_row_and_keeps_the_others_and_what_people_wrote(zoo):
    api = HfApi()
    card = zoo.repo(ZOO).files()["README.md"].decode().replace("license: mit", "license: mit\nthumbnail: a.png")
    api.upload_file(path_or_fileobj=(card + "\n## About us\n").encode(), path_in_repo="README.md", repo_id=ZOO)
    member(3).push_to_hub(ZOO, subfolder="resid_post.3/topk-32-4")
    card = zoo.repo(ZOO).files()["README.md"].decode()
    assert [entry.name for entry in list_saes(ZOO)] == ["resid_post.3/topk-32-4", *NAMES]
    assert "## About us" in card and "thumbnail: a.png" in card and "license: mit" in card
    assert all(f"]({name}/README.md)" in card for name in NAMES)


def test_what_was_deleted_or_changed_by_hand_is_listed_as_it_is(zoo):
    api = HfApi()
    api.delete_folder(NAMES[0], repo_id=ZOO)
    changed = json.loads(zoo.repo(ZOO).files()[f"{NAMES[1]}/config.json"])
    changed["metrics"]["l0"] = 7.5
    api.upload_file(path_or_fileobj=json.dumps(changed).encode(), path_in_repo=f"{NAMES[1]}/config.json", repo_id=ZOO)
    assert [(entry.name, entry.metrics["l0"]) for entry in list_saes(ZOO)] == [(NAMES[1], 7.5), (NAMES[2], 4.0)]
    member(10, 4, seed=1).push_to_hub(ZOO, subfolder=NAMES[2])
    rows = [line for line in zoo.repo(ZOO).files()["README.md"].decode().splitlines() if line.startswith("| [")]
    assert len(rows) == 2 and "| 7.5 |" in rows[0]


def test_stale_figures_are_in_no_row(hub):
    sae = member()
    with torch.no_grad():
        sae.b_dec += 1
    push_saes({"a": sae, "b": member()}, ZOO)
    assert [(entry.name, entry.stale) for entry in list_saes(ZOO)] == [("a", True), ("b", False)]
    card = hub.repo(ZOO).files()["README.md"].decode()
    assert "| 32 | stale | stale | stale | stale |" in card and "Stale figures were measured on other weights" in card


def test_pushing_the_same_again_makes_no_commit(zoo):
    push_saes([member(8, 4), member(8, 8), member(10, 4)], ZOO)
    push_saes([member(8, 8)], ZOO)
    assert len(zoo.repo(ZOO).commits) == 2


def test_folders_that_training_saved_can_be_pushed(hub, tmp_path):
    for k in (2, 4):
        member(k=k).save_pretrained(tmp_path / str(k))
    push_saes([tmp_path / "2", str(tmp_path / "4")], ZOO)
    assert [entry.name for entry in list_saes(ZOO)] == ["resid_post.8/topk-32-2", "resid_post.8/topk-32-4"]


def test_an_sae_at_the_root_keeps_its_card(hub):
    member().push_to_hub(ZOO)
    card = hub.repo(ZOO).files()["README.md"]
    member(8, 8).push_to_hub(ZOO, subfolder="other")
    assert hub.repo(ZOO).files()["README.md"] == card
    assert [entry.name for entry in list_saes(ZOO)] == ["", "other"]
    member(seed=1).push_to_hub(ZOO)
    assert [entry.name for entry in list_saes(ZOO)] == ["", "other"]


def test_names_that_clash_and_no_sae_at_all_are_refused_before_the_hub_is_asked(hub):
    with pytest.raises(ValueError, match="two SAEs would be called 'resid_post.8/topk-32-4'"):
        push_saes([member(), member(seed=1)], ZOO)
    with pytest.raises(ValueError, match="no SAE to push"):
        push_saes({}, ZOO)
    with pytest.raises(ValueError, match="cannot be a folder"):
        push_saes({"a": member(), "../b": member()}, ZOO)
    assert not hub.requests


@pytest.mark.parametrize(
    "made, name",
    [
        (config(), "resid_post.8/topk-32-4"),
        (config(training=None), "transformer.h.8.output/topk-32-4"),
        (config(training=None, hook_point=None), "topk-32-4"),
        (StandardSAEConfig(d_in=8, n_features=32, metrics=metrics(l0=31.7)), "standard-32-32"),
        (StandardSAEConfig(d_in=8, n_features=32), "standard-32"),
        (BatchTopKSAEConfig(d_in=8, n_features=32, k=3, metrics=metrics(l0=2.9)), "batch_topk-32-3"),
    ],
)
def test_names_tell_place_architecture_width_and_sparsity(made, name):
    assert zoo_name(made) == name


def test_a_collection_is_made_once_and_holds_the_repository_once(zoo):
    for seed in (1, 2):
        push_saes({"a": member(seed=seed)}, ZOO, collection="SAEs of org/lm")
    (collection,) = zoo.state.collections.values()
    assert (collection.owner, collection.title) == ("tester", "SAEs of org/lm")
    assert [(item.type, item.id) for item in collection.items] == [("model", ZOO)]


# -- listing and loading ----------------------------------------------------------------------------------------------
def test_listing_fetches_no_weights_and_no_configs_that_the_index_knows(zoo):
    zoo.requests.clear()
    first = list_saes(ZOO)[0]
    assert (first.name, first.architecture, first.n_features, first.place) == (NAMES[0], "topk", 32, "resid_post.8")
    assert first.metrics == {"l0": 4.0, "loss_recovered": 0.96875, "explained_variance": 0.9625, "dead_fraction": 0.25}
    assert not zoo.requests.matching(path="safetensors|config.json")


def test_without_an_index_the_configs_are_read(zoo):
    listed = list_saes(ZOO)
    HfApi().delete_file("saes.json", ZOO)
    assert list_saes(ZOO) == listed
    assert not zoo.requests.matching("GET", "safetensors")


def test_a_folder_is_listed_and_loaded_likewise(tmp_path):
    for name, k in (("x.10/a", 2), ("x.9/a", 4)):
        member(k=k).save_pretrained(tmp_path / name)
    member().save_pretrained(tmp_path / "checkpoint-5" / "saes")
    (tmp_path / "x.9" / "config.json").write_text('{"model_type": "gpt2"}')
    assert [entry.name for entry in list_saes(tmp_path)] == ["x.9/a", "x.10/a"]
    assert load_saes(tmp_path, "x.10*")["x.10/a"].config.k == 2


def test_those_that_fit_a_pattern_are_loaded_from_one_commit(zoo):
    saes = load_saes(ZOO, "resid_post.8/*")
    assert [(name, sae.config.k) for name, sae in saes.items()] == [(NAMES[0], 4), (NAMES[1], 8)]
    assert not zoo.requests.matching("GET", r"resid_post.10.*safetensors")
    assert set(load_saes(ZOO, "*/topk-32-4", dtype=torch.bfloat16)) == {NAMES[0], NAMES[2]}
    with pytest.raises(ValueError, match=f"no SAE of tester/zoo fits 'mlp.*'; there are {NAMES[0]}, "):
        load_saes(ZOO, "mlp*")


def test_only_the_files_of_the_sae_that_is_loaded_are_fetched_and_the_cache_is_enough_afterwards(zoo):
    zoo.requests.clear()
    loaded = SAE.from_pretrained(ZOO, subfolder=NAMES[1])
    assert not zoo.requests.matching(path=r"resid_post.10|topk-32-4|\.png|jsonl")
    with zoo.down():
        assert torch.equal(SAE.from_pretrained(ZOO, subfolder=NAMES[1]).W_dec, loaded.W_dec)


@pytest.mark.parametrize("subfolder, where", [("", "at its root"), ("resid_post.9", "in 'resid_post.9'")])
def test_the_root_of_many_says_which_there_are(zoo, subfolder, where):
    with pytest.raises(OSError, match=f"tester/zoo has no SAE {where}. These folders have: .*'{NAMES[2]}'.* --sub"):
        SAE.from_pretrained(ZOO, subfolder=subfolder)


def test_the_root_of_a_folder_of_many_says_which_there_are(tmp_path):
    member().save_pretrained(tmp_path / "a")
    said = f"has no SAE at its root. These folders have: 'a'. Name one: subfolder='a' .* itself, {tmp_path / 'a'}."
    with pytest.raises(OSError, match=said):
        SAE.from_pretrained(tmp_path)


def test_a_repository_without_saes_and_one_that_does_not_exist_say_what_they_said(hub):
    HfApi().create_repo("tester/empty")
    for name in ("tester/empty", "tester/nothing"):
        with pytest.raises((OSError, ValueError)) as refused:
            SAE.from_pretrained(name)
        assert "These folders" not in str(refused.value)


def test_the_snippet_of_the_root_card_runs(zoo, capsys):
    names: dict[str, Any] = {}
    exec(snippet(zoo.repo(ZOO).files()["README.md"].decode()), names)
    assert names["sae"].config.k == 4 and len(names["saes"]) == 2
    assert len(capsys.readouterr().out.splitlines()) == 3


# -- finding ----------------------------------------------------------------------------------------------------------
def test_saes_are_found_by_model_place_and_architecture(zoo):
    standard = SAE.from_config(StandardSAEConfig(d_in=8, n_features=32, base_model="org/other"))
    standard.push_to_hub("lab/standard")
    assert {entry.repo_id for entry in find_saes()} == {ZOO, "lab/standard"}
    assert [entry.repo_id for entry in find_saes(base_model="org/other")] == ["lab/standard"]
    assert [entry.name for entry in find_saes(base_model="org/lm", hook_point="resid_post.10")] == [NAMES[2]]
    assert [entry.name for entry in find_saes(hook_point="transformer.h.8.output")] == NAMES[:2]
    assert [entry.architecture for entry in find_saes(architecture="standard")] == ["standard"]
    assert find_saes(architecture="gated") == [] == find_saes(author="nobody")
    assert [entry.repo_id for entry in find_saes(search="standard")] == ["lab/standard"]
    with pytest.raises(ValueError, match="no name of a place"):
        find_saes(hook_point="a b")


def test_crosscoders_are_found_by_each_of_their_places_and_by_all_of_them(hub):
    sources = {"source_names": ["a", "b"], "source_widths": [4, 4], "n_features": 16, "k": 2}
    sae = SAE.from_config(CrosscoderSAEConfig(**sources, hook_point="layers.1.output+layers.2.output"))
    sae.config.training = {"portable_name": "resid_post.1+resid_post.2"}
    sae.push_to_hub("lab/both")
    sae.source("b").push_to_hub("lab/many", subfolder="b")
    found = {
        "resid_post.1": ["lab/both"],
        "layers.2.output": ["lab/both", "lab/many"],
        "resid_post.1+resid_post.2": ["lab/both"],
        "resid_post.2+resid_post.1": [],
        "resid_post.3": [],
    }
    for place, repositories in found.items():
        assert sorted(entry.repo_id for entry in find_saes(hook_point=place)) == repositories, place
    assert [entry.place for entry in list_saes("lab/many")] == ["resid_post.2"]
    card = hub.repo("lab/both").files()["README.md"].decode()
    assert "fitted to its sources together" in card and "- resid_post.1\n- resid_post.2\n" in card
    with pytest.raises(ValueError, match="no name of a place"):
        find_saes(hook_point="resid_post.1+")


def test_without_a_hub_listing_loading_and_finding_say_so(zoo):
    with zoo.down():
        for ask in (lambda: list_saes(ZOO), lambda: load_saes(ZOO), find_saes):
            with pytest.raises(OSError, match="the Hub cannot be reached; check the network"):
                ask()


def test_a_repository_that_cannot_be_read_does_not_end_the_search(zoo, caplog):
    stranger = zoo.add_user("stranger")
    member().push_to_hub("stranger/gated", token=stranger.write_token)
    zoo.repo("stranger/gated").gated = "manual"
    assert {entry.repo_id for entry in find_saes()} == {ZOO}
    assert "stranger/gated is left out" in caplog.text
