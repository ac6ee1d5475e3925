"""`examples/dashboard.py` on the embedded language model."""

import json
import runpy
import sys
from pathlib import Path

import pytest

from hfsae import SAE, TopKSAEConfig
from tests.dashboard.tiny import index_of

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def run(monkeypatch):
    def run(*options: str) -> None:
        monkeypatch.setattr(sys, "argv", ["dashboard.py", *options])
        runpy.run_path(str(EXAMPLES / "dashboard.py"), run_name="__main__")

    return run


def test_the_example_writes_a_page_with_its_prompts(run, tmp_path, capsys):
    config = TopKSAEConfig(
        d_in=128,
        n_features=96,
        k=8,
        hook_point="resid_post.1",
        base_model=str(EXAMPLES / "tiny_lm"),
        context_length=32,
    )
    SAE.from_config(config).save_pretrained(tmp_path)
    lines = [json.dumps({"text": f"class A{i}:\n    def f(self):\n        return {i}\n"}) for i in range(40)]
    (tmp_path / "text.jsonl").write_text("\n".join(lines))
    run(str(tmp_path), "--dataset", str(tmp_path / "text.jsonl"), "--split", "train", "--tokens", "500")
    assert f"wrote {tmp_path / 'dashboard.html'}: " in capsys.readouterr().out
    index = index_of(tmp_path / "dashboard.html")
    assert "".join(index["prompts"][0]["tokens"]).startswith("class Reader:")
    assert any(any(features) for features in index["prompts"][1]["features"])


def test_without_an_sae_the_example_says_how_to_make_one(run, tmp_path):
    with pytest.raises(SystemExit, match="make train"):
        run(str(tmp_path))
