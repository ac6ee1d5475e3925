import json
import logging

import pytest

from hfsae.evaluation.protocol import weights_sha256
from hfsae.hub.card import render_card
from hfsae.hub.score_summary import write_scores
from tests.analysis.tiny import setting

HEADLINE = {"probing | `x`": {"value": 0.5, "low": 0.25, "high": 0.75}, "broken": {"value": "a"}}


def text_of(folder) -> str:
    return render_card(setting().sae, folder=folder).text


def test_a_card_has_the_scores_with_their_intervals(tmp_path):
    assert "Scores of its features" not in text_of(tmp_path)
    write_scores(tmp_path, HEADLINE, {}, weights_sha256(setting().sae))
    assert "| probing \\| \\`x\\` | 0.5 | 0.25 to 0.75 |" in text_of(tmp_path) and "broken" not in text_of(tmp_path)


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b'{"format": 2}', b'{"format": 1, "weights_sha256": "0"}'])
def test_scores_that_are_not_of_these_weights_are_not_spoken_of(tmp_path, content, caplog):
    (tmp_path / "scores.json").write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert "Scores of its features" not in text_of(tmp_path)
    assert "scores are left out" in caplog.text


def test_what_is_written_is_whole(tmp_path):
    write_scores(tmp_path, HEADLINE, {"tokens": None}, "a")
    assert json.loads((tmp_path / "scores.json").read_text())["scores"] == {"tokens": None}
