"""Which runs count as seeds of one recipe, and what the noise between them does to an order."""

import numpy as np
import pytest

from hfsae import SAE, BatchTopKSAEConfig, MatchingPursuitSAEConfig, MatryoshkaSAEConfig, TopKSAEConfig
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


@pytest.mark.parametrize(
    ("one", "other"),
    [
        *[({"arguments": {name: value}}, {"arguments": more}) for name, value, more in (
            ("sparsity_coefficient", 1, {"sparsity_coefficient": 50}),
            ("learning_rate", 1e-3, {}),
            ("revival", "none", {}),
            ("train_batch_tokens", 64, {"train_batch_tokens": 128}),
        )],
        ({"batch_tokens": 64}, {"batch_tokens": 128}),
        ({"target_l0": 8}, {"target_l0": 16}),
        ({"init_from": "x"}, {}),
    ],
)  # fmt: skip
def test_runs_of_other_training_are_another_recipe(one, other):
    assert len(reseeds({"a": a_run(0, **one), "b": a_run(1, **other)})) == 2
    assert len(reseeds({"a": a_run(0, **one), "b": a_run(1, **one)})) == 1


@pytest.mark.parametrize(
    ("config_class", "one", "other"),
    [
        (TopKSAEConfig, {"rescale_by_decoder_norm": True}, {}),
        (TopKSAEConfig, {"context_length": 64}, {"context_length": 128}),
        (TopKSAEConfig, {"base_model_revision": "a"}, {"base_model_revision": "b"}),
        (MatchingPursuitSAEConfig, {"residual_threshold": 0.5}, {"residual_threshold": 1}),
        (MatryoshkaSAEConfig, {"prefix_sizes": [8, 64]}, {"prefix_sizes": [16, 64]}),
    ],
)
def test_runs_of_other_settings_are_another_recipe(config_class, one, other):
    saes = {}
    for name, seed, fields in (("a", 0, one), ("b", 1, other), ("c", 2, one)):
        config = config_class(d_in=16, n_features=64, k=4, hook_point="h.1.output", base_model="lm", **fields)
        config.training = {"seed": seed}
        saes[name] = SAE.from_config(config)
    assert [found.runs for found in reseeds(saes)] == [["a", "c"], ["b"]]


def test_seed_folders_savings_and_devices_are_no_recipe():
    kept = {
        "seed": 1,
        "output_dir": "runs/b",
        "save_steps": 7,
        "report_to": "wandb",
        "logging_steps": 3,
        "use_cpu": True,
    }
    told = {"a": {"train_batch_tokens": 64, "learning_rate": 1}, "b": {"train_batch_tokens": 32, "learning_rate": 1.0}}
    runs = {
        "a": a_run(0, batch_tokens=64, folder="/x/a", hardware="1 × cpu", arguments=told["a"]),
        "b": a_run(1, batch_tokens=64, folder="/x/b", hardware="2 × cpu", arguments=told["b"] | kept),
    }
    runs["b"].config.base_model = "/moved/lm"
    assert [found.runs for found in reseeds(runs)] == [["a", "b"]]


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
