"""The zoo: what its script makes and pushes, and the cards of it that stand in this repository."""

import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from examples.make_zoo import LAYERS, N_FEATURES, SPARSITIES, main, members
from hfsae import list_saes
from hfsae.architectures import Crosscoder, CrossLayer, MatchingPursuitSAE, architectures

ROOT = Path(__file__).parents[2]
CARDS = ROOT / "model_cards" / "zoo"


def test_it_holds_every_architecture_of_one_place_and_positive_features_at_two_layers_and_two_sparsities():
    assert len(LAYERS) == len(SPARSITIES) == 2
    held = [
        sae_class
        for sae_class in architectures().values()
        if not issubclass(sae_class, Crosscoder | CrossLayer | MatchingPursuitSAE) and not sae_class.signed
    ]
    assert len(members()) == 4 * len(held)


def test_the_cards_in_this_repository_are_those_of_the_zoo():
    root = (CARDS / "README.md").read_text()
    rows = {match.replace("\\", ""): row for row in root.splitlines() for match in re.findall(r"^\| \[(.+?)\]\(", row)}
    assert rows.keys() == members().keys()
    assert all((CARDS / name / "README.md").is_file() for name in rows)
    assert not any("–" in row or "stale" in row for row in rows.values()), "every figure was measured"
    assert {path.suffix for path in CARDS.rglob("*") if path.is_file()} == {".md", ".png"}


def test_the_table_in_the_docs_is_that_of_the_root_card():
    def table(text: str) -> list[str]:
        return [re.sub(r"\]\(.*?\)", "]", line) for line in text.splitlines() if line.startswith("| [resid")]

    assert table((ROOT / "docs" / "hub.md").read_text()) == table((CARDS / "README.md").read_text())


def test_a_card_of_the_zoo_says_on_how_many_tokens_it_was_trained():
    for name in members():
        text = (CARDS / name / "README.md").read_text()
        assert "| tokens | 499,712 |" in text and f"{N_FEATURES} features" in text and "](training_curve.png)" in text


def test_the_figures_of_its_cards_carry_the_mark_by_which_they_are_told_from_those_of_others():
    for name in members():
        (entry,) = ModelCard.load(CARDS / name / "README.md").data.to_dict()["model-index"]
        assert all(metric["config"] == "hfsae" for result in entry["results"] for metric in result["metrics"])


@pytest.mark.slow
def test_the_script_trains_measures_and_pushes_in_one_commit(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    tokens = ["--training_tokens", "4096", "--eval_tokens", "300"]
    main(
        ["--output_dir", str(tmp_path / "zoo"), "--cards", str(tmp_path / "cards"), "--push_to", "tester/zoo", *tokens]
    )
    assert {entry.name for entry in list_saes("tester/zoo")} == members().keys()
    assert len(hub.repo("tester/zoo").commits) == 2
    written = {path.relative_to(tmp_path / "cards").as_posix() for path in (tmp_path / "cards").rglob("*.md")}
    assert written == {"README.md", *(f"{name}/README.md" for name in members())}
