"""The picture of a sweep, from rows of every kind."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread

from hfsae.hub.pareto_plot import pareto_figure, pareto_plot
from tests.hub.test_plots import share_of_ink


def row(architecture: str, l0: float, recovered: float | None, **changes) -> dict:
    return {
        "name": f"{architecture}-{l0}",
        "setting": f"{architecture}-{l0}",
        "hook_point": "one",
        "architecture": architecture,
        "n_features": 64,
        "l0": l0,
        "loss_recovered": recovered,
        "explained_variance": 0.5 + l0 / 100,
        **changes,
    }


ROWS = [row(name, l0, 0.8 + l0 / 200 + i / 50) for i, name in enumerate(("topk", "gated")) for l0 in (8, 16, 32)]


@pytest.mark.parametrize(
    "rows",
    [
        ROWS,
        ROWS[:1],
        [entry | {"loss_recovered": None} for entry in ROWS],
        [*ROWS, *(entry | {"hook_point": "two"} for entry in ROWS)],
        [*ROWS, *(entry | {"n_features": 128, "name": entry["name"] + "w"} for entry in ROWS)],
    ],
    ids=["usual", "one", "not measured", "two places", "two widths"],
)
def test_a_picture_is_drawn(rows: list[dict], tmp_path: Path):
    pareto_plot(rows, tmp_path / "pareto.png")
    assert share_of_ink(tmp_path / "pareto.png") > 0.01


def test_a_row_for_each_place_and_seeds_drawn_as_their_mean(tmp_path: Path):
    def drawn(rows: list[dict]) -> np.ndarray:
        pareto_plot(rows, tmp_path / "pareto.png")
        return imread(tmp_path / "pareto.png")

    one, two = drawn(ROWS), drawn([*ROWS, *(entry | {"hook_point": "two"} for entry in ROWS)])
    assert two.shape[0] > 1.5 * one.shape[0] and two.shape[1] == one.shape[1]
    again = [entry | {"name": entry["name"] + "s", "explained_variance": 0.3} for entry in ROWS]
    assert not np.array_equal(one, drawn([*ROWS, *again]))


def test_the_axis_says_that_it_is_logarithmic_and_has_its_ticks_where_points_are():
    near = [*ROWS, row("jumprelu", 8.8, 0.9), row("jumprelu", 7.9, 0.9)]
    for axes in pareto_figure(near).axes:
        assert axes.get_xlabel() == "L0 (features per token, log scale)" and axes.get_xscale() == "log"
        assert list(axes.get_xticks()) == [8.0, 16.0, 32.0]
        axes.figure.canvas.draw()
        assert [tick.get_text() for tick in axes.get_xticklabels()] == ["8", "16", "32"]


def test_points_are_labelled_with_what_the_legend_does_not_say_and_of_many_lines_those_on_the_front():
    def labels(rows: list[dict]) -> list[list[str]]:
        return [sorted(text.get_text() for text in axes.texts) for axes in pareto_figure(rows).axes]

    named = [entry | {"setting": f"{entry['architecture']}-mean-k{entry['l0']}"} for entry in ROWS]
    assert labels(named) == [["k16", "k16", "k32", "k32", "k8", "k8"]] * 2
    seeds = [entry | {"name": entry["name"] + "-seed1"} for entry in named]
    assert labels([*named, *seeds]) == labels(named)
    wide = [
        entry | {"n_features": 128, "name": entry["name"] + "w", "setting": entry["setting"] + "-128"}
        for entry in named
    ]
    better = [entry | {"loss_recovered": entry["loss_recovered"] + 0.01} for entry in wide]
    assert labels([*named, *better])[0] == ["k16", "k32", "k8"]


@pytest.mark.parametrize("n", [12, 30, 60])
def test_axes_keep_their_size_beside_long_names(n):
    architectures = ["topk", "batch_topk", "matryoshka", "jumprelu", "gated", "standard"]
    rows = [
        row(
            architectures[number % 6],
            8 * 2 ** (number % 5) + number / 10,
            0.7 + number / 200,
            n_features=2048 * 4 ** (number // 6 % 3),
            name=f"run{number}",
            setting=f"k{number}-learning_rate_{number}-sparsity_coefficient_{number}-of_a_long_name",
        )
        for number in range(n)
    ]
    figure = pareto_figure(rows)
    FigureCanvasAgg(figure).draw()
    width, height = figure.get_size_inches()
    for axes in figure.axes:
        place = axes.get_position()
        assert place.width * width > 4 and place.height * height > 2
        for label in axes.texts:
            box = label.get_window_extent().transformed(axes.transAxes.inverted())
            assert box.x0 > -0.1 and box.x1 < 1.1


def test_labels_lie_on_no_other_one_and_those_of_the_front_have_room_first():
    """Three lines whose points lie so close together at their ends that not all labels find room."""
    close = [
        row(rule, l0, 0.7 + l0 / 200 + i / 900, setting=f"{rule}-mean-{rule[0]}_{l0}", name=f"{rule}-{l0}")
        for i, rule in enumerate(("topk", "gated", "jumprelu"))  # jumprelu keeps most everywhere
        for l0 in (8, 9, 10, 11, 30, 30.1, 30.2, 30.3)
    ]
    axes, _ = pareto_figure(close).axes
    assert isinstance(axes.figure, Figure)
    FigureCanvasAgg(axes.figure).draw()
    boxes = [label.get_window_extent() for label in axes.texts]
    assert not any(one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[:i])
    shown = [label.get_text() for label in axes.texts]
    assert 8 < len(shown) < len(close)
    assert sum(text.startswith("j") for text in shown) > sum(text.startswith("t") for text in shown)
