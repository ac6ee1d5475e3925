"""A card is true, or `verify` says what is not."""

import json
import re
import shutil

import pytest
import torch
from huggingface_hub import HfApi

from hfsae import SAE, export_sae
from hfsae.cli import main
from hfsae.hub import write_card
from hfsae.interop.catalogue import Release, releases
from hfsae.saved import verify
from hfsae.saved.measuring_again import evaluate_saved

REPO = "tester/checked"


@pytest.mark.slow
def test_a_published_sae_is_measured_again_from_the_hub_alone_and_its_card_is_true(published, capsys):
    assert main(["verify", REPO, "--subfolder", "a"]) == 0
    out = capsys.readouterr().out
    assert "The card is true, measured on the text that it names." in out and "differs" not in out
    assert "explained variance" in out


@pytest.mark.slow
def test_a_card_that_boasts_is_found_out(published, capsys):
    card = published.repo(REPO).files()["a/README.md"].decode()
    claimed = SAE.from_pretrained(REPO, subfolder="a").config.metrics["explained_variance"]
    assert f"value: {claimed}" in card
    boast = card.replace(f"value: {claimed}", "value: 0.99").encode()
    HfApi().upload_file(path_or_fileobj=boast, path_in_repo="a/README.md", repo_id=REPO)
    assert main(["verify", REPO, "--subfolder", "a"]) == 1
    out = capsys.readouterr().out
    assert "0.99" in out and "differs" in out and "The card is not true" in out
    assert "The card and config.json differ in explained variance." in out


@pytest.mark.slow
def test_weights_that_were_changed_by_hand_are_found_out(trained_folder, tmp_path):
    folder = shutil.copytree(trained_folder, tmp_path / "sae")
    sae = SAE.from_pretrained(folder)
    with torch.no_grad():
        sae.W_dec.copy_(sae.W_dec.flip(0))
    sae.save_pretrained(folder)
    outcome = verify(folder)
    assert not outcome.ok and outcome.problems[0].startswith("The weights are not the measured ones")
    write_card(folder)
    with pytest.raises(ValueError, match="claims no figures, or calls them stale"):
        verify(folder)


@pytest.mark.slow
def test_settings_that_were_changed_are_found_out(trained_folder, tmp_path):
    folder = shutil.copytree(trained_folder, tmp_path / "sae")
    SAE.from_pretrained(folder, exclude_positions=[0, 1]).save_pretrained(folder)
    assert verify(folder).problems[0] == "The settings are not the measured ones: exclude_positions changed since."
    write_card(folder)
    with pytest.raises(ValueError, match="claims no figures, or calls them stale"):
        verify(folder)


def test_fewer_tokens_and_other_text_are_judged_with_more_patience(trained_folder, tmp_path):
    texts = tmp_path / "other.jsonl"
    text = "def f(x):\n    return x + 1\n" * 40
    texts.write_text("\n".join(json.dumps({"text": text}) for _ in range(4)))
    outcome = verify(trained_folder, dataset=str(texts), split="train", max_tokens=300)
    assert not outcome.same_text and "another text" in str(outcome)
    assert {claim.tolerance for claim in outcome.claims} == {0.1}


def test_without_a_card_there_is_nothing_to_verify(trained_folder, tmp_path):
    SAE.from_pretrained(trained_folder).save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="has no card README.md to verify: write it with `hfsae card`"):
        verify(tmp_path)


def test_without_a_card_on_the_hub_neither(hub, trained_folder):
    HfApi().create_repo(REPO)
    HfApi().upload_file(path_or_fileobj=trained_folder / "config.json", path_in_repo="a/config.json", repo_id=REPO)
    with pytest.raises(FileNotFoundError, match="tester/checked has no card a/README.md to verify"):
        verify(REPO, subfolder="a")


@pytest.mark.slow
def test_an_sae_of_another_project_is_checked_against_what_is_reported_of_it(trained_folder, tmp_path, capsys):
    sae = SAE.from_pretrained(trained_folder)
    protocol = sae.config.metrics["protocol"]
    text = ["--dataset", protocol["dataset"], "--split", protocol["split"], "--tokens", "2000"]
    folder = export_sae(sae, tmp_path / "theirs", "saelens")
    assert main(["verify", str(folder), *text]) == 0
    assert "What SAELens says of it is true, measured on another text" in capsys.readouterr().out
    with torch.no_grad():
        sae.W_dec.copy_(sae.W_dec.flip(0))
    export_sae(sae, folder, "saelens")
    assert main(["verify", str(folder), *text]) == 1
    out = capsys.readouterr().out
    assert "It does not reconstruct what it is fed here: L0" in out and "What SAELens says of it is not true" in out
    with pytest.raises(ValueError, match="which holds no metrics: convert it first"):
        evaluate_saved(folder, dataset="x", write=True)


def test_a_release_of_the_catalogue_is_checked_by_its_name(published, trained_folder, tmp_path, monkeypatch, capsys):
    sae = SAE.from_pretrained(trained_folder)
    sae.config.base_model, sae.config.hook_point = "tester/tiny-lm", None
    export_sae(sae, tmp_path / "deep" / "layer_1", "saelens")
    HfApi().create_repo("tester/theirs")
    HfApi().upload_folder(repo_id="tester/theirs", folder_path=tmp_path)
    release = Release(
        name="a-release",
        repo="tester/theirs",
        base_model="tester/tiny-lm",
        format="SAELens",
        architecture="topk",
        places=["resid_post"],
        n_saes=1,
        licence=None,
        source="this test",
        tried=True,
        patterns=[["blocks.{0}.post", "deep/layer_{0}"]],
    )
    monkeypatch.setitem(releases(), "a-release", release)
    protocol = sae.config.metrics["protocol"]
    text = ["--dataset", protocol["dataset"], "--split", protocol["split"], "--tokens", "2000"]
    assert main(["verify", "a-release", "--subfolder", "blocks.1.post", *text]) == 0
    assert "What SAELens says of it is true" in capsys.readouterr().out
    assert main(["verify", "a-release", "--subfolder", "blocks.1.pre", *text]) == 1
    assert "a-release has no SAE 'blocks.1.pre'; its ids are such as blocks.N.post" in capsys.readouterr().err


def test_a_card_with_two_values_for_one_figure_is_refused_before_anything_is_measured(trained_folder, tmp_path):
    folder = shutil.copytree(trained_folder, tmp_path / "sae")
    path = folder / "README.md"
    text = path.read_text(encoding="utf-8")
    (line,) = re.findall(r"^ *- type: l0\n *value: .*$", text, re.MULTILINE)
    path.write_text(text.replace(line, f"{line}\n{line[: line.rindex(' ')]} 99.0"), encoding="utf-8")
    with pytest.raises(ValueError, match="README.md of .* cannot be verified: it claims two values for L0, 8 and 99"):
        verify(folder, model="never/loaded")
