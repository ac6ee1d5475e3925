"""Writing activations: what arrives, what is kept of the original, where gradients go, that nothing stays behind."""

from contextlib import ExitStack

import accelerate
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from hfsae.hooks import HookPointError, add_vector, available_hook_points, capture, splice
from tests.hooks.families import FAMILIES, build, input_ids
from tests.hooks.witness import count_hooks, recorded, replaced

every_family = pytest.mark.parametrize("name", FAMILIES)


@pytest.fixture
def model():
    return build("gpt2")


def fresh(name):
    """A model that a test may change."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(FAMILIES[name].config()).eval()


def logits_of(model):
    with torch.no_grad():
        return model(input_ids()).logits


def add_ramp(x):
    """A change that no norm undoes."""
    return x + torch.linspace(-1, 1, x.shape[-1])


def nested_splices(model, places, edit):
    """One context with a splice at every place."""
    stack = ExitStack()
    for place in places:
        stack.enter_context(splice(model, place, edit))
    return stack


# Replacing, in every family


@every_family
def test_the_identity_at_every_place_at_once_leaves_logits_and_gradients_as_they_are(name):
    model = build(name)
    weight = model.get_input_embeddings().weight
    plain = model(input_ids()).logits
    (plain_gradient,) = torch.autograd.grad(plain.square().mean(), weight)
    with nested_splices(model, available_hook_points(model), lambda x: x):
        spliced = model(input_ids()).logits
        (gradient,) = torch.autograd.grad(spliced.square().mean(), weight)
    assert torch.equal(spliced, plain)
    torch.testing.assert_close(gradient, plain_gradient, rtol=1e-4, atol=1e-7)


@every_family
def test_a_replacement_acts_as_one_made_by_a_plain_torch_hook(name):
    model = build(name)
    plain = logits_of(model)
    for place, point in available_hook_points(model).items():
        if place.startswith("resid_mid"):
            continue  # A plain hook there reaches the norm alone.
        with splice(model, place, add_ramp):
            spliced = logits_of(model)
        with replaced(model, str(point), add_ramp):
            assert torch.equal(logits_of(model), spliced), place
        assert not torch.allclose(spliced, plain, rtol=1e-5, atol=1e-6), place


WITH_RESID_MID = [
    name
    for name, family in FAMILIES.items()
    if {"resid_mid", "mlp_out"} <= family.places.keys()
    and not name.startswith("gemma4")  # its blocks go on after them
]


@pytest.mark.parametrize("name", WITH_RESID_MID)
def test_at_resid_mid_the_stream_itself_is_replaced(name):
    model = build(name)
    for layer in range(2):
        new = torch.randn(2, 5, 16)
        reading = [f"mlp_out.{layer}", f"resid_post.{layer}"]
        with (
            torch.no_grad(),
            splice(model, f"resid_mid.{layer}", lambda x, new=new: new),
            capture(model, reading) as a,
        ):
            a.run(input_ids=input_ids())
        torch.testing.assert_close(a[f"resid_post.{layer}"], new + a[f"mlp_out.{layer}"], rtol=1e-5, atol=1e-5)


def test_at_granite_s_resid_mid_the_stream_itself_is_replaced():
    model = build("granite")
    new, mlp = torch.randn(2, 5, 16), "model.layers.0.mlp.output"
    with torch.no_grad(), recorded(model, [mlp]) as seen, capture(model, "resid_post.0") as found:
        with splice(model, "resid_mid.0", lambda x: new):
            model(input_ids())
    torch.testing.assert_close(found["resid_post.0"], new + 0.25 * seen[mlp], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "opt", "bloom", "gemma2", "falcon-sequential"])
def test_gradients_of_a_replaced_stream_are_those_of_a_replaced_attention_output(name):
    # resid_mid + v and attn_out + v are the same model, so the same gradients must reach the embedding and v. Tanh
    # saves its result, which writing to the stream must not spoil.
    model = build(name)
    weight = model.get_input_embeddings().weight
    gradients = []
    for place in ("resid_mid.0", "attn_out.0"):
        v = torch.full((16,), 0.3, requires_grad=True)
        with splice(model, place, lambda x, v=v: x + torch.tanh(v)):
            loss = model(input_ids()).logits.square().mean()
        gradients.append(torch.autograd.grad(loss, [v, weight]))
    for left, right in zip(*gradients, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("place", ["resid_pre.1", "resid_mid.1", "resid_post.1", "attn_out.1", "mlp_act.1"])
def test_an_edit_that_saves_what_it_was_given_for_backward_is_not_spoilt(model, place):
    with splice(model, place, lambda x: x * torch.sigmoid(x)):
        torch.autograd.grad(model(input_ids()).logits.sum(), model.transformer.wte.weight)


def test_what_the_edit_returned_is_not_written_into():
    # Falcon adds the attention's output onto the MLP's in place; a leaf would be an error, a kept tensor spoilt.
    model = build("falcon")
    kept = torch.ones(2, 5, 16, requires_grad=True)
    with splice(model, "mlp_out.0", lambda x: kept):
        (gradient,) = torch.autograd.grad(model(input_ids()).logits.square().sum(), kept)
    assert torch.equal(kept, torch.ones(2, 5, 16)) and gradient.abs().sum() > 0


# Keeping the error


def affine(x):
    """A reconstruction with faults."""
    return 0.8 * x + 0.1


def test_an_intervention_is_carried_over_and_the_error_is_kept(model):
    x_seen = []

    def edit(x):
        x_seen.append(x)
        return affine(x), affine(x) + 0.5

    with splice(model, "resid_post.0", edit, keep_error=True), capture(model, "resid_post.0") as found:
        found.run(input_ids=input_ids())
    torch.testing.assert_close(found["resid_post.0"], x_seen[0] + 0.5)


def test_a_reconstruction_without_an_intervention_leaves_the_logits_equal_to_the_last_bit(model):
    plain = logits_of(model)
    with splice(model, "resid_mid.0", lambda x: (affine(x), affine(x)), keep_error=True):
        assert torch.equal(logits_of(model), plain)
    with splice(model, "resid_mid.0", affine):
        assert not torch.allclose(logits_of(model), plain)


@pytest.mark.parametrize(
    ("detach_error", "slope"),
    # y = 3 (c x + b)(x) + (x - a x): the error term adds 1 - a to the slope, or, held constant, nothing.
    [(False, 3 * (0.5 + 1 - 0.8)), (True, 3 * 0.5)],
)
def test_gradients_flow_through_the_error_term_unless_it_is_detached(detach_error, slope):
    network = nn.Sequential(nn.Identity(), nn.Identity())
    x = torch.randn(2, 3, 4, requires_grad=True)
    with splice(network, "0.output", lambda x: (0.8 * x, 0.5 * x), keep_error=True, detach_error=detach_error):
        y = 3 * network(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(y, 3 * (0.5 * x + x - 0.8 * x))
    torch.testing.assert_close(gradient, torch.full_like(x, slope))


@pytest.mark.parametrize("name", ["gpt2", "falcon", "mixtral", "mamba"])
def test_gradients_through_reconstruction_and_error_are_those_of_the_formula_written_out(name):
    model = build(name)
    weight = model.get_input_embeddings().weight
    gradients = []
    for edit, keep_error in (
        (lambda x: (torch.sin(x), torch.sin(2 * x)), True),
        (lambda x: torch.sin(2 * x) + x - torch.sin(x), False),
    ):
        with splice(model, "resid_post.0", edit, keep_error=keep_error):
            gradients.append(torch.autograd.grad(model(input_ids()).logits.square().mean(), weight)[0])
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-6)


# Adding a vector


def test_adding_a_vector_adds_it_at_every_position_and_gradients_reach_it(model):
    v = torch.randn(16, requires_grad=True)
    with capture(model, "resid_post.0") as before, splice(model, "resid_post.0", add_vector(v, scale=2.0)):
        with capture(model, "resid_post.0") as after:
            loss = model(input_ids()).logits.square().mean()
    torch.testing.assert_close(after["resid_post.0"], before["resid_post.0"] + 2 * v.detach())
    assert torch.autograd.grad(loss, v)[0].abs().sum() > 0


def test_steering_within_generate_acts_on_every_step(model):
    favoured = 7
    direction = 100 * model.lm_head.weight[favoured].detach()
    with splice(model, "transformer.ln_f.output", add_vector(direction)):
        tokens = model.generate(input_ids(), max_new_tokens=4, min_new_tokens=4, do_sample=False, pad_token_id=0)
    assert torch.equal(tokens[:, 5:], torch.full((2, 4), favoured))
    plain = model.generate(input_ids(), max_new_tokens=4, min_new_tokens=4, do_sample=False, pad_token_id=0)
    assert not torch.equal(plain, tokens)


# Borders


def test_a_bf16_model_gets_back_its_own_dtype_from_an_edit_in_float32():
    model = fresh("llama").to(torch.bfloat16)
    dtypes = []

    def edit(x):
        dtypes.append(x.dtype)
        return x.float() * 2

    with splice(model, "resid_post.0", edit), capture(model, "resid_pre.1") as found:
        logits = logits_of(model)
    assert dtypes == [torch.bfloat16] and found["resid_pre.1"].dtype == torch.bfloat16
    with replaced(model, "model.layers.0.output", lambda x: x * 2):
        assert torch.equal(logits_of(model), logits)


def test_splices_compose_in_the_order_in_which_they_are_entered(model):
    with capture(model, "resid_post.0") as first, splice(model, "resid_post.0", lambda x: x + 1):
        with splice(model, "resid_post.0", lambda x: 2 * x), capture(model, "resid_post.0") as last:
            model(input_ids())
    torch.testing.assert_close(last["resid_post.0"], 2 * (first["resid_post.0"] + 1))


def test_splices_at_two_places_act_as_two_plain_hooks(model):
    with splice(model, "resid_post.0", lambda x: -x), splice(model, "attn_out.1", lambda x: 3 * x):
        spliced = logits_of(model)
    with replaced(model, "transformer.h.0.output", lambda x: -x):
        with replaced(model, "transformer.h.1.attn.output", lambda x: 3 * x):
            assert torch.equal(logits_of(model), spliced)


@pytest.mark.parametrize("place", ["embed", "resid_pre.0", "resid_mid.0", "resid_post.1", "mlp_act.0"])
def test_splicing_works_under_inference_mode(model, place):
    with splice(model, place, lambda x: x + 1):
        with torch.inference_mode():
            inferred = model(input_ids()).logits
        assert torch.equal(inferred, logits_of(model))


def test_splicing_works_with_offloaded_weights():
    model = fresh("llama")
    with splice(model, "resid_mid.0", lambda x: 2 * x):
        plain = logits_of(model)
    model = accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    with splice(model, "resid_mid.0", lambda x: 2 * x):
        assert torch.equal(logits_of(model), plain)


@pytest.mark.parametrize("place", ["embed", "mlp_act.0"])
def test_the_edit_sees_batch_sequence_and_width(model, place):
    shapes = []
    with splice(model, place, lambda x: shapes.append(x.shape) or x):
        model(input_ids())
    assert shapes == [(2, 5, 16 if place == "embed" else 64)]


# Errors, and leaving nothing behind


def test_a_misshapen_replacement_is_an_error_that_says_both_shapes(model):
    with splice(model, "resid_post.0", lambda x: x[..., :-1]):
        with pytest.raises(HookPointError, match=r"keep the shape \(2, 5, 16\), got \(2, 5, 15\)"):
            model(input_ids())


@pytest.mark.parametrize(
    ("edit", "keep_error", "message"),
    [
        (lambda x: None, False, "must return a Tensor .* got NoneType"),
        (lambda x: (x, x), False, "must return a Tensor .* got tuple"),
        (lambda x: x, True, r"pair \(reconstruction, edited reconstruction\), got Tensor"),
        (lambda x: (x, None), True, "got NoneType"),
    ],
)
def test_an_edit_that_returns_the_wrong_thing_is_told_what_is_expected(model, edit, keep_error, message):
    with splice(model, "resid_post.0", edit, keep_error=keep_error), pytest.raises(TypeError, match=message):
        model(input_ids())


def test_what_cannot_be_spliced_is_an_error_before_anything_runs(model):
    before = count_hooks(model)
    for place, settings, message in (
        ("resid_post.9", {}, "has 2 layers"),
        ("resid_post.*", {}, "several places"),
        ("resid_post.0", {"detach_error": True}, "only kept with keep_error"),
    ):
        with pytest.raises(HookPointError, match=message), splice(model, place, lambda x: x, **settings):
            pytest.fail("entered")
    assert count_hooks(model) == before


def test_the_model_is_as_before_after_the_context_and_after_an_exception_in_the_edit(model):
    def failing(x):
        raise ZeroDivisionError

    before, plain = count_hooks(model), logits_of(model)
    for place in available_hook_points(model):
        with splice(model, place, lambda x: 2 * x):
            assert count_hooks(model) > before
            model(input_ids())
        assert count_hooks(model) == before
        with pytest.raises(ZeroDivisionError), splice(model, place, failing):
            model(input_ids())
        assert count_hooks(model) == before
    assert torch.equal(logits_of(model), plain)
