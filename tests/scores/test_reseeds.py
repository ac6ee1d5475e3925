"""Which runs count as seeds of one recipe, and what the noise between them does to an order."""

import numpy as np
import pytest

from hfsae import SAE, BatchTopKSAEConfig, TopKSAEConfig
from hfsae.scores.matching import match_features
from hfsae.scores.noise import ReseedNoise
from hfsae.scores.reseeds import reseeds
from hfsae.scores.score_report import noise_lines, stability_lines


def a_run(seed: int | None, *, k: int = 4, config_class=TopKSAEConfig, n_tokens: int = 1000, **training) -> SAE:
    config = config_class(d_in=16, n_features=64, k=k, hook_point="h.1.output", base_model="runs/lm")
    config.training = {"seed": seed, "n_tokens": n_tokens, **training}
    return SAE.from_config(config)


def test_runs_that_differ_in_their_seed_alone_are_one_recipe():
    runs = {"a": a_run(0), "b": a_run(1), "c": a_run(0, config_class=BatchTopKSAEConfig), "d": a_run(2)}
    found = reseeds(runs)
    assert [(one.name, one.runs) for one in found] == [("topk", ["a", "b", "d"]), ("batch_topk", ["c"])]


def test_recipes_of_one_architecture_are_told_apart_by_what_they_differ_in():
    runs = {"a": a_run(0), "b": a_run(1), "c": a_run(1, k=8), "d": a_run(2, n_tokens=2000)}
    assert [(one.name, one.runs) for one in reseeds(runs)] == [
        ("topk, k = 4, 1,000 tokens", ["a", "b"]),
        ("topk, k = 8, 1,000 tokens", ["c"]),
        ("topk, k = 4, 2,000 tokens", ["d"]),
    ]
    wide, narrow = (a_run(0, arguments={"architecture_options": {"aligned": on}}) for on in (True, False))
    assert len(reseeds({"a": wide, "b": narrow})) == 2


def test_a_run_from_the_same_start_is_no_other_seed():
    runs = {"a": a_run(0), "b": a_run(0, n_tokens=1000), "c": a_run(1), "d": a_run(None)}
    (found,) = reseeds(runs)
    assert found.runs == ["a", "c"]
    assert found.not_counted == {
        "b": "beside a, both drew their first weights with seed 0",
        "d": "what it or a started from is not recorded",
    }


def test_noise_is_the_standard_deviation_of_a_run():
    found = ReseedNoise.of([0.5, 0.7, 0.9])
    assert found is not None and found.n == 3
    assert found.mean == pytest.approx(0.7) and found.deviation == pytest.approx(np.std([0.5, 0.7, 0.9], ddof=1))
    assert ReseedNoise.of([0.5]) is None


def test_noise_above_the_differences_leaves_no_order():
    told = "\n".join(noise_lines({"topk": [0.1, 0.5, 0.9], "gated": [0.5, 0.6]}))
    assert "topk: 0.500 ± 0.400 over 3 seeds" in told and "no ranking: seeds differ by" in told
    assert list(noise_lines({"topk": [0.5]})) == []


def test_stability_has_the_noise_of_its_pairs():
    runs = {name: a_run(seed) for seed, name in enumerate("abc")}
    matched = {(x, y): match_features(runs[x], runs[y]) for x, y in (("a", "b"), ("a", "c"), ("b", "c"))}
    values = [one.stability.value for one in matched.values()]
    *pairs, noise = stability_lines(matched, reseeds(runs))
    assert len(pairs) == 3 and pairs[0].startswith("stability of a and b: ")
    assert (
        noise
        == f"  topk: {np.mean(values):.3f} ± {np.std(values, ddof=1):.3f} over 3 pairs of seeds (standard deviation)"
    )
