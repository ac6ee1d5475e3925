"""Measuring an SAE from its saved folder alone."""

import json
import random
import shutil
from pathlib import Path

import pytest
import torch

from hfsae import SAE, SAETrainer, TopKSAEConfig
from hfsae.cli import main
from hfsae.data import TextSource
from hfsae.saved import verify
from hfsae.saved.measuring_again import evaluate_saved, replaces_record
from tests.data.tiny import language_model, pythia_like
from tests.training.tiny import arguments


def test_measuring_again_gives_the_recorded_figures(trained_folder):
    recorded = json.loads((trained_folder / "metrics.json").read_text())
    measured = evaluate_saved(trained_folder, write=False)
    for name in ("l0", "explained_variance", "ce_clean", "ce_spliced", "ce_mean", "loss_recovered"):
        assert measured[name] == pytest.approx(recorded[name], abs=1e-4), name
    assert measured["n_tokens"] == recorded["n_tokens"]


def test_changed_weights_are_measured_as_they_are_and_written_down(trained_folder, tmp_path):
    sae = SAE.from_pretrained(trained_folder)
    before = sae.config.metrics["explained_variance"]
    with torch.no_grad():
        sae.b_dec.add_(5.0)
    sae.save_pretrained(tmp_path)
    measured = evaluate_saved(tmp_path)
    assert measured["explained_variance"] < before
    assert SAE.from_pretrained(tmp_path).config.metrics["explained_variance"] == measured["explained_variance"]
    assert json.loads((tmp_path / "metrics.json").read_text())["l0"] == measured["l0"]


def test_an_sae_without_recorded_text_needs_one_to_be_named(trained_folder, tmp_path):
    sae = SAE.from_pretrained(trained_folder)
    sae.config.metrics = sae.config.training = None
    sae.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="name one"):
        evaluate_saved(tmp_path)


@pytest.fixture
def folder_of_two_files(tmp_path):
    """A language model, and a folder of texts that differ so much that figures on them do."""
    for part, words in (("a", 4), ("b", 40)):
        draw = random.Random(part)
        rows = [" ".join(f"w{draw.randrange(words)}" for _ in range(30)) for _ in range(300)]
        (tmp_path / "text").mkdir(exist_ok=True)
        (tmp_path / "text" / f"{part}.jsonl").write_text("".join(json.dumps({"body": row}) + "\n" for row in rows))
    language_model().save_pretrained(tmp_path / "lm")
    pythia_like().save_pretrained(tmp_path / "lm")
    return tmp_path


@pytest.mark.parametrize(
    "options",
    [
        {"dataset_data_files": "a.jsonl"},
        {"dataset_data_files": "a.jsonl", "streaming": True, "evaluation_share": 0.1, "calibration_share": 0.1},
        {"mix_documents": False, "text_column": "body"},
    ],
)
def test_what_is_measured_again_is_the_text_that_was_recorded(folder_of_two_files, options):
    place = folder_of_two_files
    named = {"model_name_or_path": str(place / "lm"), "dataset_name": str(place / "text"), "eval_tokens": 200}
    args = arguments(place / "sae", **named, **options)
    recorded = SAETrainer(args=args).train().metrics[""]
    measured = evaluate_saved(place / "sae", write=False)
    for name in ("n_tokens", "l0", "explained_variance", "ce_clean", "ce_mean"):
        assert measured[name] == pytest.approx(recorded[name], rel=1e-4), name
    assert measured["protocol"] == recorded["protocol"]
    assert verify(place / "sae").same_text


def test_another_text_is_read_by_its_own_column_and_its_only_split(folder_of_two_files):
    place = folder_of_two_files
    named = {"model_name_or_path": str(place / "lm"), "dataset_name": str(place / "text"), "text_column": "body"}
    SAETrainer(args=arguments(place / "sae", **named)).train()
    (place / "other.jsonl").write_text("".join(json.dumps({"said": "w1 w2 w3 w4 w5"}) + "\n" for _ in range(50)))
    measured = evaluate_saved(place / "sae", dataset=str(place / "other.jsonl"), write=False, max_tokens=100)
    assert measured["protocol"]["split"] == "train" and measured["protocol"].get("text_column") is None


# -- looking at another text replaces nothing -------------------------------------------------------------------------
@pytest.fixture
def folder(trained_folder, tmp_path) -> Path:
    return Path(shutil.copytree(trained_folder, tmp_path / "sae"))


@pytest.fixture
def other(tmp_path) -> list[str]:
    lines = [json.dumps({"text": f"def f_{i}(x):\n    return x * {i}\n" * 20}) for i in range(8)]
    (tmp_path / "other.jsonl").write_text("\n".join(lines))
    return ["--dataset", str(tmp_path / "other.jsonl"), "--split", "train"]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_figures_on_another_text_are_printed_and_the_record_stays(folder, other, tmp_path, capsys):
    before = contents(folder)
    assert main(["eval", str(folder), *other, "--tokens", "500", "--json", str(tmp_path / "figures.json")]) == 0
    assert contents(folder) == before
    assert "stays as it is: --write replaces it" in capsys.readouterr().out
    figures = json.loads((tmp_path / "figures.json").read_text())
    recorded = json.loads(before["metrics.json"])
    assert figures["protocol"]["dataset"].endswith("other.jsonl") and figures["l0"] == pytest.approx(8.0)
    assert figures["explained_variance"] != recorded["explained_variance"]


def test_they_replace_the_record_where_that_is_said(folder, other):
    assert main(["eval", str(folder), *other, "--tokens", "500", "--write"]) == 0
    protocol = SAE.from_pretrained(folder).config.metrics["protocol"]
    assert protocol["dataset"].endswith("other.jsonl") and "other.jsonl" in (folder / "README.md").read_text()


