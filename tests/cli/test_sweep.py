import json

import pytest

from hfsae.cli import main
from tests.data.tiny import language_model, pythia_like
from tests.training.tiny import arguments, text


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A sweep's file beside a language model and a text."""
    folder = tmp_path_factory.mktemp("sweep")
    language_model().save_pretrained(folder / "lm")
    pythia_like().save_pretrained(folder / "lm")
    text().to_json(folder / "text.jsonl")
    given = arguments(folder / "run", steps=3, eval_tokens=100).given() | {"k": [2, 4], "disable_tqdm": True}
    given |= {"model_name_or_path": str(folder / "lm"), "dataset_name": str(folder / "text.jsonl")}
    (folder / "sweep.yaml").write_text(json.dumps(given))
    return folder / "sweep.yaml"


def test_list_names_the_saes_and_trains_nothing(config, capsys):
    assert main(["sweep", str(config), "--list"]) == 0
    assert capsys.readouterr().out.split() == ["topk-k2", "topk-k4"] and not (config.parent / "run").exists()


def test_a_sweep_prints_a_table_and_names_its_folder(config, capsys):
    assert main(["sweep", str(config)]) == 0
    out = capsys.readouterr().out
    assert "topk-k2" in out and "expl. var." in out and out.strip().endswith(f"wrote {config.parent / 'run'}")
    assert (config.parent / "run" / "results.csv").is_file()


def test_estimate_takes_runs_and_sweeps_and_says_by_its_status_whether_they_fit(config, capsys):
    assert main(["estimate", str(config), "--memory_gb", "8", "--tflops", "1"]) == 0
    out = capsys.readouterr().out
    assert "SAEs               2, " in out and "peak memory" in out and "of 8.00 GB" in out
    assert main(["estimate", str(config), "--memory_gb", "1e-9", "--tflops", "1", "--k", "4"]) == 1
    assert "too much" in capsys.readouterr().out


def test_a_file_is_needed(capsys):
    assert main(["sweep"]) == 1 and main(["estimate"]) == 1
    assert "a sweep needs a YAML file" in capsys.readouterr().err
