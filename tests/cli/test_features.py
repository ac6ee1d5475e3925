import pytest

from hfsae.cli import main
from tests.analysis.tiny import setting


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An SAE whose config names a language model beside it."""
    place = tmp_path_factory.mktemp("place")
    sae, model, tokenizer = setting()
    model.save_pretrained(place / "lm")
    tokenizer.save_pretrained(place / "lm")
    sae.save_pretrained(place / "sae")
    return place


def test_features_prints_the_text_for_each_feature(folder, capsys):
    options = ["--text", "w2 w3 w4", "--model", str(folder / "lm"), "--top", "2"]
    assert main(["features", str(folder / "sae"), *options]) == 0
    out = capsys.readouterr().out
    assert out.count("feature ") == 2 and "w3" in out and "\x1b" not in out
    assert main(["features", str(folder / "sae"), *options, "--color", "always", "--features", "7"]) == 0
    assert capsys.readouterr().out.startswith("feature 7:")


def test_features_reads_standard_input(folder, capsys, monkeypatch, tmp_path):
    (tmp_path / "text").write_text("w5 w6 w7")
    with (tmp_path / "text").open() as file:
        monkeypatch.setattr("sys.stdin", file)
        assert main(["features", str(folder / "sae"), "--text", "-", "--model", str(folder / "lm")]) == 0
    assert "w6" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--text", ""], "the text has no token"),
        (["--text", "w1 w2", "--top", "0"], "top is 0: expected 1 or more"),
        (["--text", "w1 w2", "--top", "-1"], "top is -1: expected 1 or more"),
        (["--text", "w1 w2", "--features", "40"], "expected indices from 0 to 39"),
    ],
)
def test_a_mistake_is_one_line_and_exit_status_1(folder, capsys, options, message):
    assert main(["features", str(folder / "sae"), *options, "--model", str(folder / "lm")]) == 1
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_text_whose_tokens_are_left_out_is_not_one_on_which_nothing_fires(folder, capsys):
    assert main(["features", str(folder / "sae"), "--text", "w1", "--model", str(folder / "lm")]) == 0
    assert capsys.readouterr().out.startswith("no token of this text counts for this SAE")
