"""A set on a disk and on the Hub: pushed, loaded, measured again and compared with what its cards say."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi

from hfsae import SAE, load_saes, push_saes
from hfsae.cli import main
from hfsae.evaluation.saved_set import SET_FILE, read_set
from hfsae.saved.verify_set import verify_set
from hfsae.saving import write_config
from tests.hub.conftest import make

TINY_LM = Path(__file__).parents[2] / "examples" / "tiny_lm"
NAMES = ["mlp_in.2", "mlp_in.3"]
REPO = "tester/set"


@pytest.fixture
def copied(trained_set, tmp_path) -> Path:
    return shutil.copytree(trained_set, tmp_path / "set")


@pytest.mark.slow
def test_it_is_pushed_in_one_commit_and_its_card_is_true_from_the_hub_alone(hub, copied, capsys):
    HfApi().create_repo("tester/tiny-lm")
    HfApi().upload_folder(repo_id="tester/tiny-lm", folder_path=TINY_LM)
    for name in NAMES:
        config = SAE.from_pretrained(copied, subfolder=name).config
        config.base_model = "tester/tiny-lm"
        write_config(config, copied / name)
    commits = len(hub.requests.matching("POST", "/commit/"))
    assert main(["push", str(copied), REPO]) == 0
    assert len(hub.requests.matching("POST", "/commit/")) == commits + 1
    files = hub.repo(REPO).files()
    record = json.loads(files[SET_FILE])
    assert record["kl"] == read_set(copied / SET_FILE)["kl"] and str(copied) not in files[SET_FILE].decode()
    card = files["README.md"].decode()
    assert "## All in place at once" in card and f"| {record['ce_spliced']:.4g} |" in card
    there, here = load_saes(REPO), load_saes(copied)
    assert list(there) == NAMES
    for name in NAMES:
        assert torch.equal(there[name].W_dec, here[name].W_dec)
    hub.requests.clear()
    assert main(["verify", REPO]) == 0
    assert len(hub.requests.matching("GET", rf"/api/models/{REPO}")) == 1  # one listing
    out = capsys.readouterr().out
    assert "mlp_in.3 explained variance" in out and "all: KL from the model" in out and "differs" not in out
    # One of them pushed anew with other weights: the figures of the whole are not of them.
    other = SAE.from_pretrained(copied, subfolder=NAMES[0])
    with torch.no_grad():
        other.W_dec.copy_(other.W_dec.flip(0))
    push_saes({NAMES[0]: other}, REPO)
    assert "figures of the whole set are of other weights" in hub.repo(REPO).files()["README.md"].decode()


@pytest.mark.slow
def test_a_record_that_boasts_and_weights_that_were_changed_are_found_out(copied, capsys):
    record = read_set(copied / SET_FILE)
    (copied / SET_FILE).write_text(json.dumps(record | {"kl": record["kl"] / 2}))
    sae = SAE.from_pretrained(copied, subfolder=NAMES[1])
    with torch.no_grad():
        sae.W_dec.copy_(sae.W_dec.flip(0))
    sae.save_pretrained(copied / NAMES[1])
    outcome = verify_set(copied)
    assert not outcome.ok and outcome.problems == (
        "An SAE is not the measured one: its weights or settings were changed since.",
    )
    wrong = {claim.title for claim in outcome.claims if not claim.holds}
    assert {"all: KL from the model", "all: CE with all in place", "mlp_in.3 explained variance"} <= wrong
    assert not any(title.startswith("mlp_in.2") for title in wrong)
    # Measured again and written, everything is true; the card that is only printed is the one that is written.
    assert main(["eval", str(copied)]) == 0
    assert verify_set(copied).ok
    card = (copied / "README.md").read_text()
    capsys.readouterr()
    assert main(["card", str(copied), "--print"]) == 0
    assert capsys.readouterr().out.strip() == card.strip()


@pytest.mark.slow
def test_figures_on_other_text_leave_the_record_alone(copied, capsys):
    before = (copied / SET_FILE).read_bytes()
    assert main(["eval", str(copied), "--max_tokens", "300"]) == 0
    assert "all 2 SAEs in place at once" in capsys.readouterr().out
    assert (copied / SET_FILE).read_bytes() == before
    assert main(["eval", str(copied), "--baselines"]) == 1
    assert "--baselines is for one SAE" in capsys.readouterr().err


def test_an_sae_that_is_gone_leaves_the_others_their_cards_and_the_figures_of_the_whole_stale(copied, capsys):
    shutil.rmtree(copied / NAMES[1])
    assert main(["card", str(copied)]) == 0
    card = (copied / "README.md").read_text()
    assert "figures of the whole set are of other weights" in card and f"[{NAMES[1]}]" not in card.replace("\\", "")
    for command in (["verify"], ["eval"], ["info"], ["report"], ["dashboard"], ["push"]):
        assert main([*command, str(copied), *["tester/set"] * (command == ["push"])]) == 1
        assert f"{copied} lacks SAEs of its set: {NAMES[1]}. Bring their folders back" in capsys.readouterr().err


def test_two_that_write_at_one_place_are_refused_before_anything_is_measured(copied, capsys, monkeypatch):
    shutil.rmtree(copied / NAMES[1])
    shutil.copytree(copied / NAMES[0], copied / NAMES[1])
    monkeypatch.setattr("hfsae.saved.sets.evaluate_saes", lambda *_, **__: pytest.fail("measured before"))
    for command in ("eval", "verify"):
        assert main([command, str(copied)]) == 1
        assert "'mlp_in.2' and 'mlp_in.3' write at" in capsys.readouterr().err


def test_a_folder_without_a_record_or_with_a_broken_one_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no set: there is no set\.json"):
        verify_set(tmp_path)
    for broken in ("{", "[]", '{"protocol": {"weights_sha256": {}}}', '{"protocol": {"weights_sha256": {"a": 1}}}'):
        (tmp_path / SET_FILE).write_text(broken)
        with pytest.raises(ValueError, match="is no record of a set"):
            verify_set(tmp_path)


def test_figures_of_other_saes_are_not_pushed(hub):
    record = {"protocol": {"weights_sha256": {"a": "0", "b": "0"}}}
    with pytest.raises(ValueError, match="of other SAEs than the pushed ones: b"):
        push_saes({"a": make()}, REPO, together=record)


def test_a_set_is_described_from_its_record_and_its_configs(copied, capsys):
    for name in NAMES:
        (copied / name / "model.safetensors").unlink()
    record = read_set(copied / SET_FILE)
    assert main(["info", str(copied)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "set of        2 SAEs: topk" and lines[1].startswith("of            ")
    assert f"loss recovered {record['loss_recovered']:.4g}, CE increase {record['ce_increase']:.4g}" in lines[3]
    first, second = lines.index(NAMES[0]), lines.index(NAMES[1])
    assert first < second and "  reads       transformer.h.2.mlp.input" in lines[first:second]
    assert main(["info", str(copied), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == record


@pytest.mark.slow
def test_every_sae_of_a_set_gets_its_page_again(copied, capsys):
    assert main(["report", str(copied), "--max_tokens", "500"]) == 0
    assert capsys.readouterr().out.splitlines() == [f"wrote {copied / name / 'report.html'}" for name in NAMES]
    for name in NAMES:
        assert "features</title>" in (copied / name / "report.html").read_text()
