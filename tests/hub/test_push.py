"""Pushing to the loopback Hub with the genuine client: what arrives, where, and what stays."""

import json

import pytest
import torch
from huggingface_hub import HfApi

from hfsae import SAE, TopKSAEConfig
from hfsae.evaluation import weights_sha256
from hfsae.hub import PushError
from tests.architectures.variants import ARCHITECTURES, VARIANTS, activations
from tests.hub.samples import LOG, config, dashboard_of, metrics, training
from tests.hub_server import HubServer

REPO = "tester/small"


def commits(hub: HubServer, repo_id: str = REPO) -> int:
    return len(hub.repo(repo_id).commits) - 1  # the first only holds .gitattributes


# -- what arrives -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_comes_back_as_it_was_from_one_commit(hub, name):
    sae, x = VARIANTS[name].make(dtype=torch.float32), activations(5, dtype=torch.float32)
    sae.push_to_hub(REPO, license="apache-2.0")
    loaded = SAE.from_pretrained(REPO)
    assert type(loaded) is type(sae) and torch.equal(loaded.encode(x), sae.encode(x))
    files = hub.repo(REPO).files()
    assert files.keys() == {"README.md", "config.json", "model.safetensors"} and commits(hub) == 1
    card = files["README.md"].decode()
    assert "library_name: hfsae" in card and f'SAE.from_pretrained("{REPO}")' in card


