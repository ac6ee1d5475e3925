"""`width` against what really passes."""

import pytest
import torch
from torch import nn

from hfsae.hooks import HookPointError, available_hook_points, capture, width
from tests.hooks.families import FAMILIES, build, input_ids


@pytest.mark.parametrize("name", FAMILIES)
def test_the_width_of_every_place_is_that_of_the_activation(name):
    model = build(name)
    names = list(available_hook_points(model))
    with capture(model, names) as found:
        found.run(input_ids=input_ids())
    assert {place: width(model, place) for place in names} == {place: found[place].shape[-1] for place in names}


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("transformer.h.0.attn.c_attn.output", 48),
        ("transformer.h.1.mlp.act.output", 64),
        ("transformer.ln_f.input", 16),
        ("lm_head.output", 64),
    ],
)
def test_places_without_a_portable_name_have_a_width_too(place, expected):
    assert width(build("gpt2"), place) == expected


@pytest.mark.parametrize("place", ["resid_post.1", "attn_z.0", "mlp_act.0", "embed", "lm_head.output"])
def test_widths_that_follow_from_the_model_s_shape_are_known_without_running_it(place):
    model = build("llama")
    handle = model.register_forward_pre_hook(lambda *_: pytest.fail("ran"))
    try:
        assert width(model, place) in (16, 24, 64)
    finally:
        handle.remove()


def test_a_width_that_must_be_measured_is_measured_once():
    model = build("gpt2")
    assert width(model, "transformer.h.0.mlp.act.input") == 64
    handle = model.register_forward_pre_hook(lambda *_: pytest.fail("ran again"))
    try:
        assert width(model, "transformer.h.0.mlp.act.input") == 64
    finally:
        handle.remove()


def test_an_unknown_place_has_no_width():
    with pytest.raises(HookPointError, match="no hook point"):
        width(nn.Sequential(nn.Linear(2, 3), nn.ReLU()), "3.output")
    assert width(nn.Sequential(nn.Linear(2, 3), nn.ReLU()), "0.output") == 3
    assert torch.is_grad_enabled()
