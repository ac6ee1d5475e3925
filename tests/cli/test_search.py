import json
from pathlib import Path

import pytest

from hfsae.cli import main
from hfsae.identity import weights_sha256
from hfsae.label_file import write_labels
from hfsae.saved.kept_features import SavedFeatures
from tests.analysis.tiny import setting
from tests.dashboard.tiny import saved_sae
from tests.meaning.test_contrast import WITH, WITHOUT


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = saved_sae(tmp_path_factory.mktemp("place"))
    opened = SavedFeatures(place / "sae", dataset=str(place / "text.jsonl"), split="train", disable_tqdm=True)
    opened.collection  # noqa: B018  collects
    write_labels(place / "sae" / "labels.json", {5: "the word w3"}, weights_sha256(setting().sae))
    (place / "with.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in WITH))
    (place / "without.txt").write_text("\n".join(WITHOUT) + "\n")
    (place / "empty.jsonl").write_text("")
    return place


def test_words_find_labels_promoted_tokens_and_what_fires(place, capsys):
    assert main(["search", str(place / "sae"), "w3 w3 w3"]) == 0
    out = capsys.readouterr().out
    assert "labels that say so\n  5 (the word w3)\n" in out
    assert "features that fire on it" in out and "log odds" in out


def test_a_word_of_one_token_is_found_though_that_token_does_not_count(place, capsys):
    """Position 0 is left out, so nothing fires on the word itself."""
    assert main(["search", str(place / "sae"), "w3"]) == 0
    told = capsys.readouterr()
    assert "labels that say so\n  5 (the word w3)\n" in told.out and told.err == ""
    assert told.out.endswith("its tokens do not count for this SAE: a passage of more words says what fires on it\n")
    assert main(["search", str(place / "sae"), "zzz"]) == 1
    assert "no token that counts" in capsys.readouterr().err


def test_two_files_are_told_apart(place, capsys):
    sets = ["--positive", str(place / "with.jsonl"), "--negative", str(place / "without.txt")]
    assert main(["search", str(place / "sae"), *sets, "--top", "3", "--permutations", "50"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "9 texts with it, 9 without; 50 random dealings" and len(lines) == 5
    assert "AUROC" in lines[1] and "precision" in lines[1] and lines[-1].startswith("the whole search")


def test_labels_are_found_by_their_embeddings(place, capsys):
    encoder = str(Path(__file__).parents[2] / "examples" / "tiny_lm")
    assert main(["search", str(place / "sae"), "w1 w2", "--embeddings", encoder]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "labels that mean something like it" and lines[1].startswith("  5 (the word w3): cosine 0.")


def test_marks_say_where_it_stands(place, capsys):
    rows = [json.dumps({"text": text.replace("w9", "<<w9>>")}) + "\n" for text in WITH]
    (place / "marked.jsonl").write_text("".join(rows))
    sets = ["--positive", str(place / "marked.jsonl"), "--negative", str(place / "without.txt"), "--marked"]
    assert main(["search", str(place / "sae"), *sets, "--top", "3", "--permutations", "50"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "9 parts of texts with it, 18 without; 50 random dealings"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "say what to look for"),
        (["w1", "--positive", "with.jsonl", "--negative", "without.txt"], "say what to look for"),
        (["w1", "--marked"], "--marked is for"),
        (["w1", "--embeddings", "nowhere"], "nowhere"),
        (["w1 w2", "--prior", "nan"], "prior is nan"),
        (["--positive", "with.jsonl", "--negative", "without.txt", "--embeddings", "x"], "--embeddings is for words"),
        (["--positive", "with.jsonl", "--negative", "without.txt", "--marked"], "nothing is marked"),
        (["--positive", "with.jsonl"], "belong together"),
        (["--positive", "with.jsonl", "--negative", "with.jsonl"], "9 texts are in both sets"),
        (["--positive", "with.jsonl", "--negative", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--positive", "empty.jsonl", "--negative", "without.txt"], "empty"),
    ],
)
def test_a_mistake_is_one_line(place, capsys, monkeypatch, options, message):
    monkeypatch.chdir(place)
    assert main(["search", "sae", *options]) == 1
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("number", [["--top", "-1"], ["--top", "0"], ["--prior", "0"]])
def test_a_number_by_which_nothing_is_found_is_refused_before_a_line_is_printed(place, capsys, number):
    assert main(["search", str(place / "sae"), "w1 w2", *number]) == 1
    told = capsys.readouterr()
    expected = "expected a finite number above 0" if number[0] == "--prior" else "expected 1 or more"
    assert expected in told.err and told.out == ""
