"""`hfsae cache`, and `hfsae train` from what it wrote."""

import json

import pytest

from hfsae import SAE
from hfsae.cli import main
from tests.data.tiny import language_model, pythia_like
from tests.training.tiny import arguments, text


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A config file that names a language model and a text."""
    folder = tmp_path_factory.mktemp("place")
    language_model().save_pretrained(folder / "lm")
    pythia_like().save_pretrained(folder / "lm")
    text().to_json(folder / "text.jsonl")
    options = arguments("unused", steps=4, eval_tokens=100).given()
    del options["output_dir"]
    options |= {"model_name_or_path": str(folder / "lm"), "dataset_name": str(folder / "text.jsonl")}
    (folder / "config.yaml").write_text(json.dumps(options))  # JSON is YAML
    return folder / "config.yaml"


def test_a_config_file_makes_a_cache_and_trains_from_it(config, tmp_path, capsys, caplog):
    caplog.set_level("INFO")
    cache = tmp_path / "cache"
    for _ in range(2):  # the second finds it whole
        assert main(["cache", str(config), "--output_dir", str(cache)]) == 0
        assert "wrote" not in caplog.text
        assert capsys.readouterr().out == f"{cache}: 128 rows of transformer.h.1.output (d = 16) in bfloat16\n"
    train = ["train", str(config), "--output_dir", str(tmp_path / "run")]
    assert main([*train, "--activation_cache", str(cache)]) == 0
    assert "loss recovered" in capsys.readouterr().out
    assert SAE.from_pretrained(tmp_path / "run").config.training["arguments"]["activation_cache"] == str(cache)


@pytest.mark.parametrize("command", ["cache", "train"])
def test_a_folder_in_which_nothing_can_be_written_is_one_line(config, capsys, command):
    assert main([command, str(config), "--output_dir", "/proc/new"]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "nothing can be written in /proc" in line


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["train", "{config}", "--activation_cache", "{tmp}"], "no activation cache in"),
        (["cache", "{config}", "--hook_point", "resid_post.9"], "there is no layer 9"),
        (["cache", "{config}", "--activation_dtype", "int8"], "expected one of 'bfloat16', 'float32'"),
    ],
)
def test_a_mistake_is_one_line_and_exit_status_1(config, tmp_path, capsys, command, message):
    command = [part.format(config=config, tmp=tmp_path) for part in command]
    assert main([*command, "--output_dir", str(tmp_path / "new")]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
