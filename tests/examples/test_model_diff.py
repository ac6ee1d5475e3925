"""The example of model diffing, as a stranger runs it, with a short fine-tune and a short training."""

import json
import random
import re

import pytest
import torch
from transformers import AutoTokenizer

from examples.model_diff import _SPANS, NOVELTIES, TINY_LM, _marks, documents, in_words, scores
from hfsae import SAE
from tests.examples.test_train import run


def test_novelties_are_planted_where_they_are_asked_for_and_nowhere_else():
    planted, plain = (documents(40, planted=which, seed=3) for which in (True, False))
    assert planted == documents(40, planted=True, seed=3) != documents(40, planted=True, seed=4)
    for novelty in ("word", "format"):
        assert sum(bool(_SPANS[novelty].search(text)) for text in planted) > 10
        assert not any(_SPANS[novelty].search(text) for text in plain)
    assert not any("REFUSED" in text for text in plain)


def test_tokens_of_a_novelty_are_those_of_its_lines():
    text = "x = 1\n    @@ note | this | that @@\nreturn x\n"
    encoded = AutoTokenizer.from_pretrained(TINY_LM)(text, return_offsets_mapping=True)
    marks = _marks(text, _SPANS["format"], encoded["offset_mapping"])
    marked = [text[start:end] for (start, end), on in zip(encoded["offset_mapping"], marks, strict=True) if on]
    assert "".join(marked).strip() == "@@ note | this | that @@"


def test_precision_counts_features_and_recall_novelties():
    shares = {name: torch.zeros(6) for name in (*NOVELTIES, "any")}
    shares["word"][:2], shares["refusal"][3] = 0.9, 0.6
    shares["any"] = torch.stack([shares[name] for name in NOVELTIES]).amax(0)
    assert scores([0, 1, 3, 5], shares) == {"features": 4, "precision": 0.75, "recall": pytest.approx(2 / 3)}
    assert scores(range(6), shares)["precision"] == pytest.approx(0.5)
    assert scores([], shares)["recall"] == 0
    assert in_words(scores([0, 1, 3, 5], shares)) == "4 features, precision 0.75, recall 0.67"
    assert in_words(scores([], shares)).startswith("0 features, so no novelty is found")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_whole_of_it_leaves_a_comparison_of_both_models(tmp_path):
    short = ["--steps", "20", "--tokens", "20000", "--n_features", "128", "--seed", str(random.Random(1).randrange(9))]
    out = run("examples/model_diff.py", "--output_dir", str(tmp_path), *short)
    found = json.loads((tmp_path / "crosscoder" / "diff.json").read_text())
    assert sum(found["counts"].values()) == 128 and found["sources"] == ["base", "tuned"]
    for how, counts in (("norms", "counts_by_norms"), ("latent scaling", "counts_by_scaling"), ("both", "counts")):
        told = re.search(rf"^tuned-only by {how}: (\d+) features", out, re.M)
        assert told and int(told[1]) == found[counts]["tuned-only"], out
    sae = SAE.from_pretrained(tmp_path / "crosscoder")
    base, tuned = sae.load_base_model().models.values()
    assert not torch.equal(base.transformer.wte.weight, tuned.transformer.wte.weight)
    page = (tmp_path / "crosscoder" / "diff.html").read_text()
    assert all(kind in page for kind, count in found["counts"].items() if count and kind != "dead")
