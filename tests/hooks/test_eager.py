"""Compiled models, whose compiled code ignores hooks that were set after it was made."""

import copy

import pytest
import torch
from transformers import PreTrainedModel

from hfsae.analysis import steer
from hfsae.hooks import add_vector, capture, splice
from hfsae.hooks.eager import running_as_written
from tests.analysis.test_interventions import STRENGTHS, sae_at
from tests.hooks.families import build, input_ids
from tests.hooks.witness import replaced
from tests.older import compiles_models

PLACE = "resid_post.0"


def returned(model: PreTrainedModel):
    return torch.compile(model, backend="eager")


def in_place(model: PreTrainedModel):
    model.compile(backend="eager")
    return model


def its_forward(model: PreTrainedModel):
    model.forward = torch.compile(model.forward, backend="eager")
    return model


def its_blocks(model: PreTrainedModel):
    for block in model.model.layers:
        block.compile(backend="eager")
    return model


WAYS = [
    pytest.param(returned, marks=compiles_models),
    *(pytest.param(way, marks=[compiles_models, pytest.mark.slow]) for way in (in_place, its_forward)),
    its_blocks,
]


@pytest.fixture(autouse=True)
def _nothing_compiled_before():
    """Code compiled for a test before would do here too, and after eight of them a model runs as written."""
    torch._dynamo.reset()


@pytest.fixture(params=WAYS, ids=lambda way: way.__name__)
def compiled(request):
    """A compiled model that was called before, so that its code is made."""
    model = request.param(copy.deepcopy(build("llama")))
    with torch.no_grad():
        model(input_ids())
        model(input_ids(2, 6))
    return model


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(input_ids(), use_cache=False).logits


def test_every_splice_acts_in_a_first_context_and_in_later_ones(compiled):
    plain, vector = build("llama"), torch.linspace(-3, 3, 16)
    untouched = logits(plain)
    for sign in (1.0, -1.0, 1.0):
        with replaced(plain, "model.layers.0.output", lambda x, sign=sign: x + sign * vector):
            expected = logits(plain)
        with splice(compiled, PLACE, add_vector(vector, sign)):
            torch.testing.assert_close(logits(compiled), expected)
        torch.testing.assert_close(logits(compiled), untouched)
    assert (expected - untouched).abs().max() > 0.1


@pytest.mark.slow
def test_reading_and_steering_act_too(compiled):
    plain, sae = build("llama"), sae_at(PLACE)
    with capture(plain, PLACE) as expected, capture(compiled, PLACE) as found:
        expected.run(input_ids=input_ids())
        found.run(input_ids=input_ids())
    torch.testing.assert_close(found[PLACE], expected[PLACE])
    with steer(plain, sae, STRENGTHS):
        steered = logits(plain)
    for _ in range(2):
        with steer(compiled, sae, STRENGTHS):
            torch.testing.assert_close(logits(compiled), steered)


def function_around(model: PreTrainedModel):
    return torch.compile(lambda ids: model(ids, use_cache=False).logits, backend="eager")


def model_around(model: PreTrainedModel):
    compiled = returned(model)
    return lambda ids: compiled(ids, use_cache=False).logits


@compiles_models
@pytest.mark.parametrize("around", [function_around, pytest.param(model_around, marks=pytest.mark.slow)])
def test_the_model_inside_of_what_was_compiled_obeys_its_hooks(around):
    model = copy.deepcopy(build("llama"))
    compiled, sae = around(model), sae_at(PLACE)
    with torch.no_grad():
        untouched = compiled(input_ids())
        with steer(build("llama"), sae, STRENGTHS):
            expected = logits(build("llama"))
        for _ in range(2):
            with steer(model, sae, STRENGTHS):
                torch.testing.assert_close(compiled(input_ids()), expected)
            torch.testing.assert_close(compiled(input_ids()), untouched)
    assert (expected - untouched).abs().max() > 0.1


def test_compiled_code_is_back_after_the_last_of_several_contexts_in_whatever_order():
    model, other = build("llama"), build("gpt2")
    first, second = splice(model, PLACE, lambda x: x), splice(other, PLACE, lambda x: x)
    compiled = torch.compile(lambda x: x.sin() if torch.compiler.is_compiling() else x.cos(), backend="eager")
    x = torch.ones(3)
    assert torch.equal(compiled(x), x.sin())
    first.__enter__()
    second.__enter__()
    assert torch.equal(compiled(x), x.cos())
    first.__exit__(None, None, None)
    assert torch.equal(compiled(x), x.cos())
    second.__exit__(None, None, None)
    assert torch.equal(compiled(x), x.sin())


@pytest.mark.slow
@compiles_models
@torch._dynamo.config.patch(recompile_limit=1)
def test_a_compiled_model_that_runs_as_written_obeys_the_hooks_inside_it():
    returned(copy.deepcopy(build("llama")))(input_ids(2, 6))  # the one compilation that is allowed
    model = copy.deepcopy(build("llama"))
    with splice(model, PLACE, lambda x: x * 0):
        zeroed = logits(returned(model))
    with replaced(model, "model.layers.0.output", lambda x: x * 0):
        torch.testing.assert_close(zeroed, logits(model))


@compiles_models
def test_what_is_compiled_inside_a_context_forgets_its_hooks_with_it():
    model = copy.deepcopy(build("llama"))
    untouched = logits(model)
    with splice(model, PLACE, lambda x: x * 0):
        compiled = returned(model)
        inside = logits(compiled)
    assert (inside - untouched).abs().max() > 0.1
    torch.testing.assert_close(logits(compiled), untouched)


def test_generate_compiles_none_of_its_steps():
    model = copy.deepcopy(build("llama"))
    with running_as_written([model]):
        with running_as_written([model]):
            assert model.get_compiled_call(None) == model.__call__
        assert model.get_compiled_call(None) == model.__call__
    assert "get_compiled_call" not in vars(model)