def test_fewer_tokens_than_were_recorded_replace_nothing_either(folder):
    before = contents(folder)
    assert evaluate_saved(folder, max_tokens=500)["n_tokens"] < 1000
    assert contents(folder) == before


@pytest.mark.parametrize("part", [["--dataset_config", "en"], ["--dataset_split", "test"]])
@pytest.mark.parametrize(
    "command", [["eval"], ["verify"], ["dashboard"], ["search", "w1 w2"], ["score", "--only", "tokens"]], ids=" ".join
)
def test_a_part_of_a_dataset_that_is_not_named_is_refused(folder, capsys, command, part):
    before = contents(folder)
    assert main([command[0], str(folder), *command[1:], *part]) == 1
    assert "is of a dataset, and none is named" in capsys.readouterr().err and contents(folder) == before


@pytest.mark.parametrize("command", ["eval", "verify"])
def test_no_tokens_are_not_taken_for_as_many_as_were_recorded(folder, capsys, command):
    before = contents(folder)
    assert main([command, str(folder), "--max_tokens", "0"]) == 1
    assert "max_tokens must be positive, got 0" in capsys.readouterr().err and contents(folder) == before


def test_without_a_number_of_tokens_what_was_recorded_is_measured_and_written(folder, capsys):
    recorded = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").unlink()
    assert main(["eval", str(folder)]) == 0
    again = json.loads((folder / "metrics.json").read_text())
    assert again["n_tokens"] == recorded["n_tokens"] and again["baselines"] == recorded["baselines"]
    assert again["explained_variance"] == pytest.approx(recorded["explained_variance"], abs=1e-4)
    assert "wrote" in capsys.readouterr().out


def test_recorded_baselines_say_on_how_many_tokens_and_are_not_those_of_another_model(folder, capsys):
    """They stood beside figures of other tokens, and of another model, as if they were measured together."""
    recorded = json.loads((folder / "metrics.json").read_text())
    assert main(["eval", str(folder), "--max_tokens", "500", "--write"]) == 0
    assert f"- untrained: of the record, on {recorded['n_tokens']:,} tokens" in capsys.readouterr().out
    again = json.loads((folder / "metrics.json").read_text())
    assert again["n_tokens"] < 1000
    assert {figures["n_tokens"] for figures in again["baselines"].values()} == {recorded["n_tokens"]}
    assert f"untrained SAE, on {recorded['n_tokens']:,} tokens" in (folder / "README.md").read_text()
    named = SAE.from_pretrained(folder).config.base_model
    assert "baselines" not in evaluate_saved(folder, model=named, write=False)


@pytest.mark.parametrize(
    "named, replaces",
    [
        ({}, True),
        ({"max_tokens": 4000}, True),
        ({"max_tokens": 3999}, False),
        ({"dataset": "python-stdlib"}, False),
        ({"model": "org/other"}, False),
        ({"model": "org/lm"}, True),
    ],
)
def test_what_replaces_a_record(named, replaces):
    recorded = {"n_tokens": 3980, "protocol": {"dataset": "python-stdlib", "max_tokens": 4000}}
    config = TopKSAEConfig(d_in=8, n_features=32, k=4, base_model="org/lm", metrics=recorded)
    asked = {"model": None, "dataset": None, "max_tokens": None, **named}
    assert replaces_record(config, **asked) is replaces
    config.metrics = None
    assert replaces_record(config, **asked)


def test_a_card_can_be_looked_at_without_being_written(folder, capsys):
    (folder / "README.md").write_text("Mine.\n")
    assert main(["card", str(folder), "--print"]) == 0
    shown = capsys.readouterr().out
    assert "## Measured" in shown and "Mine." in shown and (folder / "README.md").read_text() == "Mine.\n"


def test_a_folder_in_which_nothing_can_be_written_is_refused_before_its_sae_is_measured(folder, monkeypatch, capsys):
    monkeypatch.setattr("hfsae.folders.tempfile.TemporaryFile", lambda **_: open("/proc/hfsae", "w"))
    monkeypatch.setattr("hfsae.saved.measuring_again.measure_again", None)
    for options in ([], ["--write"]):
        assert main(["eval", str(folder), *options]) == 1
        assert "make it writable, or name another. write=False, or --no_write, measures" in capsys.readouterr().err


def test_a_text_that_has_changed_since_is_said_and_its_figures_become_no_record(folder_of_two_files, caplog, capsys):
    place, sae = folder_of_two_files, str(folder_of_two_files / "sae")
    text = place / "text" / "a.jsonl"
    named = {"model_name_or_path": str(place / "lm"), "dataset_name": str(text), "text_column": "body"}
    SAETrainer(args=arguments(sae, **named, eval_tokens=200, evaluation_share=0.2)).train()
    protocol = json.loads((place / "sae" / "metrics.json").read_text())["protocol"]
    rows = text.read_text().splitlines(keepends=True)
    # Rows that are trained on alone may change: what is measured is the same.
    measured_on = set(TextSource.of_record(protocol, {}).documents()["body"])
    kept = [row for row in rows if json.loads(row)["body"] in measured_on]
    text.write_text("".join([*kept, *rows[-20:]]))
    evaluate_saved(sae)
    assert "is not what was measured" not in caplog.text
    text.write_text("".join(row.replace("w1", "w39") for row in rows))
    before = contents(place / "sae")
    assert main(["eval", sae]) == 0
    assert "is not what was measured" in caplog.text and "stays as it is" in capsys.readouterr().out
    assert contents(place / "sae") == before
    told = verify(sae)
    assert not told.ok and not told.same_text
    assert "The text is not the one that was measured: it was changed since." in told.problems
    assert main(["eval", sae, "--write"]) == 0
    assert verify(sae).same_text
