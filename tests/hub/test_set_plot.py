"""The picture of a set."""

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from hfsae.evaluation.saved_set import SET_PLOT
from hfsae.hub.set_plot import draw_set, set_figure, set_plot

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


LONG = "model.language_model.layers.{}.post_attention_layernorm.output-batch_topk-16x-k32"


@pytest.mark.parametrize("n", [1, 2, 12, 30, 60])
@pytest.mark.parametrize("name", ["mlp_in.{}", LONG, "{}-of-a-set-whose-names-differ-from-the-beginning-on"])
def test_axes_keep_their_size_whatever_the_number_of_names_and_their_length(n, name):
    figure = set_figure(TOGETHER, {name.format(number): EACH["mlp_in.0"] for number in range(n)})
    FigureCanvasAgg(figure).draw()
    width, height = figure.get_size_inches()
    boxes = [axes.get_tightbbox().transformed(figure.dpi_scale_trans.inverted()) for axes in figure.axes]
    for axes, box in zip(figure.axes, boxes, strict=True):
        place = axes.get_position()
        assert place.width * width > 2 and place.height * height > 1.8
        assert box.x0 > -0.05 and box.y0 > -0.05 and box.x1 < width + 0.05 and box.y1 < height + 0.05
    labels = [label.get_window_extent() for label in figure.axes[1].get_xticklabels()]
    assert not any(one.overlaps(other) for one, other in zip(labels, labels[1:], strict=False))


def test_names_say_what_is_their_own_and_the_axis_what_all_have():
    axes = set_figure(TOGETHER, {LONG.format(number): EACH["mlp_in.0"] for number in range(12)}).axes[1]
    assert [label.get_text() for label in axes.get_xticklabels()] == [str(number) for number in range(12)]
    assert axes.get_xlabel() == "model.language_model.layers.*.post_attentio…_topk-16x-k32"
    axes = set_figure(TOGETHER, {f"mlp_in.{number}": EACH["mlp_in.0"] for number in range(3)}).axes[1]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["mlp_in.0", "mlp_in.1", "mlp_in.2"]
    assert axes.get_xlabel() == ""
