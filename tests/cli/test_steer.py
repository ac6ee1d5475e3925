import shutil

import pytest

from hfsae import SAE, CrosscoderSAEConfig, CrossLayerTranscoderSAEConfig
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


@pytest.mark.parametrize(
    ("names", "layers", "message"),
    [
        ({"hook_point": "resid_post.0+resid_post.1"}, False, "a crosscoder reads several sources"),
        ({"hook_point": "mlp_in.0+mlp_in.1", "target_hook_point": "mlp_out.0+mlp_out.1"}, True, "at every layer"),
    ],
)
def test_an_sae_of_several_places_is_refused_before_its_features_are_collected(
    place, tmp_path, capsys, names, layers, message
):
    sizes = {"source_names": ["a", "b"], "source_widths": [16, 16], "n_features": 16, "k": 2, **names}
    config = CrossLayerTranscoderSAEConfig(d_out=32, **sizes) if layers else CrosscoderSAEConfig(**sizes)
    config.base_model = str(place / "lm")
    SAE.from_config(config).save_pretrained(tmp_path / "sae")
    before = sorted(path.name for path in (tmp_path / "sae").iterdir())
    text = ["--dataset", str(place / "text.jsonl"), "--split", "train"]
    for what in (["--report"], ["--text", "w1 w2"]):
        assert main(["steer", str(tmp_path / "sae"), *text, "--feature", "5", *what]) == 1
        out, err = capsys.readouterr()
        assert message in err and "collecting" not in out + err and len(err.splitlines()) == 1
    assert sorted(path.name for path in (tmp_path / "sae").iterdir()) == before


def test_a_text_that_is_too_long_is_refused_before_features_are_collected(place, tmp_path, capsys):
    shutil.copytree(place / "sae", tmp_path / "sae", ignore=shutil.ignore_patterns("features*"))
    text = ["--dataset", str(place / "text.jsonl"), "--split", "train"]
    options = ["--feature", "5", "--text", "w1 w2", "--new_tokens", "100"]
    assert main(["steer", str(tmp_path / "sae"), *text, *options]) == 1
    assert "more than the 64" in capsys.readouterr().err
    assert not list((tmp_path / "sae").glob("features*"))
