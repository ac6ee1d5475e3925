"""The code on published cards runs as it stands, with nothing but the Hub."""

from typing import Any

import pytest

from tests.hub.samples import snippet


def run(card: bytes) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(snippet(card.decode()), names)
    return names


@pytest.mark.slow
def test_the_snippet_of_a_published_sae_reads_features_in_its_language_model(published):
    names = run(published.repo("tester/checked").files()["a/README.md"])
    features = names["features"]
    assert features.shape[-1] == 256 and 0 < features.values.shape[-1] <= 8
    assert names["model"].name_or_path == "tester/tiny-lm"


def test_the_snippet_of_its_repository_lists_and_loads(published, capsys):
    names = run(published.repo("tester/checked").files()["README.md"])
    assert names["sae"].config.base_model == "tester/tiny-lm" and list(names["saes"]) == ["a"]
    assert capsys.readouterr().out.startswith("a {'l0': ")
