"""Where metrics should lie, and what is said when they do not."""

import pytest

from hfsae.evaluation.metrics import MEASURED, METRICS, metrics_for, names_by, too_few_to_tell, warnings_for

BY_NAME = {metric.name: metric for metric in METRICS}


@pytest.mark.parametrize(
    ("name", "value", "verdict"),
    [
        ("l0", 4.9, "warning"),
        ("l0", 5, "outside"),
        ("l0", 10, "healthy"),
        ("l0", 100, "healthy"),
        ("l0", 200, "outside"),
        ("l0", 201, "warning"),
        ("explained_variance", 0.79, "warning"),
        ("explained_variance", 0.9, "outside"),
        ("explained_variance", 0.96, "healthy"),
        ("dead_fraction", 0.21, "warning"),
        ("dead_fraction", 0.1, "outside"),
        ("dead_fraction", 0.0, "healthy"),
        ("kl", 3.0, None),
    ],
)
def test_verdicts_follow_the_ranges(name, value, verdict):
    assert BY_NAME[name].verdict(value) == verdict
    assert bool(warnings_for({name: value})) == (verdict == "warning")


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        ({"l0": 312.4}, ["L0: 312 is above 200", "hard to read", "Lower k"]),
        ({"l0": 2.0}, ["L0: 2 is below 5", "Raise k"]),
        ({"explained_variance": 0.5}, ["explained variance: 0.5 is below 0.8", "Train on more tokens"]),
        ({"dead_fraction": 0.4}, ["dead features: 0.4 is above 0.2", "Revive dead features"]),
        ({"explained_variance": 0.79996}, ["explained variance: 0.79996 is below 0.8"]),
    ],
)
def test_a_warning_names_the_value_the_limit_what_it_means_and_what_to_try(metrics, words):
    (warning,) = warnings_for(metrics)
    assert all(word in warning for word in words)


def test_what_is_missing_undefined_or_unknown_brings_no_warning():
    assert warnings_for({}) == warnings_for({"l0": None, "explained_variance": float("nan"), "notes": {}}) == []


def test_expectations_are_short():
    expected = {name: metric.expected for name, metric in BY_NAME.items() if metric.expected}
    assert expected["l0"] == "10 – 100" and expected["explained_variance"] == "> 0.95"
    assert expected["dead_fraction"] == "< 0.05" and expected["l2_ratio"] == "near 1"
    assert "mse" not in expected


@pytest.mark.parametrize(
    ("l0", "verdict"),
    [(19, "warning"), (20, "outside"), (40, "healthy"), (126.8, "healthy"), (400, "healthy"), (401, "outside")],
)
def test_the_features_of_a_cross_layer_transcoder_add_up_over_its_layers(l0: float, verdict: str):
    figures = {"l0": l0, "n_layers": 4}
    metric = metrics_for(figures)[0]
    assert metric.expected == "40 – 400" and metric.verdict(l0, figures) == verdict
    assert bool(warnings_for(figures)) == (verdict == "warning")
    assert metrics_for(figures)[1:] == METRICS[1:] and metrics_for({"l0": l0}) == METRICS


def measured_on(n_tokens: int, l0: float = 32.0, never: int = 1400) -> dict:
    return {"l0": l0, "dead_fraction": 0.7, "n_tokens": n_tokens, "density": {"never": never, "counts": [648, 0]}}


def test_nothing_is_said_about_dead_features_from_too_few_tokens():
    few, enough = measured_on(982), measured_on(6400)  # 100 · 2,048 / 32
    metric = BY_NAME["dead_fraction"]
    assert metric.verdict(0.7, few) is None and metric.verdict(0.7, enough) == "warning"
    assert warnings_for(few) == [] and len(warnings_for(enough)) == 1
    assert too_few_to_tell(few) == "982 tokens are too few to tell which features are dead: 6,400 would do"
    assert too_few_to_tell(enough) is None and too_few_to_tell({"dead_fraction": 0.7}) is None


def test_features_that_sleep_in_training_have_another_name_than_dead_ones():
    (warning,) = warnings_for({"dormant_fraction": 0.4})
    assert warning.startswith("dormant features: 0.4 is above 0.2") and "dead" not in warning


# -- where each is told -----------------------------------------------------------------------------------------------
def test_every_formula_has_its_words_and_the_other_way_round():
    assert {metric.name for metric in METRICS} | {"density"} == MEASURED.keys()


@pytest.mark.parametrize("place", ["listed", "swept", "on_front"])
def test_places_are_numbered_from_1_without_gaps(place: str):
    names = names_by(place)
    assert sorted(getattr(metric, place) for metric in METRICS if metric.name in names) == list(
        range(1, len(names) + 1)
    )


def test_a_list_of_many_tells_what_a_sweep_and_a_card_tell_too():
    reported = {metric.name for metric in METRICS if metric.reported}
    assert names_by("listed")[0] == "l0" and set(names_by("listed")) <= set(names_by("swept")) & reported
