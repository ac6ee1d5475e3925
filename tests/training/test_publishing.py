"""Publishing from training, on the loopback Hub. Whatever the Hub does, the run ends with its SAEs on the disk."""

import json
import logging
from pathlib import Path

import pytest
import torch
from huggingface_hub import snapshot_download

from hfsae import SAE, SAETrainer, SAETrainingArguments, TopKSAEConfig, list_saes
from tests.data.tiny import language_model, pythia_like
from tests.training.tiny import arguments, text, trainer

REPO = "tester/run"
PUSH = {"push_to_hub": True, "hub_model_id": REPO}


def titles(hub, revision="main"):
    """Titles of the commits, oldest first."""
    repo = hub.repo(REPO)
    return [commit.title for commit in repo.history(repo.resolve(revision))][-2::-1]


def test_at_the_end_the_trained_sae_is_pushed_with_its_card_and_figures(hub, tmp_path, caplog):
    caplog.set_level(logging.INFO, "hfsae")
    output = trainer(tmp_path, steps=3, eval_tokens=100, logging_steps=1, **PUSH).train()
    assert titles(hub) == ["End of training"] and caplog.text.count(f"pushed to {hub.endpoint}/{REPO}") == 1
    loaded = SAE.from_pretrained(REPO)
    assert torch.equal(loaded.W_dec, output.sae.W_dec)
    assert loaded.config.metrics["l0"] == output.metrics[""]["l0"]
    assert {"README.md", "training_log.jsonl", "metrics.json"} <= hub.repo(REPO).files().keys()


@pytest.mark.slow
def test_many_saes_become_one_repository_with_a_folder_for_each(hub, tmp_path):
    saes = {name: TopKSAEConfig(d_in=16, n_features=48, k=k) for name, k in (("two", 2), ("four", 4))}
    trainer(tmp_path, steps=2, inputs={"saes": saes}, **PUSH).train()
    assert titles(hub) == ["End of training"]
    assert {entry.name for entry in list_saes(REPO)} == {"two", "four"}


def test_every_save_pushes_what_there_is_at_each_checkpoint(hub, tmp_path):
    trainer(tmp_path, steps=6, save_steps=3, hub_strategy="every_save", hub_revision="runs", **PUSH).train()
    assert titles(hub, "runs") == ["Training in progress, step 3", "End of training"]
    assert hub.repo(REPO).files("main") == {}


@pytest.mark.slow
def test_a_run_can_be_resumed_from_what_the_checkpoint_strategy_pushed(hub, tmp_path):
    whole = trainer(tmp_path / "whole", steps=6).train().sae
    trainer(tmp_path / "first", steps=6, save_steps=3, hub_strategy="checkpoint", **PUSH).train()
    revision = next(oid for oid, commit in hub.repo(REPO).commits.items() if "step 3" in commit.title)
    assert [entry.name for entry in list_saes(REPO)] == [""]
    local = snapshot_download(REPO, revision=revision, allow_patterns="last-checkpoint/*", local_dir=tmp_path / "hub")
    output = trainer(tmp_path / "second", steps=6).train(resume_from_checkpoint=f"{local}/last-checkpoint")
    assert output.steps == 6 and torch.equal(output.sae.W_dec, whole.W_dec)


@pytest.mark.slow
def test_a_checkpoint_is_pushed_without_the_folders_of_this_machine_and_can_be_gone_on_from(hub, tmp_path):
    language_model().save_pretrained(tmp_path / "lm")
    pythia_like().save_pretrained(tmp_path / "lm")
    text().to_json(tmp_path / "text.jsonl")
    named = {"model_name_or_path": str(tmp_path / "lm"), "dataset_name": str(tmp_path / "text.jsonl")}
    options = {"steps": 6, "save_steps": 3, **named}
    args = arguments(tmp_path / "first", **options, hub_strategy="checkpoint", **PUSH)
    whole = SAETrainer(args=args).train().sae
    revision = next(oid for oid, commit in hub.repo(REPO).commits.items() if "step 3" in commit.title)
    local = Path(snapshot_download(REPO, revision=revision, local_dir=tmp_path / "hub"))
    published = [path for path in local.rglob("*") if path.is_file() and ".cache" not in path.parts]
    assert len(published) > 8 and not [path for path in published if str(tmp_path).encode() in path.read_bytes()]
    run = SAETrainer(args=arguments(tmp_path / "second", **options))
    output = run.train(resume_from_checkpoint=local / "last-checkpoint")
    assert output.steps == 6 and torch.equal(output.sae.W_dec, whole.W_dec)


def test_a_push_that_fails_fails_nothing_else_and_says_how_to_push_by_hand(hub, tmp_path, caplog):
    hub.fail(("POST", "/commit/"), status=403, times=None)
    with caplog.at_level(logging.WARNING, "hfsae"):
        output = trainer(tmp_path, steps=4, save_steps=2, hub_strategy="every_save", **PUSH).train()
    assert output.completed and torch.equal(SAE.from_pretrained(tmp_path).W_dec, output.sae.W_dec)
    assert f"push by hand: hfsae push {tmp_path} {REPO}" in caplog.text
    assert "not pushed at step 2" in caplog.text


def test_a_token_that_may_not_write_is_told_when_the_run_begins(hub, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "hfsae"):
        output = trainer(tmp_path, steps=2, hub_token=hub.user.read_token, **PUSH).train()
    assert output.completed and caplog.text.count("the token may not write to tester") == 2


def test_a_repository_that_cannot_be_is_refused_before_training(tmp_path):
    with pytest.raises(ValueError, match="not/a/repo"):
        arguments(tmp_path, push_to_hub=True, hub_model_id="not/a/repo")


def test_no_file_and_no_log_of_a_run_holds_the_token(hub, tmp_path, caplog):
    token = hub.add_user("lab-member", "lab").write_token
    with caplog.at_level(logging.DEBUG, "hfsae"):
        run = trainer(
            tmp_path,
            steps=4,
            save_steps=2,
            hub_strategy="checkpoint",
            hub_token=token,
            **(PUSH | {"hub_model_id": "lab/a"}),
        )
        run.train()
    assert "push_to_hub" in json.loads((tmp_path / "checkpoint-4" / "run.json").read_text())["arguments"]
    assert hub.repo("lab/a").files()
    written = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert not [
        path for path, content in {**written, **hub.repo("lab/a").files()}.items() if token.encode() in content
    ]
    assert token not in caplog.text and token not in repr(run.args) and token not in json.dumps(run.args.given())


def test_arguments_of_publishing_may_differ_on_resuming():
    before = SAETrainingArguments(hub_token="hf_secret").stored()
    assert "hub_token" not in before
    SAETrainingArguments(push_to_hub=True, hub_model_id=REPO, hub_token="hf_other").refuse_difference(before)
