import json
import logging

import pytest

from hfsae.hub.card import render_card
from hfsae.hub.score_summary import write_scores, write_stability
from hfsae.identity import Identity
from tests.analysis.tiny import setting

HEADLINE = {"probing | `x`": {"value": 0.5, "low": 0.25, "high": 0.75}, "broken": {"value": "a"}}


def text_of(folder) -> str:
    return render_card(setting().sae, folder=folder).text


def test_a_card_has_the_scores_with_their_intervals(tmp_path):
    assert "Scores of its features" not in text_of(tmp_path)
    write_scores(tmp_path, HEADLINE, {}, Identity.of(setting().sae))
    assert "| probing \\| \\`x\\` | 0.5 | 0.25 to 0.75 |" in text_of(tmp_path) and "broken" not in text_of(tmp_path)


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b'{"format": 2}', b'{"format": 1, "weights_sha256": "0"}'])
def test_scores_that_are_not_of_these_weights_are_not_spoken_of(tmp_path, content, caplog):
    (tmp_path / "scores.json").write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert "Scores of its features" not in text_of(tmp_path)
    assert "scores are left out" in caplog.text


def test_what_is_written_is_whole(tmp_path):
    write_scores(tmp_path, HEADLINE, {"tokens": None}, Identity("a"))
    assert json.loads((tmp_path / "scores.json").read_text())["scores"] == {"tokens": None}


def test_scores_of_other_settings_are_not_spoken_of_and_are_replaced(tmp_path, caplog):
    sae = setting().sae
    identity, other = Identity.of(sae), Identity.of(sae.with_k(2))
    scores = {"one": {"value": 0.5, "low": 0.25, "high": 0.75}}
    noisy = {"one": {**scores["one"], "deviation": 0.125, "seeds": 3}}
    write_scores(tmp_path, noisy, {}, identity)
    write_stability(tmp_path, "seed 1", "b", scores["one"], identity)
    assert "| one | 0.5 |" in text_of(tmp_path)
    assert "Scores of its features" not in render_card(sae.with_k(2), folder=tmp_path).text
    assert "scores are left out" in caplog.text and "(k was 4 and is 2)" in caplog.text
    write_scores(tmp_path, scores, {}, other)
    assert json.loads((tmp_path / "scores.json").read_text()) == {
        "format": 1, **other.record(), "headline": scores, "scores": {},
    }  # fmt: skip
    # What an earlier version wrote knows no settings: it counts, and so does what it says of seeds.
    write_scores(tmp_path, noisy, {}, Identity(identity.weights_sha256))
    assert "Scores of its features" in render_card(sae.with_k(2), folder=tmp_path).text
    write_scores(tmp_path, scores, {}, identity)
    assert json.loads((tmp_path / "scores.json").read_text())["headline"] == noisy
