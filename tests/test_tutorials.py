"""The tutorials run as they stand, one after the other, on the embedded language model and a Hub of this machine."""

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
TUTORIALS = ROOT / "docs" / "tutorials"


def read(name: str) -> dict[str, Any]:
    """Runs the Python blocks of a tutorial in turn; what they leave behind."""
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", (TUTORIALS / name).read_text(), re.S):
        exec(compile(block, name, "exec"), names)
    return names


@pytest.mark.slow
def test_the_tutorials_run_one_after_the_other(hub, tmp_path, monkeypatch, capsys):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)

    first = read("1_first_sae.md")
    metrics = first["output"].metrics[""]
    assert (
        metrics["l0"] <= 16 and metrics["explained_variance"] > metrics["baselines"]["untrained"]["explained_variance"]
    )
    assert (first["dense"] > 0).sum(-1).max() <= 16
    assert first["clean"] < first["spliced"] < first["clean"] + 2

    second = read("2_find_and_steer.md")
    assert second["feature"].density > 0 and second["feature"].top
    assert second["after"] > 2 * second["before"]
    assert second["without"] != second["loss"]
    assert (tmp_path / "runs" / "first" / "dashboard.html").is_file()

    third = read("3_publish_and_verify.md")
    assert third["result"].ok and not third["wrong"].ok
    assert any("resid_post.1" in cause for cause in third["wrong"].causes)
    assert [sae.config.n_features for sae in third["saes"].values()] == [512]
    said = capsys.readouterr().out
    assert "explained variance" in said and "This fits." in said


def test_the_site_has_a_test_for_every_tutorial():
    tested = set(re.findall(r'read\("([\w.]+)"\)', Path(__file__).read_text()))
    assert tested == {path.name for path in TUTORIALS.glob("*.md")}
