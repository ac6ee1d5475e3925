"""The pictures: drawn from what logs and metrics hold, without touching the user's matplotlib."""

import json
import math
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib._pylab_helpers import Gcf
from matplotlib.figure import Figure
from matplotlib.image import imread

from hfsae.hub.plots import feature_density, read_log, save, training_curve
from tests.hub.samples import LOG, metrics

DENSITY = metrics()["density"]


def share_of_ink(path: Path) -> float:
    """The share of pixels that are not white."""
    return float((imread(path)[..., :3].min(-1) < 0.99).mean())


def write_log(path: Path, entries: list[dict[str, Any]], tail: str = "") -> Path:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries) + tail)
    return path


def test_a_log_is_read_in_order_and_a_step_logged_again_counts_once(tmp_path: Path):
    resumed = [*LOG[:10], *[entry | {"l0": 9.0} for entry in LOG[5:20]]]
    log = read_log(write_log(tmp_path / "log.jsonl", resumed, tail='{"step": 21, "tok'))
    assert [entry["step"] for entry in log] == list(range(1, 21))
    assert log[4]["l0"] == 4.0 and log[5]["l0"] == 9.0


def test_without_a_log_there_is_nothing_to_read(tmp_path: Path):
    assert read_log(tmp_path / "log.jsonl") == []


@pytest.mark.parametrize(
    "log",
    [
        LOG,
        LOG[:1],
        [{key: entry[key] for key in ("step", "tokens", "mse")} for entry in LOG],
        [entry | {"explained_variance": math.nan} for entry in LOG],
        [entry | {"l0": 1000.0 / entry["step"]} for entry in LOG],
        [entry | {"explained_variance": -8.0, "dormant_fraction": 0.0} for entry in LOG],
    ],
    ids=["usual", "one step", "mse alone", "NaN", "L0 over decades", "bad"],
)
def test_a_training_curve_is_drawn(log: list[dict[str, Any]], tmp_path: Path):
    training_curve(log, tmp_path / "curve.png")
    assert share_of_ink(tmp_path / "curve.png") > 0.01


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("first", [-30.0, -1e4])
def test_first_steps_far_outside_take_no_room_from_the_axes(tmp_path: Path, first: float):
    log = [LOG[0] | {"explained_variance": first, "l0": 1e6}, *LOG[1:]]
    training_curve(log, tmp_path / "curve.png")
    training_curve(LOG, tmp_path / "usual.png")
    drawn, usual = (share_of_ink(tmp_path / f"{name}.png") for name in ("curve", "usual"))
    assert drawn > 0.7 * usual


def test_a_histogram_shows_its_counts_and_how_many_never_fired(tmp_path: Path):
    def drawn(**changes: Any) -> np.ndarray:
        feature_density(DENSITY | changes, tmp_path / "density.png")
        return imread(tmp_path / "density.png")

    usual = drawn()
    assert not np.array_equal(usual, drawn(counts=[4, 10, 2, 8]))
    assert not np.array_equal(usual, drawn(never=9))
    assert np.array_equal(usual, drawn())


def test_features_that_all_never_fired_are_drawn_too(tmp_path: Path):
    feature_density(DENSITY | {"counts": [0, 0, 0, 0], "never": 32}, tmp_path / "density.png")
    assert share_of_ink(tmp_path / "density.png") > 0.005


def test_a_histogram_whose_edges_do_not_fit_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="one edge more"):
        feature_density(DENSITY | {"counts": [1, 2]}, tmp_path / "density.png")


def test_a_picture_holds_what_matplotlib_itself_would_save(tmp_path: Path):
    """Its `savefig` draws twice, the first time for the layout."""

    def drawn() -> Figure:
        figure = Figure(figsize=(4, 2), layout="constrained")
        axes = figure.subplots()
        axes.plot([1, 2], [1e5, 2e5])
        axes.set_ylabel("tokens")
        return figure

    save(drawn(), tmp_path / "ours.png")
    drawn().savefig(tmp_path / "theirs.png", dpi=150, metadata={"Software": None})
    assert (tmp_path / "ours.png").read_bytes() == (tmp_path / "theirs.png").read_bytes()


def test_the_users_settings_and_figures_stay_as_they_are(tmp_path: Path):
    before = dict(matplotlib.rcParams)
    training_curve(LOG, tmp_path / "curve.png")
    feature_density(DENSITY, tmp_path / "density.png")
    assert dict(matplotlib.rcParams) == before and not Gcf.get_all_fig_managers()
