"""Every Python block of the README and the docs runs somewhere in the tests, or says here why not."""

import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from hfsae import SAE, TopKSAEConfig

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))]

# The first line of a block, and where else it runs.
RUN_ELSEWHERE = {
    ("README.md", "import torch"): "tests/test_documentation.py",
    ("docs/new_architecture.md", "from huggingface_hub.dataclasses import strict"): "tests/test_documentation.py",
}
WHY_NOT = {
    ("README.md", "from hfsae import JumpReLUSAEConfig, SAETrainer, SAETrainingArguments, TopKSAEConfig"): (
        "trains on 100 million tokens of the Hub; tests/test_documentation.py runs all but its last line"
    ),
    ("docs/formats.md", "from hfsae import SAE"): (
        "loads gigabytes of published SAEs; tests/interop loads small ones of each format"
    ),
    ("docs/from_saelens.md", "# SAELens                                                # hfsae"): (
        "two columns, the left one of another project"
    ),
}


def blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.S | re.M)


def run(page: str, **names: Any) -> dict[str, Any]:
    """Runs the blocks of a page in turn, in one namespace."""
    for block in blocks(page):
        exec(compile(block, page, "exec"), names)
    return names


def first_line(block: str) -> str:
    return block.splitlines()[0].rstrip()


def test_every_block_runs_or_says_why_not():
    here = set(re.findall(r'run\("([\w./]+)"', Path(__file__).read_text()))
    tutorials = set(re.findall(r'read\("([\w.]+)"\)', (ROOT / "tests" / "test_tutorials.py").read_text()))
    here |= {f"docs/tutorials/{name}" for name in tutorials}
    keys = {(page, first_line(block)) for page in PAGES for block in blocks(page) if page not in here}
    assert keys == RUN_ELSEWHERE.keys() | WHY_NOT.keys()
    for (page, line), where in RUN_ELSEWHERE.items():
        assert page in (ROOT / where).read_text(), (page, line)


@pytest.mark.slow
def test_features_and_dashboard(trained_folder, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    shutil.copytree(trained_folder, tmp_path / "runs" / "tiny")
    monkeypatch.chdir(tmp_path)
    names = run("docs/analysis.md")
    feature = names["feature"]
    assert feature.maximum == max(one.maximum for one in names["collection"]) and feature.top
    assert run("docs/feature_tables.md")["matrix"].shape == (20, names["sae"].config.n_features)
    run("docs/dashboard.md", collection=names["collection"], tokenizer=names["tokenizer"])
    assert "My features" in (tmp_path / "dashboard.html").read_text()
    steering = run("docs/steering.md")
    assert steering["written"].form == "model" and (tmp_path / "steered" / "README.md").is_file()
    assert [effect.strength for effect in steering["report"].effects] == [0.0, 4.0, 8.0]
    names["collection"].save("runs/tiny")
    names = run("docs/scores.md")
    assert names["found"].one_start is None and names["scores"].tokens.concepts == ["number", "comment"]
    names = run("docs/meaning.md")
    assert names["found"].n_positive == 8 and len(names["found"].features) == 3
    scores = names["run"].mean_scores()
    assert scores["detection_random"] == scores["fuzzing_neighbouring"] == (0.5, 0.5, 0.5)


def test_a_script_of_ones_own(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["script.py", "--repeats", "3", "--k", "7"])
    run("docs/command_line.md", __name__="__main__")
    assert capsys.readouterr().out.split() == ["3", "7"]


def test_a_crosscoder_by_source():
    names = run("docs/concepts.md")
    assert names["reconstruction"]["tuned"].shape == (10, 64) and names["features"].shape == (10, 512)
    assert names["norms"].shape == (512, 2) and type(names["tuned"]).__name__ == "BatchTopKSAE"


def test_sources_that_are_compared():
    names = run("docs/model_diffing.md")
    assert sum(names["found"].counts().values()) == 512 and names["ratios"].shape == (512, 2)


def test_a_cross_layer_transcoder(monkeypatch):
    monkeypatch.chdir(ROOT)
    names = run("docs/cross_layer_transcoders.md")
    assert names["features"].shape[-1] == 1024 and names["second"].shape[-1] == 256
    assert list(names["written"]) == list(names["runs"]) == [f"mlp_in.{layer}" for layer in range(4)]
    assert names["figures"]["kl"] > 0 and names["figures"]["n_saes"] == 1


@pytest.mark.slow
def test_a_set_of_transcoders(trained_set, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "transcoder_set").symlink_to(trained_set)
    monkeypatch.chdir(tmp_path)
    names = run("docs/transcoder_sets.md")
    assert names["active"].keys() == names["saes"].keys() == {"mlp_in.2", "mlp_in.3"} and min(names["active"].values())
    assert names["figures"]["kl"] > 0 and names["figures"]["n_tokens"] <= 500


@pytest.mark.slow
def test_circuits(trained_set, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "transcoder_set").symlink_to(trained_set)
    monkeypatch.chdir(tmp_path)
    names = run("docs/circuits.md")
    assert names["graph"].exactness.features < 1e-3 and names["again"].nodes == names["graph"].nodes
    assert len(names["graph"].notes) == 1  # the test's set leaves two layers out
    assert (tmp_path / "graph.html").is_file() and (tmp_path / "graph.json").is_file()


@pytest.mark.slow
def test_pushing_listing_and_checking(hub, trained_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", hub.add_user("owner", "org").write_token)
    monkeypatch.chdir(tmp_path)

    def sae(layer: int) -> SAE:
        place = f"transformer.h.{layer}.output"
        training = {"portable_name": f"resid_post.{layer}"}
        base = "openai-community/gpt2"
        return SAE.from_config(
            TopKSAEConfig(d_in=8, n_features=16, k=2, hook_point=place, base_model=base, training=training)
        )

    sae(10).save_pretrained(tmp_path / "runs" / "gpt2-l10")
    trained = SAE.from_pretrained(trained_folder)
    texts = ["def main(self):\n    return None\n"] * 20
    model = trained.load_base_model()
    names = run("docs/hub.md", sae=trained, sae_8=sae(8), sae_9=sae(9), model=model, texts=texts)
    mine = [f"resid_post.{layer}/topk-16-2" for layer in (8, 9, 10)]
    assert sorted(names["saes"]) == sorted([*mine, "resid_post.8/topk-12288-32"])
    assert names["check"].measured.l0 <= 8 and names["check"].n_tokens > 100
    assert "model.safetensors" in hub.repo("org/gpt2-l8-16x").files()


@pytest.mark.slow
def test_a_training_step_by_step(tmp_path, monkeypatch):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    names = run("docs/training.md")
    assert names["before"] < names["output"].metrics[""]["explained_variance"] and len(names["losses"]) == 10
    assert names["half_way"].config.training["steps"] == 10 and names["output"].steps == 20


def test_an_sae_of_several_k():
    names = run("docs/options.md")
    assert (names["sae"].config.k, names["sparser"].config.k) == (32, 16)
