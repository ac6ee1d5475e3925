import json
import os
import re
import subprocess
import sys
from itertools import groupby

import pytest

from hfsae import SAE
from hfsae.arguments.training_arguments import OPTIONS
from hfsae.cli import COMMANDS, main
from tests.data.tiny import language_model, pythia_like
from tests.training.tiny import text

TINY = {
    "hook_point": "resid_post.1",
    "n_features": 48,
    "k": 4,
    "context_length": 12,
    "lm_batch_sequences": 4,
    "training_tokens": 96,
    "train_batch_tokens": 32,
    "init_tokens": 32,
    "calibration_tokens": 100,
    "eval_tokens": 100,
    "save_steps": 0,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a language model, a text and a config file that names them."""
    folder = tmp_path_factory.mktemp("place")
    language_model().save_pretrained(folder / "lm")
    pythia_like().save_pretrained(folder / "lm")
    text().to_json(folder / "text.jsonl")
    options = {**TINY, "model_name_or_path": str(folder / "lm"), "dataset_name": str(folder / "text.jsonl")}
    (folder / "config.yaml").write_text(json.dumps(options))  # JSON is YAML
    return folder


@pytest.fixture(scope="module")
def trained(place):
    """A folder with an SAE that the command line has trained."""
    run = place / "run"
    assert main(["train", str(place / "config.yaml"), "--output_dir", str(run), "--disable_tqdm", "--use_cpu"]) == 0
    return run


def say(capsys, *command_line):
    """Exit status, standard output and standard error of a command."""
    status = main([str(part) for part in command_line])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


COMMANDS_HERE = [name for commands in COMMANDS.values() for name in commands]

HEAVY = """
import json, sys
sys.modules["hfsae_cli"] = sys
from hfsae.cli import main
try:
    main(json.loads(sys.argv[1]))
except SystemExit as end:
    assert not end.code, end.code
heavy = {"torch", "transformers", "datasets", "accelerate", "numpy", "huggingface_hub.errors", "yaml"}
print("loaded:", *sorted(heavy & set(sys.modules)), file=sys.stderr)
"""


@pytest.mark.parametrize(
    "command", [[], ["--help"], ["--version"], *([name, "--help"] for name in COMMANDS_HERE)], ids=str
)
def test_help_is_there_before_anything_heavy_is_loaded(command):
    run = [sys.executable, "-c", HEAVY, json.dumps(command)]
    done = subprocess.run(run, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stderr == "loaded:\n"
    assert ("hfsae 0." if command == ["--version"] else "Usage: hfsae") in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("module", ["hfsae_cli", "hfsae.cli"])
def test_no_command_shows_the_help_in_a_process_of_its_own(module):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", module]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0 and done.stderr == ""
    assert all(command in done.stdout for command in COMMANDS_HERE)


@pytest.mark.slow
def test_commands_load_what_they_need_by_themselves(trained):
    """Started as the console script does, where importing hfsae loads nothing."""
    command = [sys.executable, "-m", "hfsae_cli", "info", str(trained)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout.startswith("architecture  topk\n"), done.stderr


@pytest.mark.parametrize("command", ["train", "estimate", "sweep", "cache"])
def test_help_of_training_explains_every_option_with_its_group_choices_and_default(capsys, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    names = set(re.findall(r"^│ --(\w+) ", shown, re.M))
    assert set(OPTIONS) <= names
    assert {option.metadata["group"] for option in OPTIONS.values()} <= set(re.findall(r"╭─ (.*?) ─+╮", shown))
    flowing = re.sub(r"[│\s]+", " ", shown)
    assert "Choices: replicate, spread, shard. Default: replicate." in flowing and "Default: 4_000_000." in flowing


def test_train_saves_an_sae_and_prints_what_was_measured(place, capsys):
    folder = place / "printed"
    options = ["--output-dir", folder, "--k", 3, "--disable-tqdm", "--use_cpu"]
    status, out, _ = say(capsys, "train", place / "config.yaml", *options)
    sae = SAE.from_pretrained(folder)
    assert status == 0 and sae.config.k == 3 and sae.config.training["steps"] == 3
    assert "L0" in out and f"{sae.config.metrics['l0']:.3g}" in out


def test_one_progress_bar_follows_the_other_and_no_library_shows_its_own(place, tmp_path, capfd):
    command = ["train", str(place / "config.yaml"), "--output_dir", str(tmp_path / "run"), "--use_cpu"]
    assert main(command) == 0
    drawn = [part.split(":")[0] for part in re.split(r"[\r\n]", capfd.readouterr().err) if "%|" in part]
    assert [name for name, _ in groupby(drawn)] == ["training", "evaluating"]


def test_eval_measures_the_same_again_from_the_folder_alone(trained, capsys):
    before = SAE.from_pretrained(trained).config.metrics
    (trained / "metrics.json").unlink()
    status, out, _ = say(capsys, "eval", trained, "--tokens", "100")
    after = json.loads((trained / "metrics.json").read_text())
    assert status == 0 and "metrics.json" in out and "README.md" in out
    assert after["loss_recovered"] == pytest.approx(before["loss_recovered"], abs=1e-4)
    assert after["n_tokens"] == before["n_tokens"]


def test_eval_measures_on_another_text(trained, place, capsys):
    status, _, _ = say(
        capsys, "eval", trained, "--dataset", place / "text.jsonl", "--split", "train", "--tokens", "50"
    )
    protocol = json.loads((trained / "metrics.json").read_text())["protocol"]
    assert status == 0 and (protocol["dataset"], protocol["split"]) == (str(place / "text.jsonl"), "train")


def test_card_writes_the_card_anew(trained, capsys):
    (trained / "README.md").unlink()
    status, out, _ = say(capsys, "card", trained)
    assert status == 0 and out == f"wrote {trained / 'README.md'}\n"
    assert "library_name: hfsae" in (trained / "README.md").read_text()


def test_info_says_what_an_sae_is(trained, capsys):
    status, out, _ = say(capsys, "info", trained)
    assert status == 0 and out.startswith("architecture  topk\nfeatures      48 (3x of d_in = 16)\n")
    status, out, _ = say(capsys, "info", trained, "--json")
    assert status == 0 and json.loads(out)["hook_point"] == "transformer.h.1.output"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["train", "nowhere.yaml"], "no config file nowhere.yaml"),
        (["train", "gtp2"], "no config file gtp2. Did you mean 'gpt2'?"),
        (["train", "--k", "many"], "--k: expected int, got 'many'"),
        (["train", "--k", "-1"], "k must be positive, got -1"),
        (["train", "--exclude_positions", "[1"], "--exclude_positions: this is not YAML"),
        (["train", "{config}", "--k", "49"], "k must be between 1 and n_features=48, got 49"),
        (["train", "{config}", "--hook_point", "resid_post.9"], "there is no layer 9"),
        (["train", "{config}", "--dataset_name", "nowhere.jsonl"], "no file or folder"),
        (["train", "{config}", "--output_dir", "{run}"], "holds another run"),
        (
            ["train", "{config}", "--output_dir", "{run}/new", "--resume_from_checkpoint"],
            "no checkpoint to resume from",
        ),
        (["train", "{config}", "--learning_rate", "1e30", "--architecture", "standard"], "is not a number"),
        (["eval", "nowhere"], "nowhere"),
        (["eval", "{lm}"], "not a sparse autoencoder"),
        (["card", "nowhere"], "nowhere"),
        (["info", "nowhere"], "nowhere"),
        (["info", "{lm}"], "holds a 'gpt2' model, not a sparse autoencoder"),
    ],
)
def test_a_mistake_is_one_line_and_exit_status_1(place, trained, tmp_path, capsys, command, message):
    known = {"config": place / "config.yaml", "run": trained, "lm": place / "lm"}
    command = [part.format(**known) for part in command]
    if command[0] == "train" and "--output_dir" not in command:
        command += ["--output_dir", str(tmp_path)]
    status, out, err = say(capsys, *command, *(["--use_cpu", "--disable_tqdm"] if command[0] == "train" else []))
    lines = err.strip().splitlines()
    assert status == 1 and message in lines[-1] and lines[-1].startswith(f"hfsae {command[0]}: ")
    assert len(lines) == 1 and out == ""


def test_a_mistake_shows_where_it_came_from_on_request(tmp_path):
    with pytest.raises(ValueError, match="not YAML|expected int"):
        main(["train", "--k", "many", "--traceback"])


@pytest.mark.parametrize(
    ("command", "near"),
    [
        (["tain"], "'train'"),
        (["train", "--kk", "3"], "--k"),
        (["train", "--learning-rte", "3"], "--learning_rate"),
        (["eval", "x", "--max-token", "z"], "z"),
        (["eval"], "SAE"),
    ],
)
def test_a_command_that_is_none_is_refused_with_the_usage_and_what_is_near(capsys, command, near):
    with pytest.raises(SystemExit) as end:
        main(command)
    shown = capsys.readouterr().err
    assert end.value.code == 2 and "Usage: hfsae" in shown and near in shown


def test_a_config_that_comes_along_is_found_by_its_name(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", "sweep", "--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 12
    (tmp_path / "sweep").write_text("k: [1, 2]")  # a file that is there comes first
    assert main(["sweep", "sweep", "--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_the_page_of_a_saved_sae_is_written_again(trained, capsys):
    page = trained / "report.html"
    page.unlink()
    status, out, _ = say(capsys, "report", trained, "--tokens", "500")
    assert status == 0 and out == f"wrote {page}\n" and "explained variance" in page.read_text()
