"""`hfsae score` from the command line to the card, on an SAE one of whose features is the concept."""

import json
import os
import random
import re
import shutil
import statistics
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi

from hfsae import SAE, AbsTopKSAEConfig, TopKSAEConfig
from hfsae.cli import main
from hfsae.scores.score_saved import score_saved
from tests.data.tiny import language_model, pythia_like

CONCEPT = "w3"


def write_rows(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Two SAEs of seeds 0 and 1 whose feature 5 fires on the word w3 alone, their model, and labelled text."""
    place = tmp_path_factory.mktemp("place")
    model, tokenizer = language_model(), pythia_like()
    model.save_pretrained(place / "lm")
    tokenizer.save_pretrained(place / "lm")
    words = random.Random(0)
    texts = [" ".join(f"w{words.randrange(8)}" for _ in range(11)) for _ in range(200)]
    ids = torch.tensor(tokenizer(texts)["input_ids"])
    with torch.no_grad():
        rows = model(ids, output_hidden_states=True).hidden_states[0]  # embeddings: a word tells itself
    rows, has = rows[:, 1:].flatten(0, 1), (ids == 4)[:, 1:].flatten()
    target = torch.where(has, 1.0, -1.0)
    solved = torch.linalg.lstsq(torch.cat([rows, torch.ones(len(rows), 1)], 1), target[:, None]).solution[:, 0]
    for seed in (0, 1):
        torch.manual_seed(seed)
        config = TopKSAEConfig(
            d_in=16,
            n_features=32,
            k=32,
            hook_point="transformer.h.0.input",
            context_length=12,
            base_model=str(place / "lm"),
        )
        config.training = {"seed": seed}
        sae = SAE.from_config(config)
        with torch.no_grad():
            sae.encoder.weight[5] = solved[:16]
            sae.encoder.bias[5] = solved[16] + sae.encoder.weight[5] @ sae.b_dec
        sae.save_pretrained(place / f"sae{seed}")
    write_rows(place / "text.jsonl", [{"text": text} for text in texts])
    kinds = {"low": range(0, 8), "high": range(20, 28)}
    labelled = [
        {"kind": kind, "passage": " ".join(f"w{words.choice(own)}" for _ in range(40))}
        for kind, own in kinds.items()
        for _ in range(150)
    ]
    write_rows(place / "labelled.jsonl", labelled)
    (place / "concepts.json").write_text(
        json.dumps({"the word w3": rf"\b{CONCEPT}\b", "a word that is not there": "x"})
    )
    return place


def options(place: Path, *more: str) -> list[str]:
    text = ["--dataset", str(place / "text.jsonl"), "--concepts", str(place / "concepts.json")]
    labels = ["--labelled", str(place / "labelled.jsonl"), "--label_column", "kind"]
    return [*text, *([] if "--only" in more else labels), "--draws", "50", *more]


def test_a_feature_that_is_the_concept_is_found_and_stands_on_the_card(place, capsys):
    assert (
        main(["score", str(place / "sae0"), *options(place, "--write", "--json_file", str(place / "all.json"))]) == 0
    )
    printed = capsys.readouterr().out
    assert "too rare, left out: a word that is not there" in printed
    assert re.search(r"the word w3 +\d+\.\d+% +5 +1.000 \(1.000 to 1.000\)", printed)
    assert "documents, kind of labelled.jsonl: 2 concepts" in printed and "absorption of concepts" in printed
    absorbed = re.search(r"absorption of documents, kind of labelled.jsonl: (\S+) \(.*\) of the documents", printed)
    stored = json.loads((place / "sae0" / "scores.json").read_text())
    assert stored["headline"]["probing of tokens, F1 at k = 1"] == {"value": 1, "low": 1, "high": 1}
    by_kind = stored["scores"]["of_documents"]["kind of labelled.jsonl"]
    assert {*by_kind["concepts"], *by_kind["not_told"]} == {"high", "low"} and by_kind["concepts"]
    assert absorbed is not None
    assert float(absorbed[1]) == pytest.approx(by_kind["mean"]["value"], abs=1e-3)
    assert json.loads((place / "all.json").read_text())[str(place / "sae0")] == stored["scores"]
    card = (place / "sae0" / "README.md").read_text()
    assert "## Scores of its features" in card and "| probing of tokens, F1 at k = 1 | 1 | 1 to 1 |" in card


def test_several_are_compared_and_one_architecture_is_no_ranking(place, capsys):
    paths = [str(place / "sae0"), str(place / "sae1")]
    assert main(["score", *paths, *options(place, "--only", "tokens", "--write")]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"topk: \d.\d+ ± \d.\d+ over 2 seeds \(standard deviation\)", printed)
    assert "ranking" not in printed
    assert re.search(rf"stability of {paths[0]} and {paths[1]}: 0.\d+ \(", printed)
    stored = [json.loads((Path(path) / "scores.json").read_text()) for path in paths]
    values = [one["headline"]["probing of tokens, F1 at k = 1"] for one in stored]
    assert {one["seeds"] for one in values} == {2}
    deviation = statistics.stdev(one["value"] for one in values)
    assert [one["deviation"] for one in values] == pytest.approx([deviation] * 2)
    assert [list(one["stability"]) for one in stored] == [["sae1 (seed 1)"], ["sae0 (seed 0)"]]
    card = (Path(paths[0]) / "README.md").read_text()
    assert "standard deviation over seeds |" in card and "(2 seeds) |" in card
    assert "| stability, against sae1 (seed 1) |" in card


def test_scores_of_a_run_are_the_same_twice(place):
    given = {
        "dataset": str(place / "text.jsonl"),
        "concepts": place / "concepts.json",
        "kinds": ["tokens"],
        "n_draws": 20,
    }
    first, second = (score_saved([place / "sae0"], **given) for _ in range(2))
    assert first[str(place / "sae0")].recorded() == second[str(place / "sae0")].recorded()


def test_an_sae_in_a_folder_of_a_repository_is_scored_by_its_name(place, hub):
    HfApi().create_repo("tester/zoo")
    commit = HfApi().upload_folder(repo_id="tester/zoo", folder_path=place / "sae0", path_in_repo="a/b").oid
    given = {"dataset": str(place / "text.jsonl"), "concepts": place / "concepts.json", "kinds": ["tokens"]}
    (here,) = score_saved([place / "sae0"], n_draws=20, **given).values()
    name = f"tester/zoo/a/b@{commit}"
    assert score_saved([name], n_draws=20, **given)[name].recorded() == here.recorded()
    with pytest.raises(ValueError, match="leave out subfolder"):
        score_saved([name], subfolder="a", n_draws=20, **given)


def test_scores_of_several_are_those_of_each_alone(place):
    given = {"dataset": str(place / "text.jsonl"), "concepts": place / "concepts.json", "kinds": ["tokens"]}
    both = [place / "sae0", place / "sae1"]
    together = score_saved(both, n_draws=20, **given)
    for one in both:
        alone = score_saved([one], n_draws=20, **given)
        assert together[str(one)].recorded() == alone[str(one)].recorded()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sae0", "sae0"], "an SAE is named twice"),
        (["sae0", "--concepts", "nowhere.json"], "nowhere.json"),
        (["sae0", "--labelled", "labelled.jsonl", "--label_column", "class"], "no column 'class' of labels"),
        (["sae0", "--dataset", "text.jsonl", "--only", "tokens"], "none of 22 concepts has 30 rows"),
        (
            [
                "sae0",
                "--dataset",
                "labelled.jsonl",
                "--text_column",
                "passage",
                "--only",
                "tokens",
                "--max_tokens",
                "0",
            ],
            "expected 1 or more",
        ),
        (["sae0", "--dataset", "labelled.jsonl", "--only", "tokens"], "give text_column"),
        (["lm", "--only", "tokens"], "lm"),
        (["sae0", "--only", "words"], "the kinds of scores are tokens, documents, absorption, and not 'words'"),
        (["nowhere/sae", "--write"], "nowhere/sae is no folder here"),
    ],
)
def test_a_mistake_is_one_line(place, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(place)
    assert main(["score", *arguments]) == 1
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_transcoder_is_probed_and_its_absorption_is_not_told(place, tmp_path, capsys):
    config = TopKSAEConfig(
        d_in=16, d_out=16, n_features=32, k=4, hook_point="transformer.h.1.mlp.input", context_length=12,
        target_hook_point="transformer.h.1.mlp.output", base_model=str(place / "lm"),
    )  # fmt: skip
    SAE.from_config(config).save_pretrained(tmp_path)
    chosen = ["--only", "tokens", "--only", "absorption"]
    assert main(["score", str(tmp_path), *options(place, *chosen)]) == 0
    assert "not scored: absorption is told of SAEs that write where they read, and this is a transcoder" in (
        capsys.readouterr().out
    )
    assert main(["score", str(place / "sae0"), str(tmp_path), *options(place, *chosen[2:])]) == 1
    out, err = capsys.readouterr()
    assert "this is a transcoder" in err and not out  # nor has the first of them been scored


def test_features_that_may_be_negative_are_refused_before_any_sae_is_scored(place, tmp_path, capsys):
    config = AbsTopKSAEConfig(d_in=16, n_features=32, k=4, hook_point="resid_post.1", base_model=str(place / "lm"))
    SAE.from_config(config).save_pretrained(tmp_path)
    assert main(["score", str(place / "sae0"), str(tmp_path), *options(place)]) == 1
    out, err = capsys.readouterr()
    assert "scoring takes features for positive" in err and not out


@pytest.mark.slow
def test_the_sets_that_come_along_score_a_short_run(trained_folder, capsys):
    assert main(["score", str(trained_folder), "--max_tokens", "8000", "--draws", "50"]) == 0
    printed = capsys.readouterr().out
    for title in ("tokens of python-stdlib", "documents, code or docstring", "documents, language of a file"):
        assert title in printed
    assert "absorption of first letters" in printed


def test_labelled_documents_are_refused_where_no_documents_are_scored(place: Path, capsys):
    assert main(["score", str(place / "sae0"), "--only", "absorption", "--labelled", "nowhere.jsonl"]) == 1
    assert "ask for documents too" in capsys.readouterr().err


def test_what_seeds_differ_by_stays_while_the_score_is_the_same(place: Path, tmp_path: Path, capsys):
    for seed in (0, 1):
        shutil.copytree(place / f"sae{seed}", tmp_path / f"sae{seed}")
    paths = [str(tmp_path / f"sae{seed}") for seed in (0, 1)]
    chosen = options(place, "--only", "tokens", "--write")
    assert main(["score", *paths, *chosen]) == 0

    def headline():
        return json.loads((tmp_path / "sae0" / "scores.json").read_text())["headline"]

    before = headline()
    assert "deviation" in before["probing of tokens, F1 at k = 1"]
    capsys.readouterr()
    assert main(["score", paths[0], *chosen]) == 0
    assert headline() == before and "what seeds differ by" not in capsys.readouterr().out
    other = json.loads((place / "concepts.json").read_text()) | {"a word and a blank": r"\w+ "}
    (tmp_path / "concepts.json").write_text(json.dumps(other))
    assert main(["score", paths[0], *chosen, "--concepts", str(tmp_path / "concepts.json")]) == 0
    assert "deviation" not in headline()["probing of tokens, F1 at k = 1"]
    assert "what seeds differ by in probing of tokens, F1 at k = 1. Score the runs of all" in capsys.readouterr().out


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_refused_before_the_work(place: Path, tmp_path: Path, capsys):
    shutil.copytree(place / "sae0", tmp_path / "sae0")
    (tmp_path / "sae0").chmod(0o500)
    assert main(["score", str(tmp_path / "sae0"), "--dataset", "nowhere.jsonl", "--write"]) == 1
    assert "nothing can be written in" in capsys.readouterr().err


def test_what_is_no_folder_that_can_be_written_in_is_refused_before_anything_is_read(place: Path, monkeypatch, capsys):
    monkeypatch.setattr("hfsae.folders.tempfile.TemporaryFile", lambda **_: (Path("/nowhere") / "x").open("w"))
    assert main(["score", str(place / "sae0"), "--dataset", "nowhere.jsonl", "--write"]) == 1
    assert "nothing can be written in" in capsys.readouterr().err
