"""The picture of a set."""

from hfsae.evaluation.saved_set import SET_PLOT
from hfsae.hub.set_plot import draw_set, set_plot

TOGETHER = {"ce_clean": 3.1, "ce_with_errors": 3.1, "ce_spliced": 3.6, "ce_mean": 7.5, "ce_zero": 8.0}
EACH = {"mlp_in.0": {"explained_variance": 0.9, "loss_recovered": 0.95, "dead_fraction": 0.1}, "mlp_in.1": {}}


def test_the_same_figures_are_the_same_picture_and_others_are_another(tmp_path):
    for name, together in (("a", TOGETHER), ("b", TOGETHER), ("c", TOGETHER | {"ce_spliced": 6.0})):
        set_plot(together, EACH, tmp_path / name)
    first, same, other = ((tmp_path / name).read_bytes() for name in "abc")
    assert first == same != other and first.startswith(b"\x89PNG")


def test_figures_that_are_missing_are_left_out(tmp_path):
    set_plot({"ce_spliced": None}, {"mlp_in.0": {"explained_variance": None}}, tmp_path / "empty.png")
    assert (tmp_path / "empty.png").stat().st_size > 1000


def test_a_picture_of_an_earlier_set_goes_where_there_is_no_record(tmp_path):
    (tmp_path / SET_PLOT).write_bytes(b"old")
    draw_set(tmp_path)
    assert not (tmp_path / SET_PLOT).exists()