def test_weights_of_more_than_ten_megabytes_go_through_lfs_in_parts(hub):
    hub.state.part_size = 2**20
    sae = SAE.from_config(TopKSAEConfig(d_in=256, n_features=6000, k=4))
    sae.push_to_hub(REPO)
    size = len(hub.repo(REPO).files()["model.safetensors"])
    assert size > 10_000_000
    assert len(hub.requests.matching("PUT", "/parts/", origin="storage")) == -(-size // 2**20)
    assert torch.equal(SAE.from_pretrained(REPO).W_dec, sae.W_dec)


def test_what_training_left_in_the_folder_goes_along(hub, tmp_path):
    sae = SAE.from_config(config())
    sae.save_pretrained(tmp_path)
    (tmp_path / "training_log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in LOG))
    sae.push_to_hub(REPO, folder=tmp_path)
    files = hub.repo(REPO).files()
    assert {"training_log.jsonl", "training_curve.png", "feature_density.png", "metrics.json"} <= files.keys()
    assert "](training_curve.png)" in files["README.md"].decode()


def test_the_dashboard_of_the_weights_and_labels_go_along_and_stay(hub, sae, tmp_path):
    sae.save_pretrained(tmp_path)
    (tmp_path / "dashboard.html").write_text(dashboard_of(sae))
    (tmp_path / "labels.json").write_text("{}")
    (tmp_path / "scores.json").write_text("{}")
    sae.push_to_hub(REPO, folder=tmp_path)
    sae.push_to_hub(REPO, license="mit")
    files = hub.repo(REPO).files()
    assert {"dashboard.html", "labels.json", "scores.json"} <= files.keys() and commits(hub) == 2
    assert "](dashboard.html)" in files["README.md"].decode()


def test_a_dashboard_of_other_weights_neither_goes_along_nor_stays(hub, sae, other, tmp_path, caplog):
    (tmp_path / "dashboard.html").write_text(dashboard_of(sae))
    sae.push_to_hub(REPO, folder=tmp_path)
    assert "dashboard.html" in hub.repo(REPO).files()
    other.push_to_hub(REPO, folder=tmp_path)
    files = hub.repo(REPO).files()
    assert "dashboard.html" not in files and "](dashboard.html)" not in files["README.md"].decode()
    told = "dashboard.html shows other weights or settings and is not pushed; `hfsae dashboard` makes it again"
    assert told in caplog.text


def test_an_sae_from_the_hub_keeps_its_curve_when_it_is_pushed_again_and_one_of_another_training_does_not(
    hub, tmp_path
):
    (tmp_path / "training_log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in LOG))
    SAE.from_config(config()).push_to_hub(REPO, folder=tmp_path)
    sae = SAE.from_pretrained(REPO)
    sae.push_to_hub(REPO, license="mit")
    assert "training_curve.png" in hub.repo(REPO).files()
    sae.config.training = training(seed=1)
    sae.push_to_hub(REPO)
    assert not {"training_curve.png", "training_log.jsonl"} & hub.repo(REPO).files().keys()


def test_shards_of_an_earlier_push_do_not_stay_beside_the_weights(hub, sae, tmp_path):
    sae.save_pretrained(tmp_path, max_shard_size="1KB")
    api = HfApi()
    api.create_repo(REPO)
    api.upload_folder(repo_id=REPO, folder_path=tmp_path)
    assert len(hub.repo(REPO).files()) > 3
    sae.push_to_hub(REPO)
    assert hub.repo(REPO).files().keys() == {"README.md", "config.json", "model.safetensors"}


def test_folders_of_this_machine_are_not_published(hub):
    arguments = {"output_dir": "/home/somebody/runs", "learning_rate": 1e-3, "model_name_or_path": "/home/somebody/lm"}
    mine = {
        "base_model": "/home/somebody/lm",
        "training": training(arguments=arguments, dataset="/home/somebody/a.txt"),
    }
    sae = SAE.from_config(config(**mine))
    sae.push_to_hub(REPO)
    assert not [name for name, content in hub.repo(REPO).files().items() if b"somebody" in content]
    published = SAE.from_pretrained(REPO).config
    assert published.base_model is None and published.training["dataset"] == "a.txt"
    assert published.training["arguments"] == {"learning_rate": 1e-3, "model_name_or_path": "lm"}
    assert sae.config.base_model == "/home/somebody/lm" and sae.config.training["arguments"] == arguments


def test_a_model_whose_adapter_stays_here_is_not_published_as_the_model_without_it(hub):
    sae = SAE.from_config(config(base_model_adapter="./lora", base_model_kwargs={"attn_implementation": "eager"}))
    sae.push_to_hub(REPO)
    published = SAE.from_pretrained(REPO).config
    assert (published.base_model, published.base_model_adapter, published.base_model_kwargs) == (None, None, None)
    assert (sae.config.base_model, sae.config.base_model_adapter) == ("org/lm", "./lora")


def test_figures_of_other_weights_are_marked_as_stale(hub):
    sae = SAE.from_config(config())
    sae.config.metrics["protocol"]["weights_sha256"] = weights_sha256(sae)
    sae.push_to_hub(REPO)
    assert "stale" not in hub.repo(REPO).files()["README.md"].decode()
    with torch.no_grad():
        sae.b_dec += 1
    sae.push_to_hub(REPO)
    card = hub.repo(REPO).files()["README.md"].decode()
    assert "These figures are stale" in card and "model-index" not in card


# -- where ------------------------------------------------------------------------------------------------------------
def test_an_sae_in_a_subfolder_of_a_branch_comes_back_from_there(hub, sae):
    sae.push_to_hub(REPO, subfolder="resid_post.1/topk", revision="wide")
    loaded = SAE.from_pretrained(REPO, subfolder="resid_post.1/topk", revision="wide")
    assert torch.equal(loaded.W_dec, sae.W_dec)
    assert hub.repo(REPO).files("main") == {}


def test_a_pull_request_leaves_main_alone(hub, sae):
    sae.push_to_hub(REPO)
    sae.b_dec.data += 1
    info = sae.push_to_hub(REPO, create_pr=True)
    assert info.pr_url
    assert torch.equal(SAE.from_pretrained(REPO).b_dec + 1, sae.b_dec)
    assert torch.equal(SAE.from_pretrained(REPO, revision="refs/pr/1").b_dec, sae.b_dec)


def test_a_stranger_may_propose_with_a_token_that_may_only_read(hub, sae):
    HfApi().create_repo(REPO)
    stranger = hub.add_user("stranger")
    info = sae.push_to_hub(REPO, create_pr=True, token=stranger.read_token)
    assert info.pr_num == 1 and torch.equal(SAE.from_pretrained(REPO, revision="refs/pr/1").W_dec, sae.W_dec)


def test_a_tag_names_the_commit(hub, sae, other):
    info = sae.push_to_hub(REPO, tag="v1")
    other.push_to_hub(REPO)
    assert hub.repo(REPO).resolve("v1").oid == info.oid
    assert torch.equal(SAE.from_pretrained(REPO, revision="v1").W_dec, sae.W_dec)


def test_a_tag_of_another_commit_is_refused_before_anything_is_uploaded(hub, sae, other):
    sae.push_to_hub(REPO, tag="v1")
    hub.requests.clear()
    with pytest.raises(PushError, match="the tag 'v1' names another commit already; choose another"):
        other.push_to_hub(REPO, tag="v1")
    assert not hub.requests.matching("POST", "/preupload/") and commits(hub) == 1
    assert sae.push_to_hub(REPO, tag="v1").oid == hub.repo(REPO).resolve("v1").oid


def test_a_private_repository_is_private_and_a_public_one_is_no_place_for_secrets(hub, sae):
    sae.push_to_hub(REPO, private=True)
    assert hub.repo(REPO).private
    HfApi().create_repo("tester/open")
    with pytest.raises(PushError, match="it exists already and is public"):
        sae.push_to_hub("tester/open", private=True)
    assert hub.repo("tester/open").files() == {}


@pytest.mark.parametrize("bad", ["..", "a/../b", "a/./b", "a//b", ".git/x", "a\\b", "a\nb", "last-checkpoint"])
def test_a_subfolder_that_cannot_be_is_refused_before_the_hub_is_asked(hub, sae, bad):
    with pytest.raises(ValueError, match="folder"):
        sae.push_to_hub(REPO, subfolder=bad)
    assert not hub.requests


def test_arguments_that_contradict_each_other_are_refused_before_the_hub_is_asked(hub, sae):
    with pytest.raises(ValueError, match="merge the pull request first"):
        sae.push_to_hub(REPO, tag="v1", create_pr=True)
    with pytest.raises(ValueError, match="retries"):
        sae.push_to_hub(REPO, retries=-1)
    with pytest.raises(ValueError, match="not a/repo/id"):
        sae.push_to_hub("not a/repo/id")
    with pytest.raises(TypeError, match="reversion"):
        sae.push_to_hub(REPO, reversion="x")
    assert not hub.requests


# -- what stays -------------------------------------------------------------------------------------------------------
def test_pushing_what_is_there_already_makes_no_commit(hub, sae):
    first = sae.push_to_hub(REPO)
    again = SAE.from_pretrained(REPO).push_to_hub(REPO)
    assert commits(hub) == 1 and again.oid == first.oid


def test_what_a_person_wrote_into_the_card_survives_the_next_push(hub, sae):
    sae.push_to_hub(REPO, license="mit", language="en")
    card = hub.repo(REPO).files()["README.md"].decode().replace("license: mit", "license: mit\nthumbnail: a.png")
    HfApi().upload_file(path_or_fileobj=(card + "\n## My notes\n").encode(), path_in_repo="README.md", repo_id=REPO)
    sae.b_dec.data += 1
    sae.push_to_hub(REPO)
    card = hub.repo(REPO).files()["README.md"].decode()
    assert "## My notes" in card
    assert all(line in card.split("---")[1] for line in ("thumbnail: a.png", "license: mit", "language: en"))


def test_a_card_on_the_hub_that_cannot_be_read_stops_the_push(hub, sae):
    api = HfApi()
    api.create_repo(REPO)
    broken = b"---\nmodel-index: [{name: a}]\ntags: {x: [1}\n---\nprecious\n"
    hub.repo(REPO).add_commit("refs/heads/main", replaced(hub, {"README.md": broken}))
    with pytest.raises(ValueError, match="README.md of tester/small has metadata that cannot be read; mend it"):
        sae.push_to_hub(REPO)
    assert hub.repo(REPO).files() == {"README.md": broken}


def replaced(hub: HubServer, files: dict[str, bytes]):
    """A commit of files that the Hub itself would have refused."""
    from tests.hub_server.repository import Blob, Commit

    head = hub.repo(REPO).resolve("main")
    return Commit(
        {**head.files, **{name: Blob(data) for name, data in files.items()}}, "by hand", "tester", "", head.oid
    )


def test_another_model_is_refused_before_its_weights_are_fetched(hub, tmp_path):
    from transformers import GPT2Config, GPT2Model

    GPT2Model(GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=16, n_positions=8)).save_pretrained(tmp_path)
    HfApi().create_repo("tester/gpt2")
    HfApi().upload_folder(repo_id="tester/gpt2", folder_path=tmp_path)
    hub.requests.clear()
    with pytest.raises(ValueError, match="holds a 'gpt2' model, not a sparse autoencoder"):
        SAE.from_pretrained("tester/gpt2")
    assert not [request for request in hub.requests.matching(path=r"safetensors")]


def test_saving_does_not_push(sae, tmp_path):
    with pytest.raises(ValueError, match="push_to_hub"):
        sae.save_pretrained(tmp_path, push_to_hub=True)


def test_figures_that_are_no_numbers_leave_no_trace_in_the_metadata(hub):
    SAE.from_config(config(metrics=metrics(l0=float("nan"), kl=float("inf")))).push_to_hub(REPO)
    front_matter = hub.repo(REPO).files()["README.md"].decode().split("---")[1]
    assert "nan" not in front_matter and "inf" not in front_matter.lower().replace("information", "")
