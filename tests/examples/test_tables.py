import re
from pathlib import Path

import pytest
from datasets import Dataset

from examples.tables import clusters, duplicates, probe
from hfsae import SAE, FeatureTable
from hfsae.cli import main
from hfsae.data import load_text

KINDS = {"def f(self):\n    return self.x\n": "code", "The rain fell on the old town all day long. ": "prose"}


@pytest.fixture(scope="module")
def tables(trained_folder, tmp_path_factory) -> Path:
    """`train` and `held_out`: short documents of two kinds, two of which are equal; written by the command line."""
    folder = tmp_path_factory.mktemp("tables")
    for name, sizes in (("train", range(2, 14)), ("held_out", range(14, 20))):
        rows = [(text * size, kind, f"{kind}{size}") for size in sizes for text, kind in KINDS.items()]
        rows.append((rows[0][0], "code", "again"))
        columns = dict(zip(("text", "kind", "name"), zip(*rows, strict=True), strict=True))
        Dataset.from_dict({key: list(value) for key, value in columns.items()}).to_json(folder / f"{name}.jsonl")
        words = [str(folder / f"{name}.jsonl"), "--output", str(folder / f"{name}.parquet"), "--reduce", "mean"]
        assert (
            main(["featurize", str(trained_folder), "--dataset", *words, "--columns", "kind", "--columns", "name"])
            == 0
        )
    return folder


def test_the_command_writes_what_the_function_writes(tables, trained_folder):
    table = FeatureTable(tables / "held_out.parquet")
    sae = SAE.from_pretrained(trained_folder)
    assert table.about["reduce"] == "mean" and table.about["n_features"] == sae.config.n_features
    assert table.about["text"]["dataset"].endswith("held_out.jsonl")
    assert table.to_dataset()["kind"] == load_text(tables / "held_out.jsonl")["kind"]


@pytest.mark.parametrize(("number", "rows"), [("3", 3), ("99", 13)])
@pytest.mark.parametrize("more", [[], ["--streaming"]])
def test_the_first_documents_alone_are_written(tables, trained_folder, tmp_path, number, rows, more):
    words = ["--dataset", str(tables / "held_out.jsonl"), "--output", str(tmp_path / "few.parquet"), *more]
    assert main(["featurize", str(trained_folder), *words, "--max_documents", number, "--columns", "name"]) == 0
    names = load_text(tables / "held_out.jsonl")["name"][:rows]
    assert list(FeatureTable(tmp_path / "few.parquet").to_dataset()["name"]) == list(names)


def test_no_document_is_refused_before_anything_is_loaded(tmp_path, capsys):
    words = ["--dataset", "none", "--output", str(tmp_path / "few.parquet"), "--max_documents", "0"]
    assert main(["featurize", str(tmp_path / "none"), *words]) == 1
    assert "expected 1 document or more" in capsys.readouterr().err


def test_a_probe_tells_code_from_prose(tables, capsys):
    probe.main(
        [str(tables / "train.parquet"), str(tables / "held_out.parquet"), "--column", "kind", "--pattern", "code"]
    )
    shown = capsys.readouterr().out
    assert float(re.search(r"accuracy on 13 held-out documents: ([\d.]+)", shown)[1]) == 1.0  # type: ignore[index]
    assert len(re.findall(r"feature \d+: [+-]", shown)) == 5


def test_clusters_are_the_kinds(tables, capsys):
    clusters.main([str(tables / "train.parquet"), "--column", "kind", "--clusters", "2", "--directions", "4"])
    groups = re.findall(r"^  (.*)$", capsys.readouterr().out, re.M)
    assert sorted(set(group.split(", ")).pop() for group in groups) == ["code", "prose"]
    assert all(len(set(group.split(", "))) == 1 for group in groups)


def test_documents_that_are_equal_come_first(tables, capsys):
    duplicates.main([str(tables / "train.parquet"), "--column", "name"])
    assert re.search(r"\n  1.000  code2  again\n", capsys.readouterr().out)
