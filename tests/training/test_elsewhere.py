"""A run's folder works from every working directory, and where the whole tree was moved."""

import json
import os
import random
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from hfsae import SAE, SAETrainer, SAETrainingArguments, TopKSAEConfig
from hfsae.cli import main
from hfsae.data.text_source import TextSource
from hfsae.hub.card import render_card
from hfsae.hub.push import _fit_for_publication
from hfsae.inputs.activation_cache import cache_activations
from hfsae.language_model import find
from hfsae.saved.measuring_again import evaluate_saved
from tests.data.tiny import language_model, pythia_like
from tests.training.tiny import arguments

ROOT = Path(__file__).parents[2]
FIGURES = ("l0", "explained_variance", "ce_clean", "loss_recovered", "n_tokens")


def make_tree(folder: Path) -> Path:
    """A language model and a text, each in a folder."""
    draw = random.Random(0)
    rows = [" ".join(f"w{draw.randrange(40)}" for _ in range(30)) for _ in range(300)]
    (folder / "texts").mkdir(parents=True)
    (folder / "texts" / "a.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    language_model().save_pretrained(folder / "models" / "lm")
    pythia_like().save_pretrained(folder / "models" / "lm")
    return folder


def relative(**options: object) -> SAETrainingArguments:
    """Arguments of a short run that names everything relative to the working directory."""
    places = {"output_dir": "runs/x", "model_name_or_path": "models/lm", "dataset_name": "texts/a.jsonl"}
    return arguments(**{**places, "eval_tokens": 200, **options})  # type: ignore[arg-type]


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """A tree in which a run was made from its root, which is left afterwards."""
    tree, elsewhere = make_tree(tmp_path / "tree"), tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(tree)
    SAETrainer(args=relative(save_steps=6)).train()
    monkeypatch.chdir(elsewhere)
    return tree


def moved(tree: Path) -> Path:
    return tree.rename(tree.with_name("moved"))


def figures(metrics: dict) -> dict[str, float]:
    return {name: metrics[name] for name in FIGURES}


@pytest.mark.parametrize("place", [lambda tree: tree, moved], ids=["elsewhere", "moved"])
def test_model_text_and_commands_are_found_from_another_working_directory(trained, place, capsys):
    run = place(trained) / "runs" / "x"
    recorded = json.loads((run / "metrics.json").read_text())
    sae = SAE.from_pretrained(run)
    assert sae.load_base_model().config.vocab_size and sae.load_tokenizer().vocab_size
    assert figures(evaluate_saved(run, write=False)) == pytest.approx(figures(recorded), abs=1e-5)
    for command in (["eval"], ["verify"], ["card"], ["dashboard"], ["features", "--text", "w1 w2"], ["info"]):
        assert main([command[0], str(run), *command[1:]]) == 0, (command, capsys.readouterr())
    capsys.readouterr()
    # What was written since names the places as they are now.
    config = json.loads((run / "config.json").read_text())
    assert config["base_model"] == str(run.parents[1] / "models" / "lm") and os.path.isdir(config["base_model"])
    assert config["metrics"]["protocol"]["dataset"] == str(run.parents[1] / "texts" / "a.jsonl")


@pytest.mark.parametrize("record", ["whole", "broken"])
def test_the_sae_of_a_checkpoint_finds_its_model_where_the_tree_was_moved(trained, record: str):
    tree = moved(trained)
    checkpoint = tree / "runs" / "x" / "checkpoint-6"
    if record == "broken":
        (checkpoint / "run.json").write_text("{")
    sae = SAE.from_pretrained(checkpoint / "saes")
    place = tree if record == "whole" else trained
    assert sae.config.base_model == str(place / "models" / "lm")
    if record == "whole":
        assert sae.load_base_model().config.vocab_size and sae.load_tokenizer().vocab_size


def test_nothing_that_is_published_or_read_by_people_names_the_folders(trained):
    run = trained / "runs" / "x"
    main(["dashboard", str(run)])
    for page in ("README.md", "dashboard.html"):
        assert str(trained.parent) not in (run / page).read_text(), page
    sae = SAE.from_pretrained(run)
    assert str(trained.parent) not in str(render_card(sae))
    assert str(trained.parent) in sae.config.to_json_string()
    with _fit_for_publication(sae.config):
        assert str(trained.parent) not in sae.config.to_json_string()
        assert sae.config.training["dataset"] == "a.jsonl" and "folder" not in sae.config.training
    assert sae.config.training["folder"] == str(run)


@pytest.mark.parametrize("place", [lambda tree: tree, moved], ids=["elsewhere", "moved"])
def test_a_run_is_gone_on_with_from_another_working_directory(trained, place):
    tree = place(trained)
    names = {"model_name_or_path": str(tree / "models" / "lm"), "dataset_name": str(tree / "texts" / "a.jsonl")}
    args = relative(output_dir=str(tree / "runs" / "x"), save_steps=6, resume_from_checkpoint="last", **names)
    before = (tree / "runs" / "x" / "model.safetensors").read_bytes()
    SAETrainer(args=args).train()
    assert (tree / "runs" / "x" / "model.safetensors").read_bytes() == before
    other = make_tree(tree.parent / "other") / "texts" / "a.jsonl"
    with pytest.raises(ValueError, match="dataset_name was"):
        SAETrainer(args=replace(args, dataset_name=str(other))).train()


@pytest.mark.slow
@pytest.mark.parametrize("place", [lambda tree: tree, moved], ids=["elsewhere", "moved"])
def test_a_cache_is_trained_from_in_another_working_directory(tmp_path, monkeypatch, place):
    tree = make_tree(tmp_path / "tree")
    monkeypatch.chdir(tree)
    cache_activations(relative(output_dir="caches/c"))
    monkeypatch.chdir(tmp_path)
    tree = place(tree)
    names = {"model_name_or_path": str(tree / "models" / "lm"), "dataset_name": str(tree / "texts" / "a.jsonl")}
    for out, options in (("named", names), ("unnamed", {"model_name_or_path": None, "dataset_name": None})):
        told = {"activation_cache": str(tree / "caches" / "c"), "eval_tokens": 0, "output_dir": str(tmp_path / out)}
        SAETrainer(args=relative(**options | told)).train()
        assert SAE.from_pretrained(tmp_path / out).config.base_model == names["model_name_or_path"]


def copied(tree: Path) -> Path:
    shutil.copytree(tree / "caches", tree.parent / "copy" / "caches")
    return tree


@pytest.mark.slow
@pytest.mark.parametrize("place", [moved, copied])
def test_an_unfinished_cache_is_gone_on_with_in_another_place(tmp_path, monkeypatch, place):
    tree = make_tree(tmp_path / "tree")
    monkeypatch.chdir(tree)
    cache_activations(relative(output_dir="caches/c"))
    last = sorted((tree / "caches" / "c").glob("rows-*.safetensors"))[-1]
    wanted = last.read_bytes()
    last.unlink()
    monkeypatch.chdir(tmp_path)
    tree = place(tree)
    names = {"model_name_or_path": str(tree / "models" / "lm"), "dataset_name": str(tree / "texts" / "a.jsonl")}
    cache = (tmp_path / "copy" if place is copied else tree) / "caches" / "c"
    cache_activations(relative(output_dir=str(cache), **names))
    assert (cache / last.name).read_bytes() == wanted
    other = make_tree(tmp_path / "other") / "texts" / "a.jsonl"
    with pytest.raises(FileExistsError, match="made_from.arguments.dataset_name was"):
        cache_activations(relative(output_dir=str(cache), **names | {"dataset_name": str(other)}))


def test_an_id_of_the_hub_is_not_the_folder_of_that_name_that_happens_to_be_here(tmp_path, monkeypatch):
    (tmp_path / "org" / "lm").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert find("org/lm").name == str(tmp_path / "org" / "lm")  # what exists at training is a folder
    sae = SAE.from_config(TopKSAEConfig(d_in=8, n_features=16, k=2, base_model="org/lm", base_model_revision="0" * 40))
    with pytest.raises(ValueError, match="org/lm of the Hub .* a folder of that name"):
        sae.load_base_model()
    (tmp_path / "org" / "text").mkdir()
    with pytest.raises(ValueError, match="is a file or folder here, and such a text has no revision"):
        TextSource(dataset="org/text", dataset_revision="0" * 40).load()


def test_files_that_a_kind_of_file_names_are_written_down_in_full(tmp_path, monkeypatch):
    make_tree(tmp_path / "tree")
    monkeypatch.chdir(tmp_path / "tree")
    source = TextSource(dataset="json", data_files="texts/a.jsonl", split="train")
    record = source.recorded()
    monkeypatch.chdir(tmp_path)
    assert len(TextSource.of_record(record, {}).load()) == 300


SCRIPT = """
import json, sys
from hfsae import SAE
from hfsae.cli import main
from hfsae.saved.measuring_again import evaluate_saved
run = sys.argv[1]
model = SAE.from_pretrained(run).load_base_model()
figures = evaluate_saved(run, write=False)
assert main(["dashboard", run, "--tokens", "2000"]) == 0 and main(["card", run]) == 0
print(json.dumps(figures))
"""


def python(cwd: Path, *arguments: str) -> str:
    """What a Python that runs in a folder prints."""
    cwd.mkdir(exist_ok=True)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *arguments], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_processes_started_elsewhere_find_what_a_run_named_relative_to_its_own_place(tmp_path):
    tree = make_tree(tmp_path / "tree")
    options = [text for name, value in relative().given().items() for text in (f"--{name}", str(value))]
    python(tree, "-m", "hfsae.cli", "train", *options)
    recorded = json.loads((tree / "runs" / "x" / "metrics.json").read_text())
    for cwd, place in (("a", lambda tree: tree), ("b", moved)):
        found = json.loads(python(tmp_path / cwd, "-c", SCRIPT, str(place(tree) / "runs" / "x")).splitlines()[-1])
        assert figures(found) == pytest.approx(figures(recorded), abs=1e-5)
