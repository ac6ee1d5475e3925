import pytest

from hfsae.cli import main
from tests.cli.test_steer_model import place

__all__ = ["place"]


def command(place, *more):
    text = ["--dataset", str(place / "text.jsonl"), "--split", "train"]
    return ["steer", str(place / "sae"), *text, *more]


def test_a_text_is_continued_without_and_with_the_feature(place, capsys):
    assert main(command(place, "--feature", "5", "--strength", "40", "--text", "w1 w2", "--new_tokens", "8")) == 0
    plain, steered = capsys.readouterr().out.split("steered:\n")
    assert plain.startswith("without steering:\nw1 w2 w") and plain.split("\n")[1] != steered.split("\n")[0]


def test_a_report_is_a_table_and_a_page(place, tmp_path, capsys):
    grid = ["--strength", "1", "--strength", "-2"]
    more = ["--tokens_to_measure", "200", "--new_tokens", "5", "--output", str(tmp_path / "report.html")]
    assert main(command(place, "--feature", "5", "--report", *grid, *more)) == 1
    assert "no sequence of the text has 16 tokens" in capsys.readouterr().err
    assert main(command(place, "--feature", "5", "--report", *grid, *more, "--prompt_tokens", "6")) == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()[1:4]] == ["-2", "0", "1"] and "usable" in out
    assert "Feature 5 of" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--feature", "5"], "say what to do"),
        (["--feature", "5", "--report", "--text", "w1"], "say what to do"),
        (["--feature", "5", "6", "--report"], "of one feature"),
        (["--feature", "5", "--text", "w1 w2", "--output", "page.html"], "--output is the page of --report"),
        (["--feature", "5", "--text", "w1 w2", "--new_tokens", "0"], "--new_tokens 0: expected 1 or more"),
        (["--feature", "5", "--text", "w1 w2", "--new_tokens", "100"], "more than the 64 that the model reads"),
        (["--feature", "5", "--text", "w1 w2", "--strength", "nan"], "expected finite numbers"),
    ],
)
def test_a_mistake_is_one_line(place, capsys, options, message):
    assert main(command(place, *options)) == 1
    assert message in capsys.readouterr().err
