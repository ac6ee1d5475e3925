import copy
import logging

import pytest
import torch
from torch import nn

from hfsae.data.narrow import LowPrecision, NarrowWeights
from hfsae.hooks import capture
from tests.data.tiny import language_model
from tests.hooks.model_types import tiny_model

IDS = torch.arange(24).view(3, 8) % 20
PLACE = "resid_post.1"


def read(model, precision=None, place=PLACE):
    with capture(model, place) as activations:
        if precision is None:
            return activations.run(input_ids=IDS)[place]
        with precision.entered():
            return activations.run(input_ids=IDS)[place]


def low_precision(model, place=PLACE):
    with capture(model, place) as activations:
        return LowPrecision(model, activations.hook_points.values(), torch.bfloat16)


def test_a_pass_is_that_of_the_model_loaded_in_bfloat16():
    model = language_model()
    loaded = copy.deepcopy(model).bfloat16()
    given = read(model, low_precision(model))
    assert given.dtype == torch.bfloat16
    assert torch.equal(given, read(loaded))
    torch.testing.assert_close(given.float(), read(model), atol=0.05, rtol=0.05)


def test_the_weights_are_back_after_a_pass_and_after_one_that_fails():
    model = language_model()
    before = {name: (weight.data_ptr(), weight.clone()) for name, weight in model.named_parameters()}
    precision = low_precision(model)
    read(model, precision)
    with pytest.raises(RuntimeError), precision.entered():
        model(input_ids=IDS.float())
    for name, weight in model.named_parameters():
        assert weight.dtype == torch.float32 and weight.data_ptr() == before[name][0]
        assert torch.equal(weight, before[name][1])
    assert read(model).dtype == torch.float32


def test_weights_that_have_changed_are_read_anew():
    model = language_model()
    precision = low_precision(model)
    first = read(model, precision)
    with torch.no_grad():
        model.transformer.h[0].mlp.c_proj.weight.mul_(2)
    second = read(model, precision)
    assert not torch.equal(first, second)
    assert torch.equal(second, read(copy.deepcopy(model).bfloat16()))


def test_only_what_a_pass_reads_is_copied():
    model = language_model()
    blocks = model.transformer.h
    read_by_a_pass = {
        weight
        for module in (model.transformer.wte, model.transformer.wpe, blocks[0], blocks[1], model.transformer.ln_f)
        for weight in module.parameters()
    }
    with capture(model, PLACE) as activations:
        weights = NarrowWeights(model, activations.hook_points.values(), torch.bfloat16)
    with weights.in_place():
        narrow = {weight for weight in model.parameters() if weight.dtype == torch.bfloat16}
    assert narrow == read_by_a_pass


def test_weights_wanted_in_float32_whatever_the_model_is_loaded_in_stay_so():
    model = language_model()
    model._keep_in_fp32_modules_strict = {"ln_1"}
    with capture(model, PLACE) as activations:
        weights = NarrowWeights(model, activations.hook_points.values(), torch.bfloat16)
    with weights.in_place():
        assert model.transformer.h[0].ln_1.weight.dtype == torch.float32
        assert model.transformer.h[0].ln_2.weight.dtype == torch.bfloat16


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.bfloat16(),
        lambda model: setattr(model.transformer.h[0], "_hf_hook", object()),
        lambda model: setattr(
            model.transformer.wpe, "weight", type("Sharded", (nn.Parameter,), {})(torch.ones(64, 16))
        ),
    ],
    ids=["narrow already", "offloaded", "of a kind of their own"],
)
def test_weights_that_others_have_a_hand_in_are_left_alone(change):
    model = language_model()
    assert NarrowWeights.fits(model)
    change(model)
    assert not NarrowWeights.fits(model)


@pytest.mark.parametrize("model_type", ["xglm", "dbrx", "minimax", "openai-gpt", "llama"])
def test_what_a_model_does_not_stand_is_left_out(model_type, caplog):
    """XGLM's norms take no narrow weights, dbrx no autocast alone, the next two no weights without it."""
    model = tiny_model(model_type).eval()
    with caplog.at_level(logging.WARNING):
        precision = low_precision(model)
    given, exact = read(model, precision).float(), read(model)
    assert not torch.equal(given, exact)
    assert (given - exact).square().sum() < 0.02 * (exact - exact.mean((0, 1))).square().sum()
    assert "does not run" not in caplog.text


def test_a_model_that_stands_neither_runs_as_it_is_and_says_so(caplog):
    model = language_model()
    for block in model.transformer.h:
        block.mlp.c_fc = Strict(block.mlp.c_fc)
    with caplog.at_level(logging.WARNING):
        precision = low_precision(model)
    assert "does not run in torch.bfloat16" in caplog.text
    assert torch.equal(read(model, precision), read(model))


class Sharded(nn.Parameter):
    """Weights that something else arranges."""


class Strict(nn.Module):
    """A layer that takes float32 alone, and nothing that autocast has had a hand in."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        out = self.layer(x)
        return torch.zeros(out.shape).index_put_((torch.arange(len(out)),), out)
