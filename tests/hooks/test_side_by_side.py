"""Two language models as one: their places, what passes there, and where their runs stop."""

from functools import cache

import pytest
import torch
from transformers import GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from hfsae.hooks import (
    HookPointError,
    SideBySide,
    capture,
    portable_name,
    resolve_hook_point,
    resolve_hook_points,
    splice,
    width,
)
from hfsae.hooks.limits import context_length_of
from tests.data.tiny import WORDS, language_model
from tests.hooks.witness import recorded

IDS = torch.arange(1, 13).view(2, 6)


@cache
def gpt2() -> GPT2LMHeadModel:
    return language_model()


@cache
def llama() -> LlamaForCausalLM:
    torch.manual_seed(1)
    sizes = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=WORDS + 2, max_position_embeddings=32, **sizes, bos_token_id=0, eos_token_id=1)
    return LlamaForCausalLM(config).eval()


def both() -> SideBySide:
    return SideBySide({"base": gpt2(), "tuned": llama()})


def test_names_widths_and_portable_names_are_those_of_each_with_its_own_name_in_front():
    models = both()
    assert str(resolve_hook_point(models, "base.resid_post.1")) == "base.transformer.h.1.output"
    assert str(resolve_hook_point(models, "tuned.resid_post.-1")) == "tuned.model.layers.1.output"
    found = resolve_hook_points(models, ["base.resid_post.*", "tuned.mlp_out.0-1"])
    assert [str(point).partition(".")[0] for point in found] == ["base"] * 3 + ["tuned"] * 2
    assert (width(models, "base.resid_post.1"), width(models, "tuned.mlp_act.0")) == (16, 32)
    assert portable_name(models, "tuned.model.layers.1.output") == "tuned.resid_post.1"


def test_what_is_captured_is_what_each_model_computes_alone():
    places = {"base": "transformer.h.1.output", "tuned": "model.layers.0.output"}
    with capture(both(), [f"{part}.{place}" for part, place in places.items()]) as activations:
        activations.run(input_ids=IDS, attention_mask=torch.ones_like(IDS))
    for part, model in (("base", gpt2()), ("tuned", llama())):
        with recorded(model, [places[part]]) as seen, torch.no_grad():
            model(IDS)
        assert torch.equal(activations[f"{part}.{places[part]}"], seen[places[part]])


def test_each_model_stops_right_after_its_own_last_place():
    passed = []
    watched = {"gpt2 1": gpt2().transformer.h[1], "gpt2 2": gpt2().transformer.h[2], "head": gpt2().lm_head}
    watched |= {"llama 0": llama().model.layers[0], "llama 1": llama().model.layers[1]}
    with capture(both(), ["base.resid_post.0", "base.resid_post.1", "tuned.resid_post.0"]) as activations:
        hooks = [
            module.register_forward_pre_hook(lambda *_, name=name: passed.append(name))
            for name, module in watched.items()
        ]
        for _ in range(2):
            activations.run(input_ids=IDS)
        for hook in hooks:
            hook.remove()
    assert passed == ["gpt2 1", "llama 0"] * 2
    assert len(activations) == 3


def test_a_call_runs_both_to_the_end_and_a_splice_changes_its_own_model_alone():
    models = both()
    with torch.no_grad(), capture(models, ["base.resid_post.2", "tuned.resid_post.1"]) as activations:
        with splice(models, "tuned.resid_post.0", torch.zeros_like):
            logits = models(input_ids=IDS).logits
        zeroed = activations["tuned.resid_post.1"]
        models(input_ids=IDS)
    assert torch.equal(logits, gpt2()(IDS).logits)
    assert not torch.equal(zeroed, activations["tuned.resid_post.1"])


def test_it_reads_what_both_can_read():
    assert context_length_of(both()) == 32
    assert both().config.vocab_size == WORDS + 2
    assert gpt2().config.vocab_size == WORDS + 4 and gpt2().config.n_positions == 64


def test_names_that_do_not_say_which_model_or_that_one_lacks_are_refused():
    with pytest.raises(HookPointError, match=r"base\.resid_post\.1, tuned\.resid_post\.1"):
        resolve_hook_point(both(), "resid_post.1")
    with pytest.raises(HookPointError, match="of the model 'tuned'.*2 layers"):
        resolve_hook_point(both(), "tuned.resid_post.2")


@pytest.mark.parametrize("models", [{"base": 1}, {"base": 1, "a.b": 2}, {"base": 1, "config": 2}])
def test_one_model_alone_and_impossible_names_are_refused(models):
    given = {name: gpt2() for name in models}
    with pytest.raises(ValueError, match="from two on|cannot be called"):
        SideBySide(given)
