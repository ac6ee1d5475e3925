"""`hfsae match --write`: what stands in scores.json and on the card, and what is refused."""

import json
from pathlib import Path

import pytest
import torch

from hfsae import push_saes
from hfsae.cli import main
from hfsae.hub.score_summary import write_scores
from hfsae.identity import Identity, weights_sha256
from hfsae.scores import match_features
from tests.scores.test_matching import an_sae


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for seed in (0, 1):
        an_sae(seed).save_pretrained(tmp_path / f"run{seed}")
    return tmp_path


def test_stability_stands_on_the_card_beside_the_scores_that_were_there(runs, capsys):
    a, b = an_sae(0), an_sae(1)
    headline = {"absorption of concepts": {"value": 0.25, "low": 0.125, "high": 0.5}}
    write_scores(runs / "run0", headline, {"text": "x"}, Identity.of(a))
    assert main(["match", str(runs / "run0"), str(runs / "run1"), "--write"]) == 0
    assert f"wrote {runs / 'run0' / 'scores.json'} and the card beside it" in capsys.readouterr().out
    found = json.loads((runs / "run0" / "scores.json").read_text())
    assert found["headline"] == headline and found["scores"] == {"text": "x"}
    stability = vars(match_features(a, b).stability) | {"weights_sha256": weights_sha256(b)}
    assert found["stability"] == {"run1 (seed 1)": stability}
    card = (runs / "run0" / "README.md").read_text()
    assert (
        "| stability, against run1 (seed 1) | " in card and "| absorption of concepts | 0.25 | 0.125 to 0.5 |" in card
    )
    assert not (runs / "run1" / "scores.json").exists()
    # Scores that are measured again leave it there.
    write_scores(runs / "run0", {}, {}, Identity.of(a))
    assert json.loads((runs / "run0" / "scores.json").read_text())["stability"] == found["stability"]
    write_scores(runs / "run0", {}, {}, Identity("of other weights"))
    assert "stability" not in json.loads((runs / "run0" / "scores.json").read_text())


def test_saes_of_one_repository_are_matched_and_a_missing_folder_is_no_repository(hub, runs, capsys, monkeypatch):
    push_saes({f"at/{seed}": an_sae(seed) for seed in (0, 1)}, "tester/seeds", tag="v1")
    assert main(["match", "tester/seeds/at/0", "tester/seeds/at/1@v1", "--top", "1"]) == 0
    there = capsys.readouterr().out
    assert main(["match", str(runs / "run0"), str(runs / "run1"), "--top", "1"]) == 0
    assert there.splitlines()[:4] == capsys.readouterr().out.splitlines()[:4]
    monkeypatch.chdir(runs)
    (runs / "deep").mkdir()
    assert main(["match", "deep/a/b", "run0"]) == 1
    assert "there is no folder deep/a/b" in capsys.readouterr().err


def test_what_does_not_tell_of_stability_is_not_written(runs, capsys, monkeypatch):
    monkeypatch.chdir(runs)
    other = an_sae(1)
    other.config.training = None
    other.save_pretrained("of_unknown_start")
    assert main(["match", "run0", "run0", "--write"]) == 1
    assert "and these two do not: their weights are the same" in capsys.readouterr().err
    assert main(["match", "run0", "of_unknown_start", "--write"]) == 1
    assert "what they started from is not recorded" in capsys.readouterr().err
    an_sae(1, n_features=128).save_pretrained("wider")
    assert main(["match", "run0", "wider", "--write"]) == 1
    assert "they differ in more than their seed: 64 features and 128 features" in capsys.readouterr().err
    an_sae(0, n_features=128).save_pretrained("wider_of_one_start")
    assert main(["match", "run0", "wider_of_one_start", "--write"]) == 1
    assert "both drew their first weights with seed 0" in capsys.readouterr().err
    assert not Path("run0/scores.json").exists()


def test_two_runs_of_one_name_and_seed_are_kept_and_one_that_moved_has_one_entry(runs):
    other = an_sae(1)
    with torch.no_grad():
        other.W_dec.add_(0.5 * torch.randn_like(other.W_dec))
    other.save_pretrained(runs / "elsewhere" / "run1")
    for path in ("run1", "elsewhere/run1", "run1"):
        assert main(["match", str(runs / "run0"), str(runs / path), "--write"]) == 0
    digests = [weights_sha256(sae) for sae in (an_sae(1), other)]
    found = json.loads((runs / "run0" / "scores.json").read_text())["stability"]
    assert {one["weights_sha256"] for one in found.values()} == set(digests) and len(found) == 2
    assert f"run1 (seed 1), weights {digests[0][:8]}" in found or f"run1 (seed 1), weights {digests[1][:8]}" in found
    assert len({one["value"] for one in found.values()}) == 2
    assert (runs / "run0" / "README.md").read_text().count("| stability, against run1 (seed 1)") == 2
    (runs / "run1").rename(runs / "renamed")
    assert main(["match", str(runs / "run0"), str(runs / "renamed"), "--write"]) == 0
    found = json.loads((runs / "run0" / "scores.json").read_text())["stability"]
    assert len(found) == 2 and found["renamed (seed 1)"]["weights_sha256"] == digests[0]


def test_a_folder_in_which_nothing_can_be_written_is_refused_before_the_work(runs, monkeypatch, capsys):
    def refuses(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("hfsae.folders.tempfile.TemporaryFile", refuses)
    assert main(["match", str(runs / "run0"), str(runs / "run1"), "--write"]) == 1
    told = capsys.readouterr()
    assert f"nothing can be written in {runs / 'run0'} (Permission denied): make it writable" in told.err
    assert "pairs of features" not in told.out


def test_a_negative_number_of_pairs_is_refused(runs, capsys):
    assert main(["match", str(runs / "run0"), str(runs / "run1"), "--top", "-1"]) == 1
    assert "--top -1: expected 0 pairs or more" in capsys.readouterr().err
