import re
from copy import deepcopy

import pytest
import torch

from hfsae.analysis.shading import printable, shaded, shaded_features
from tests.analysis.tiny import setting


def test_the_stronger_a_token_the_darker_it_is():
    line = shaded(["a", "b", "c"], [0.0, 1.0, 4.0], color=True)
    assert line.startswith("a\x1b[30;48;2;")
    green = [int(code) for code in re.findall(r"48;2;\d+;(\d+);", line)]
    assert green[0] > green[1] and re.sub(r"\x1b\[[\d;]*m", "", line) == "abc"


def test_without_colours_values_stand_beside_the_tokens():
    assert shaded(["def", " f", "\n"], [0.0, 2.5, 1.0], color=False) == "def[ f|2.5][↵\n|1]"


def test_a_shade_ends_with_its_line():
    line = shaded(["x\n  "], [1.0], color=True)
    assert all(part.endswith("\x1b[0m") for part in line.split("\n"))


def test_text_cannot_steer_the_terminal():
    assert printable("\x1b[2Jgone\x07\u202e") == "\ufffd[2Jgone\ufffd\ufffd"
    assert printable("é漢\t") == "é漢\t"


def test_the_strongest_features_come_first_or_those_that_were_asked_for():
    sae, model, _ = setting()
    with torch.no_grad(), sae.attach(model) as run:
        model(torch.tensor([[3, 4, 5]]))
    maxima = run.features.to_dense()[0, 1:].amax(0)
    lines = list(shaded_features(*setting(), "w2 w3 w4", top=2, color=False))
    assert [int(re.match(r"feature (\d+)", line)[1]) for line in lines[::2]] == maxima.topk(2).indices.tolist()
    assert "promotes" in lines[0]
    (heading, text) = shaded_features(*setting(), "w2 w3 w4", features=[int(maxima.argmin())], color=False)
    assert "at most 0" in heading and text == " w2 w3 w4\n"


def test_a_text_without_tokens_is_refused_and_one_without_features_said():
    with pytest.raises(ValueError, match="no token"):
        list(shaded_features(*setting(), ""))
    sae, *rest = setting()
    silent = deepcopy(sae)  # other tests have the same setting
    with torch.no_grad():
        silent.encoder.bias.fill_(-1e6)
    assert list(shaded_features(silent, *rest, "w1 w2")) == ["no feature fires on this text"]


def test_a_text_of_which_no_token_counts_says_so():
    # The first token alone, which the SAE leaves out.
    assert list(shaded_features(*setting(), "w1")) == ["no token of this text counts for this SAE: write some more"]
