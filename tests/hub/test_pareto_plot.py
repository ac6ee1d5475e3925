"""The picture of a sweep, from rows of every kind."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from hfsae.hub.pareto_plot import pareto_plot
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
