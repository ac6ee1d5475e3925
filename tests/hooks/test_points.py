"""`HookPoint` and its canonical string."""

import pytest

from hfsae.hooks import HookPoint, HookPointError


def test_a_canonical_name_is_read_and_written_back():
    point = HookPoint.parse("model.layers.12.mlp.input")
    assert (point.path, point.side) == ("model.layers.12.mlp", "input")
    assert str(point) == "model.layers.12.mlp.input"


def test_only_the_last_component_is_the_side():
    point = HookPoint.parse("bert.encoder.layer.0.output.output")
    assert (point.path, point.side) == ("bert.encoder.layer.0.output", "output")


@pytest.mark.parametrize("name", ["transformer.h.8", "resid_post.8", "output", ".output", "", "model.layers.1.Output"])
def test_what_has_no_path_and_side_is_refused_with_the_form_that_is_expected(name):
    with pytest.raises(HookPointError, match=r"'\.input' or '\.output'"):
        HookPoint.parse(name)


def test_equal_places_are_one_key():
    assert {HookPoint("a.b", "input"): 1}[HookPoint.parse("a.b.input")] == 1
