"""Models with quantised matrices are told by what they hold, and no gradient is lost in them without a word."""

from copy import deepcopy

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, QuantoConfig

from hfsae import TopKSAE, TopKSAEConfig, feature_effects, logit_effects, steer_model, untrained_tokens
from hfsae.hooks.quantised import (
    gradients_reach_through,
    holds_quantised_weights,
    plain_weight,
    quantised_in_place,
)
from tests.data.tiny import pythia_like
from tests.hooks.families import build, input_ids

WARNINGS = "ignore:.*(deprecated|quantize|autograd kernel).*"


def dynamic(model: nn.Module, which=None) -> nn.Module:
    """The model with layers that torch quantises: their weights are no parameters."""
    return torch.ao.quantization.quantize_dynamic(model, which or {nn.Linear}, dtype=torch.qint8)


def quanto(model: nn.Module, **options) -> nn.Module:
    """The model with layers of optimum-quanto, which hold tensors of another class."""
    tools = pytest.importorskip("optimum.quanto")
    model = deepcopy(model)
    tools.quantize(model, weights=tools.qint8, **options)
    tools.freeze(model)
    return model


def _saved(model, folder):
    model.save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings(WARNINGS)
def test_quantised_models_are_told_by_what_they_hold(tmp_path):
    pytest.importorskip("optimum.quanto")
    plain = build("llama")
    named = AutoModelForCausalLM.from_pretrained(
        _saved(plain, tmp_path), quantization_config=QuantoConfig(weights="int8")
    )
    told = [(holds_quantised_weights(one), quantised_in_place(one)) for one in (plain, deepcopy(plain).half(), named)]
    assert told == [(False, False), (False, False), (True, False)]
    for one in (dynamic(build("llama")), quanto(build("llama"))):
        assert (holds_quantised_weights(one), quantised_in_place(one)) == (True, True)


@pytest.mark.filterwarnings(WARNINGS)
@pytest.mark.parametrize("quantised", [dynamic, quanto])
def test_a_quantised_matrix_is_read_as_what_it_multiplies_with(quantised):
    head = quantised(nn.Sequential(nn.Linear(8, 40, bias=False)))
    with torch.no_grad():
        expected = head(torch.eye(8)).T
    torch.testing.assert_close(plain_weight(head[0]), expected, rtol=0, atol=1e-2 * float(expected.abs().max()))


@pytest.mark.filterwarnings(WARNINGS)
@pytest.mark.parametrize("quantised", [dynamic, quanto])
def test_the_unembedding_may_be_quantised_too(quantised):
    model, sae = (
        deepcopy(build("llama")),
        TopKSAE(TopKSAEConfig(d_in=16, n_features=64, k=4, hook_point="resid_post.0")),
    )
    with torch.no_grad():
        model.lm_head.weight[10:20] = model.lm_head.weight[10]
    expected = logit_effects(sae, model, [3], k=1)
    model = quantised(model)
    assert untrained_tokens(model).tolist() == list(range(10, 20))
    assert logit_effects(sae, model, [3], k=1).promoted.tolist() == expected.promoted.tolist()


@pytest.mark.filterwarnings(WARNINGS)
def test_a_layer_that_lets_no_gradients_through_is_named():
    model, ids = dynamic(build("llama"), {"model.layers.1.mlp.up_proj"}), input_ids(1, 4)
    with gradients_reach_through(model), torch.no_grad():
        model(ids)
    with gradients_reach_through(model), pytest.raises(ValueError, match=r"layers\.1\.mlp\.up_proj.*no gradients"):
        model(ids)
    model(ids)  # no hook is left


def test_a_quantised_layer_that_lets_gradients_through_is_used():
    model = quanto(build("llama"))
    embedded = model.get_input_embeddings()(input_ids(1, 4)).detach().requires_grad_()
    with gradients_reach_through(model):
        model(inputs_embeds=embedded).logits.sum().backward()
    assert embedded.grad.abs().min() > 0


@pytest.mark.filterwarnings(WARNINGS)
def test_effects_are_not_ranked_by_what_is_left_of_a_gradient():
    sae = TopKSAE(TopKSAEConfig(d_in=16, n_features=64, k=4, hook_point="resid_post.0"))
    mlps = {f"model.layers.1.mlp.{name}_proj" for name in ("gate", "up", "down")}
    model = dynamic(build("llama"), mlps)
    with pytest.raises(ValueError, match="lets no gradients through"):
        feature_effects(sae, model, pythia_like(), "w1 w2 w3")


@pytest.mark.filterwarnings(WARNINGS)
def test_effects_need_no_gradients_of_layers_before_the_sae():
    """Attributions are held against what ablating a feature does, where it is small."""
    sae = TopKSAE(TopKSAEConfig(d_in=16, n_features=64, k=4, hook_point="resid_post.0"))
    with torch.no_grad():
        sae.W_dec.mul_(1e-3)
    model = dynamic(build("llama"), {f"model.layers.0.mlp.{name}_proj" for name in ("gate", "up", "down")})
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    found = feature_effects(sae, model, pythia_like(), "w1 w2 w3", n_exact=3).features[:3]
    for effect in found:
        assert effect.attribution == pytest.approx(effect.loss_change, rel=0.05, abs=2e-7) and effect.attribution
    assert [name for name, weight in model.named_parameters() if weight.requires_grad] == trained


@pytest.mark.filterwarnings(WARNINGS)
def test_a_steered_model_says_all_that_was_done_to_its_weights(tmp_path):
    sae = TopKSAE(TopKSAEConfig(d_in=16, n_features=64, k=4, hook_point="resid_post.0"))
    with pytest.raises(ValueError, match="quantised after it was loaded"):
        steer_model(quanto(build("llama")), sae, {3: 1.0}, tmp_path / "steered")
    assert not (tmp_path / "steered").exists()


def test_an_offloaded_matrix_is_read_from_where_it_lies(tmp_path):
    model = build("llama")
    places = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": "cpu", "lm_head": "disk"}
    places |= {f"model.layers.{layer}": "cpu" for layer in range(model.config.num_hidden_layers)}
    told = {"device_map": places, "offload_folder": str(tmp_path / "offloaded")}
    loaded = AutoModelForCausalLM.from_pretrained(_saved(model, tmp_path), **told)
    assert loaded.lm_head.weight.is_meta
    assert torch.equal(plain_weight(loaded.lm_head), model.lm_head.weight) and loaded.lm_head.weight.is_meta
    assert untrained_tokens(loaded).tolist() == untrained_tokens(model).tolist()
