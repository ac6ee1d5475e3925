"""Taking an activation out of a module's call and putting another in, in every form that modules use."""

from collections import namedtuple

import pytest
import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from hfsae.hooks import HookPointError, capture, splice
from tests.hooks.families import build, input_ids
from tests.hooks.witness import recorded, replaced

Pair = namedtuple("Pair", ["states", "weights"])


class Wrapping(nn.Module):
    """Hands its input on in a form of choice."""

    def __init__(self, wrap):
        super().__init__()
        self.wrap = wrap

    def forward(self, states):
        return self.wrap(states)


class Root(nn.Module):
    """Calls its one module in a way of choice."""

    def __init__(self, inner, call):
        super().__init__()
        self.inner = inner
        self.call = call

    def forward(self, x):
        return self.call(self.inner, x)


FORMS = {
    "tensor": lambda x: x,
    "tuple": lambda x: (x, "weights"),
    "list": lambda x: [x, "weights"],
    "namedtuple": lambda x: Pair(x, "weights"),
    "ModelOutput": lambda x: BaseModelOutput(last_hidden_state=x, attentions=(x.new_ones(1),)),
    "dict": lambda x: {"states": x, "weights": "weights"},
}


def opened(output):
    """The parts of an output, the activation first."""
    if isinstance(output, torch.Tensor):
        return [output]
    return list(output.values()) if isinstance(output, dict) else list(output)


@pytest.mark.parametrize("form", FORMS)
def test_an_output_is_read_and_given_back_in_the_form_it_came_in(form):
    root = Root(Wrapping(FORMS[form]), lambda inner, x: inner(x))
    x = torch.randn(2, 3, 4)
    plain = root(x)
    with capture(root, "inner.output") as found, splice(root, "inner.output", lambda x: x + 1):
        spliced = root(x)
    assert torch.equal(found["inner.output"], x)
    assert type(spliced) is type(plain)
    assert torch.equal(opened(spliced)[0], x + 1)
    assert opened(spliced)[1:] == opened(plain)[1:]


@pytest.mark.parametrize(
    "call",
    [
        lambda inner, x: inner(x),
        lambda inner, x: inner(states=x),
        lambda inner, x: inner((x, None)),
        lambda inner, x: inner(states=[x, None]),
    ],
    ids=["positional", "keyword", "tuple", "list by keyword"],
)
def test_an_input_is_read_and_replaced_however_it_is_passed(call):
    root = Root(Wrapping(lambda states: states if isinstance(states, torch.Tensor) else states[0]), call)
    x = torch.randn(2, 3, 4)
    with capture(root, "inner.input") as found, splice(root, "inner.input", lambda x: 2 * x):
        assert torch.equal(root(x), 2 * x)
    assert torch.equal(found["inner.input"], x)


def test_hidden_states_are_found_behind_a_signature_that_names_nothing():
    class Anything(nn.Module):
        def forward(self, *args, **kwargs):
            return kwargs["hidden_states"]

    root = Root(Anything(), lambda inner, x: inner(position=0, hidden_states=x))
    x = torch.randn(2, 3, 4)
    with splice(root, "inner.input", lambda x: 2 * x):
        assert torch.equal(root(x), 2 * x)


@pytest.mark.parametrize("output", [None, (), {}, ("weights",)])
def test_a_place_that_holds_no_tensor_is_named(output):
    root = Root(Wrapping(lambda states: output), lambda inner, x: inner(x))
    with capture(root, "inner.output"), pytest.raises(HookPointError, match=r"inner\.output holds no activation"):
        root(torch.randn(2, 3, 4))


def test_a_call_without_the_module_s_first_argument_is_an_error():
    class Optional(nn.Module):
        def forward(self, states=None, mask=None):
            return mask

    root = Root(Optional(), lambda inner, x: inner(mask=x))
    with capture(root, "inner.input"), pytest.raises(HookPointError, match="without its first argument, 'states'"):
        root(torch.randn(2, 3, 4))


@pytest.mark.parametrize("name", ["fc1.input", "fc1.output", "fc2.input", "fc2.output", "final_layer_norm.input"])
def test_flattened_tokens_are_unflattened_for_reading_and_flattened_again_for_the_model(name):
    model = build("opt")
    place = f"model.decoder.layers.1.{name}"
    shift = torch.randn(2, 5, 1)
    with torch.no_grad():
        with recorded(model, [place]) as seen:
            model(input_ids())
        assert seen[place].dim() == 2
        with capture(model, place) as found:
            found.run(input_ids=input_ids())
        assert torch.equal(found[place], seen[place].unflatten(0, (2, 5)))
        if name == "final_layer_norm.input":  # The stream itself is written here; see the splices' tests.
            return
        with splice(model, place, lambda x: x + shift):
            spliced = model(input_ids()).logits
        with replaced(model, place, lambda x: x + shift.flatten(0, 1)):
            assert torch.equal(model(input_ids()).logits, spliced)


def test_an_expert_s_own_share_of_the_tokens_stays_as_it_is():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.expert = nn.Linear(16, 16)

        def forward(self, hidden_states, **kwargs):
            return hidden_states + self.expert(hidden_states[:, 1:].flatten(0, 1)).mean()

    model = build("llama")
    original = model.model.layers[0]
    model.model.layers[0] = Block()
    try:
        with capture(model, "model.layers.0.expert.output") as found:
            found.run(inputs_embeds=torch.randn(2, 5, 16))
    finally:
        model.model.layers[0] = original
    assert found["model.layers.0.expert.output"].shape == (8, 16)
