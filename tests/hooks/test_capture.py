"""Reading activations: what is kept, where the model stops, and that nothing stays behind."""

import accelerate
import pytest
import torch
from accelerate.hooks import attach_align_device_hook
from transformers import AutoModelForCausalLM, DynamicCache

from hfsae.hooks import HookPoint, HookPointError, available_hook_points, capture, splice
from tests.hooks.families import FAMILIES, build, input_ids
from tests.hooks.witness import count_hooks, recorded


@pytest.fixture
def model():
    return build("gpt2")


def calls_of(model, path):
    """Register a hook that counts a module's calls; returns the counts and the way to take it off."""
    counts = []
    handle = model.get_submodule(path).register_forward_hook(lambda *_: counts.append(1))
    return counts, handle.remove


def fresh(name):
    """A model that a test may change."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(FAMILIES[name].config()).eval()


# Names


def test_keys_are_the_names_as_the_caller_gave_them_and_canonical_names_work_too(model):
    with capture(model, ["layers.-1", "blocks.0.hook_mlp_out", HookPoint("transformer.h.0", "input")]) as found:
        found.run(input_ids=input_ids())
    assert list(found) == ["layers.-1", "blocks.0.hook_mlp_out", "transformer.h.0.input"]
    assert len(found) == 3
    assert found["layers.-1"] is found["transformer.h.1.output"]
    assert found["transformer.h.0.input"] is found[HookPoint("transformer.h.0", "input")]


def test_a_wildcard_gives_one_key_a_layer_in_the_style_of_the_name(model):
    with capture(model, ["resid_post.*", "blocks.*.hook_attn_out", "transformer.h.0-1.mlp.output"]) as found:
        found.run(input_ids=input_ids())
    assert list(found) == [
        "resid_post.0",
        "resid_post.1",
        "blocks.0.hook_attn_out",
        "blocks.1.hook_attn_out",
        "transformer.h.0.mlp.output",
        "transformer.h.1.mlp.output",
    ]


def test_two_names_of_one_place_give_one_tensor(model):
    with capture(model, ["layers.0", "resid_post.0"]) as found:
        found.run(input_ids=input_ids())
    assert found["layers.0"] is found["resid_post.0"]


def test_nothing_is_in_a_capture_before_the_model_has_run(model):
    with capture(model, "resid_post.1") as found:
        assert len(found) == 0 and "resid_post.1" not in found
        for name in ("resid_post.1", "transformer.h.1.output"):
            with pytest.raises(KeyError, match="run the model inside the context first"):
                found[name]
        with pytest.raises(KeyError, match="captured are: resid_post.1"):
            found["resid_post.0"]


def test_an_unknown_place_is_an_error_before_anything_runs_and_leaves_no_hooks(model):
    before = count_hooks(model)
    with pytest.raises(HookPointError, match="has 2 layers"), capture(model, ["resid_post.0", "resid_post.7"]):
        pytest.fail("entered")
    assert count_hooks(model) == before


# Stopping


@pytest.mark.parametrize(
    ("names", "not_reached"),
    [
        (["resid_post.0"], ["transformer.h.1", "lm_head"]),
        (["resid_pre.1", "embed"], ["transformer.h.1.ln_1", "lm_head"]),
        (["mlp_in.1", "resid_post.0"], ["transformer.h.1.mlp.c_fc", "transformer.ln_f", "lm_head"]),
        (["resid_post.1"], ["transformer.ln_f", "lm_head"]),
    ],
)
def test_the_model_stops_right_after_the_last_place(model, names, not_reached):
    with capture(model, names) as found:
        counters = [calls_of(model, path) for path in not_reached]
        reached, forget = calls_of(model, "transformer.h.0.attn")
        found.run(input_ids=input_ids())
    assert [len(counts) for counts, _ in counters] == [0] * len(not_reached)
    assert len(reached) == 1
    assert found.output is None
    for remove in (*(remove for _, remove in counters), forget):
        remove()


@pytest.mark.parametrize("name", FAMILIES)
def test_stopped_values_are_those_of_a_whole_pass_in_every_family(name):
    model = build(name)
    names = list(available_hook_points(model))
    with capture(model, names, stop=False) as whole:
        whole.run(input_ids=input_ids())
    for place in names:
        with capture(model, place) as stopped:
            stopped.run(input_ids=input_ids())
        assert torch.equal(stopped[place], whole[place]), place


def test_without_stop_the_run_keeps_the_model_s_output(model):
    with capture(model, "resid_post.0", stop=False) as found:
        found.run(input_ids=input_ids())
    with torch.no_grad():
        assert torch.equal(found.output.logits, model(input_ids()).logits)


def test_a_plain_call_inside_the_context_is_never_stopped(model):
    plain = model(input_ids()).logits
    with capture(model, "resid_post.0") as found:
        assert torch.equal(model(input_ids()).logits, plain)
        found.run(input_ids=input_ids())
        assert torch.equal(model(input_ids()).logits, plain)
    assert "resid_post.0" in found


def test_no_cache_is_made_unless_asked_for(model):
    with capture(model, "resid_post.0", stop=False) as found:
        assert found.run(input_ids=input_ids()).output.past_key_values is None
        assert found.run(input_ids=input_ids(), use_cache=True).output.past_key_values is not None


def test_positions_with_a_gap_need_a_mask_and_then_read_what_a_plain_call_reads():
    model, place = build("llama"), "model.layers.1.output"
    ids, positions = input_ids(1, 6), torch.tensor([[0, 1, 2, 7, 8, 9]])
    with torch.no_grad(), recorded(model, [place]) as plain:
        model(ids, position_ids=positions)  # with a cache, by which no text is cut
    with capture(model, place) as found:
        with pytest.raises(ValueError, match="position_ids go from 2 to 7 and no attention_mask is given"):
            found.run(input_ids=ids, position_ids=positions)
        found.run(input_ids=ids, position_ids=positions, attention_mask=torch.ones_like(ids))
        masked = found[place]
        found.run(input_ids=ids, position_ids=positions, past_key_values=DynamicCache())
        cached = found[place]
    assert torch.allclose(masked, plain[place], atol=1e-6) and torch.allclose(cached, plain[place], atol=1e-6)


def test_packed_texts_are_read_each_by_itself():
    model, place = build("llama"), "model.layers.1.output"
    ids = input_ids(1, 6)
    with capture(model, place) as found:
        packed = found.run(input_ids=ids, position_ids=torch.tensor([[0, 1, 2, 0, 1, 2]]))[place]
        alone = [found.run(input_ids=part)[place] for part in (ids[:, :3], ids[:, 3:])]
    assert torch.allclose(packed, torch.cat(alone, dim=1), atol=1e-6)


def test_an_inner_run_that_stops_does_not_stop_the_outer_one(model):
    found_inside = []
    with capture(model, "resid_post.1") as outer, capture(model, "resid_post.0") as inner:
        handle = model.transformer.h[1].register_forward_pre_hook(
            lambda *_: found_inside or found_inside.append(inner.run(input_ids=input_ids())["resid_post.0"])
        )
        outer.run(input_ids=input_ids())
        handle.remove()
    assert torch.equal(found_inside[0], inner["resid_post.0"]) and "resid_post.1" in outer


def test_the_outer_run_s_stop_passes_through_an_inner_run(model):
    entered = []
    with capture(model, "resid_post.1") as outer, capture(model, "transformer.ln_f.output") as inner:
        handle = model.transformer.h[1].register_forward_pre_hook(
            lambda *_: None if entered else entered.append(1) or inner.run(input_ids=input_ids())
        )
        outer.run(input_ids=input_ids())
        handle.remove()
    assert "resid_post.1" in outer and not inner


def test_a_place_that_the_model_never_passes_is_an_error_after_the_run(model):
    model = fresh("gpt2")
    model.unused = torch.nn.Linear(2, 2)
    with capture(model, ["resid_post.0", "unused.output"]) as found:
        with pytest.raises(HookPointError, match=r"finished without passing unused\.output"):
            found.run(input_ids=input_ids())


def test_running_after_the_context_has_been_left_is_an_error(model):
    with capture(model, "resid_post.0") as found:
        found.run(input_ids=input_ids())
    with pytest.raises(HookPointError, match="has been left"):
        found.run(input_ids=input_ids())
    assert found["resid_post.0"].shape == (2, 5, 16)


# What is kept


def test_activations_of_a_second_run_replace_those_of_the_first(model):
    with capture(model, "resid_post.0") as found:
        first = found.run(input_ids=input_ids())["resid_post.0"]
        second = found.run(input_ids=input_ids(batch=3, seq=4))["resid_post.0"]
    assert first.shape == (2, 5, 16) and second.shape == (3, 4, 16)


def test_detached_activations_are_cut_from_the_graph_which_a_stopped_run_does_not_even_record(model):
    recording = []
    handle = model.transformer.h[0].register_forward_hook(lambda *_: recording.append(torch.is_grad_enabled()))
    with capture(model, "resid_post.0") as found:
        assert not found.run(input_ids=input_ids())["resid_post.0"].requires_grad
        model(input_ids())
        assert not found["resid_post.0"].requires_grad
    handle.remove()
    assert recording == [False, True]


def test_activations_are_cast_at_the_border():
    model = fresh("llama").to(torch.bfloat16)
    with capture(model, ["resid_post.0"]) as raw, capture(model, "resid_post.0", dtype=torch.float32) as cast:
        model(input_ids())
    assert raw["resid_post.0"].dtype == torch.bfloat16 and cast["resid_post.0"].dtype == torch.float32
    assert torch.equal(cast["resid_post.0"], raw["resid_post.0"].float())


def test_a_module_that_is_written_into_afterwards_is_read_before():
    # Falcon adds the attention's output onto the MLP's in place.
    model = build("falcon")
    with torch.no_grad(), capture(model, ["mlp_in.0", "mlp_out.0"]) as found:
        model(input_ids())
        by_hand = model.transformer.h[0].mlp(found["mlp_in.0"])
    assert torch.equal(found["mlp_out.0"], by_hand)


@pytest.mark.parametrize("name", ["gpt2", "llama", "falcon", "bloom", "opt", "gemma2", "mamba", "mixtral"])
def test_gradients_with_respect_to_what_is_kept_are_those_of_the_graph(name):
    model = build(name)
    names = list(available_hook_points(model))
    with capture(model, names, detach=False) as found:
        loss = model(input_ids()).logits.square().mean()
        gradients = dict(zip(names, torch.autograd.grad(loss, [found[place] for place in names]), strict=True))
    # A nudge along the gradient, at each place on its own, must change the loss as the gradient says.
    for place, gradient in gradients.items():
        step = 1e-2 / gradient.norm()
        with torch.no_grad(), splice(model, place, lambda x, g=gradient, s=step: x + s * g):
            up = model(input_ids()).logits.square().mean()
        with torch.no_grad(), splice(model, place, lambda x, g=gradient, s=step: x - s * g):
            down = model(input_ids()).logits.square().mean()
        torch.testing.assert_close((up - down) / 2, step * gradient.square().sum(), rtol=2e-2, atol=1e-6)


def test_a_frozen_model_s_activations_can_be_differentiated():
    model = fresh("gpt2").requires_grad_(False)
    with capture(model, ["resid_post.0", "resid_mid.1"], detach=False) as found:
        model(input_ids()).logits.sum().backward(inputs=[found["resid_post.0"], found["resid_mid.1"]])
    assert found["resid_post.0"].grad.abs().sum() > 0 and found["resid_mid.1"].grad.abs().sum() > 0


def test_a_cast_activation_still_lies_on_the_way_to_the_logits():
    model = fresh("llama").to(torch.bfloat16)
    with capture(model, ["resid_mid.0", "resid_post.0"], detach=False, dtype=torch.float32) as found:
        logits = model(input_ids()).logits
        gradients = torch.autograd.grad(logits.sum(), [found["resid_mid.0"], found["resid_post.0"]])
    assert all(gradient.dtype == torch.float32 and gradient.abs().sum() > 0 for gradient in gradients)


def test_differentiable_reading_changes_nothing_in_what_the_model_computes(model):
    plain = model(input_ids()).logits
    with capture(model, list(available_hook_points(model)), detach=False):
        assert torch.equal(model(input_ids()).logits, plain)


def test_a_differentiable_run_that_stops_can_be_differentiated(model):
    with capture(model, "resid_post.0", detach=False) as found:
        x = found.run(input_ids=input_ids())["resid_post.0"]
    (gradient,) = torch.autograd.grad(x.sum(), model.transformer.wte.weight)
    assert gradient.abs().sum() > 0


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")
def test_capturing_works_under_gradient_checkpointing():
    model = fresh("llama").train()
    with capture(model, "resid_post.0", detach=False) as found:
        loss = model(input_ids()).logits.square().mean()
        (plain,) = torch.autograd.grad(loss, found["resid_post.0"])
    model.gradient_checkpointing_enable({"use_reentrant": False})
    with capture(model, "resid_post.0", detach=False) as found:
        loss = model(input_ids()).logits.square().mean()
        (checkpointed,) = torch.autograd.grad(loss, found["resid_post.0"])
    torch.testing.assert_close(checkpointed, plain)


# Generation, inference mode, offloading


def test_within_generate_the_last_forward_pass_is_kept(model):
    with capture(model, "resid_post.*") as found:
        tokens = model.generate(input_ids(), max_new_tokens=3, min_new_tokens=3, do_sample=False, pad_token_id=0)
    assert found["resid_post.1"].shape == (2, 1, 16)
    with capture(model, "resid_post.1") as whole:
        whole.run(input_ids=tokens[:, :-1])
    torch.testing.assert_close(found["resid_post.1"][:, 0], whole["resid_post.1"][:, -1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("detach", [True, False])
def test_reading_works_under_inference_mode(model, detach):
    names = list(available_hook_points(model))
    with torch.inference_mode(), capture(model, names, detach=detach) as found:
        found.run(input_ids=input_ids())
    with capture(model, names) as plain:
        plain.run(input_ids=input_ids())
    assert all(torch.equal(found[name], plain[name]) for name in names)


def test_offloaded_weights_are_put_back_because_the_model_runs_to_its_end():
    model = fresh("llama")
    with capture(model, ["resid_mid.0", "resid_post.0"]) as plain:
        plain.run(input_ids=input_ids())
    model = accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    later, remove = calls_of(model, "model.layers.1")
    with capture(model, ["resid_mid.0", "resid_post.0"]) as found:
        found.run(input_ids=input_ids())
    remove()
    assert torch.equal(found["resid_post.0"], plain["resid_post.0"])
    assert torch.equal(found["resid_mid.0"], plain["resid_mid.0"])
    assert len(later) == 1 and found.output is None
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_weights_that_are_only_spread_over_devices_do_not_keep_the_model_from_stopping():
    model = fresh("llama")
    attach_align_device_hook(model, execution_device=torch.device("cpu"))
    with capture(model, "resid_post.0") as found:
        later, remove = calls_of(model, "model.layers.1")
        found.run(input_ids=input_ids())
    remove()
    assert not later and "resid_post.0" in found


# Leaving nothing behind


def test_the_hooks_are_gone_after_the_context(model):
    before = count_hooks(model)
    with capture(model, list(available_hook_points(model))) as found:
        assert count_hooks(model) > before
        found.run(input_ids=input_ids())
    assert count_hooks(model) == before


def test_the_hooks_are_gone_after_an_exception_in_the_model_or_in_the_body(model):
    before = count_hooks(model)
    with pytest.raises(IndexError), capture(model, "resid_post.*") as found:
        found.run(input_ids=torch.tensor([[10_000]]))
    assert count_hooks(model) == before
    with pytest.raises(KeyboardInterrupt), capture(model, "resid_post.*"):
        raise KeyboardInterrupt
    assert count_hooks(model) == before


def test_after_a_failed_run_a_plain_call_is_not_stopped(model):
    with capture(model, "resid_post.0") as found:
        with pytest.raises(IndexError):
            found.run(input_ids=torch.tensor([[10_000]]))
        assert model(input_ids()).logits.shape == (2, 5, 64)


def test_after_an_early_stop_the_model_still_reports_its_hidden_states(model):
    with capture(model, "resid_post.0") as found:
        found.run(input_ids=input_ids(), output_hidden_states=True)
    with torch.no_grad(), recorded(model, ["transformer.h.0.output"]) as seen:
        hidden_states = model(input_ids(), output_hidden_states=True).hidden_states
    assert len(hidden_states) == 3 and torch.equal(hidden_states[1], seen["transformer.h.0.output"])


def test_repr_names_the_places_with_the_shapes_seen_there(model):
    with capture(model, ["resid_post.0", "resid_post.1"]) as run:
        assert repr(run) == "Capture(resid_post.0: –, resid_post.1: –)"
        run.run(input_ids=torch.arange(6).view(2, 3))
    width = model.config.hidden_size
    assert repr(run) == f"Capture(resid_post.0: (2, 3, {width}), resid_post.1: (2, 3, {width}))"
