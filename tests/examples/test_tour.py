"""The notebook and the scripts beside it, run as they stand, on an SAE that the notebook's first cell trains."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest

from hfsae import FeatureCollection

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


def cells() -> list[str]:
    notebook = json.loads((EXAMPLES / "hfsae_tour.ipynb").read_text())
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the examples in it, in which the first cell has trained runs/tiny."""
    folder = tmp_path_factory.mktemp("tour")
    (folder / "examples").symlink_to(EXAMPLES)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(cells()[0], {})
    return folder


@pytest.fixture
def script(place, monkeypatch, capsys):
    """Runs an example with options; what it printed."""
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(EXAMPLES)

    def run(name: str, *options: str) -> str:
        monkeypatch.setattr(sys, "argv", [name, *options])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.mark.slow
def test_every_cell_of_the_notebook_runs(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    names: dict = {}
    for cell in cells():
        exec(cell, names)
    out = capsys.readouterr().out
    assert "2048 features of transformer.h.1.output" in out and "it promotes" in out
    assert len(names["table"]) == len(names["tokenizer"](names["text"])["input_ids"])
    assert names["without"] != names["before"]
    assert names["steered"].shape[1] > names["inputs"]["input_ids"].shape[1]


@pytest.mark.slow
def test_what_the_docs_show_runs(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    (shown,) = re.findall(r"```python\n(.*?)```", (EXAMPLES.parent / "docs" / "analysis.md").read_text(), re.S)
    names: dict = {}
    exec(shown, names)
    assert capsys.readouterr().out.startswith(str(names["feature"].index))


@pytest.mark.slow
def test_analyze_saves_the_collection_and_prints_pages(script, place):
    out = script("analyze.py", "--tokens", "5000")
    assert out.count("promotes") == out.count("one of each fifth") == 3
    assert FeatureCollection.load(place / "runs" / "tiny").about.n_tokens >= 5000


@pytest.mark.slow
def test_steer_and_ablate_print_what_changed(script):
    assert "next token, where the probability grows most" in script("steer.py", "--tokens", "5")
    out = script("ablate.py", "--n", "3")
    assert "P(' range'" in out and "without" in out


@pytest.mark.slow
def test_a_missing_sae_is_a_message_that_says_how_to_make_one(script):
    with pytest.raises(SystemExit, match="make train"):
        script("ablate.py", "nowhere")
