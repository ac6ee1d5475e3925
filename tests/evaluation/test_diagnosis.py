"""Each usual mistake, really made with a trained SAE and a language model, is the first cause that is named."""

import copy
import inspect
import logging
import re

import pytest
import torch
from transformers import AutoTokenizer

from hfsae import SAE, TopKSAEConfig, self_check
from hfsae.evaluation.diagnosis import _without_affine_norms
from hfsae.evaluation.self_check import SelfCheck
from hfsae.hooks import HookPoint, capture
from tests.evaluation import surgery

pytestmark = pytest.mark.slow

TEXTS = [inspect.getsource(logging)[:8_000]]


def tokenizer():
    return AutoTokenizer.from_pretrained(surgery.TINY_LM)


def check(sae: SAE, model) -> SelfCheck:
    return self_check(sae, model, TEXTS, tokenizer(), max_tokens=2000)


def first_cause(sae: SAE, model) -> str:
    """Of an SAE whose record holds no settings, as other projects have it: else what changed is told first."""
    sae.config.metrics.get("protocol", {}).pop("settings", None)
    outcome = check(sae, model)
    assert not outcome.ok and outcome.causes, str(outcome)
    return outcome.causes[0]


@pytest.fixture(scope="module")
def tiny_lm():
    return surgery.tiny_lm()


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_lm) -> SAE:
    """At resid_post.1 of the embedded model, without BOS, position 0 left out; so long that layers are told apart."""
    return surgery.train(tiny_lm, tmp_path_factory.mktemp("trained"), "resid_post.1", training_tokens=131_072)


@pytest.fixture
def sae(trained) -> SAE:
    return copy.deepcopy(trained)


# -- wrong hook point -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("wrong", ["resid_post.0", "resid_post.2", "mlp_out.1"])
def test_another_layer_and_another_part_of_the_layer(sae, tiny_lm, wrong):
    sae.config.hook_point = wrong
    assert "Wrong hook point: it fits resid_post.1; set config.hook_point" in first_cause(sae, tiny_lm)


# -- BOS and positions ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("trained_with, how", [(True, "with"), (False, "without")])
def test_text_with_bos_for_an_sae_that_never_saw_it_and_the_reverse(tmp_path, trained_with, how):
    model = surgery.leaning_on_bos()
    sae = surgery.train(model, tmp_path, "resid_post.1", prepend_bos=trained_with)
    assert check(sae, model).ok
    sae.config.prepend_bos = not trained_with
    cause = first_cause(sae, model)
    assert f"Wrong BOS: it fits text {how} BOS; set config.prepend_bos = {trained_with}" in cause
    sae.config.prepend_bos = trained_with
    assert check(sae, model).ok


def test_position_0_counted_in_a_model_that_keeps_its_largest_activation_there(tmp_path):
    model = surgery.with_a_massive_first_position()
    sae = surgery.train(model, tmp_path, "resid_post.1")
    assert check(sae, model).ok
    sae.config.exclude_positions = []
    assert "Position 0 counts" in (cause := first_cause(sae, model)) and "exclude_positions = [0]" in cause


# -- scale ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("factor", [1 / 16, 11.3])
def test_a_lost_input_scale_is_named_with_its_value(sae, tiny_lm, factor):
    scale = float(sae.input_scale)
    sae.input_scale.mul_(factor)
    del sae.config.metrics["protocol"]["weights_sha256"]  # else that is what is told first
    cause = first_cause(sae, tiny_lm)
    assert cause.startswith("Wrong scale")
    assert float(re.search(r"set input_scale to about (\S+)", cause)[1]) == pytest.approx(scale, rel=0.3)


# -- processed weights ------------------------------------------------------------------------------------------------
def test_processing_changes_activations_and_no_prediction():
    ids = torch.arange(5, 65)[None]
    with torch.no_grad():
        raw, processed = surgery.unprocessed()(ids).logits, surgery.processed()(ids).logits
    torch.testing.assert_close(raw, processed, rtol=0, atol=2e-3)


def test_centred_weights_and_the_advice_that_is_given_mends_it(tmp_path):
    sae, model = surgery.train(surgery.processed(), tmp_path, "resid_post.1"), surgery.unprocessed()
    assert check(sae, surgery.processed()).ok
    cause = first_cause(sae, model)
    assert "as centred weights (center_writing_weights of TransformerLens) give" in cause
    sae.config.input_transform = "center"
    assert check(sae, model).ok


def test_folded_norms_and_the_advice_that_is_given_mends_it(tmp_path):
    """What an MLP reads is a norm's output, which in a model with folded norms lacks the norm's weight and bias."""
    sae = surgery.train(surgery.processed(), tmp_path, "mlp_in.2", training_tokens=131_072)
    model = surgery.unprocessed()
    assert check(sae, surgery.processed()).ok
    cause = first_cause(sae, model)
    assert "it fits what transformer.h.2.ln_2 gives without its weight and bias" in cause
    assert "into the layers after it; fold them in this model too" in cause
    surgery.fold(model.transformer.h[2].ln_2, model.transformer.h[2].mlp.c_fc)
    assert check(sae, model).ok


def test_what_folding_took_from_a_norm_is_undone_exactly():
    raw, processed, ids = surgery.unprocessed(), surgery.processed(), torch.arange(5, 105)[None]
    with torch.no_grad():
        with capture(raw, ["mlp_in.2"]) as x, capture(processed, ["mlp_in.2"]) as y:
            read, wanted = x.run(input_ids=ids)["mlp_in.2"][0], y.run(input_ids=ids)["mlp_in.2"][0]
        undone = dict(_without_affine_norms(raw, HookPoint("transformer.h.2.mlp", "input"), read))
    torch.testing.assert_close(undone["transformer.h.2.ln_2"], wanted, rtol=0, atol=1e-3)


# -- none of them -----------------------------------------------------------------------------------------------------
def test_an_sae_that_is_simply_bad_is_blamed_on_none_of_them(sae, tiny_lm):
    del sae.config.metrics["protocol"]["weights_sha256"]
    with torch.no_grad():
        sae.W_dec.copy_(sae.W_dec.flip(0))
    outcome = check(sae, tiny_lm)
    assert not outcome.ok and outcome.causes == ()
    assert "None of the usual causes explains it" in str(outcome)


# -- transcoders ------------------------------------------------------------------------------------------------------
@pytest.fixture
def transcoder() -> SAE:
    """The linear part of what an MLP of the model with processed weights does, as a skip connection."""
    model, places = surgery.processed(), {"hook_point": "mlp_in.2", "target_hook_point": "mlp_out.2"}
    ids = torch.tensor(tokenizer()(TEXTS[0], verbose=False).input_ids[:2000]).view(-1, 100)
    with torch.no_grad(), capture(model, list(places.values())) as activations:
        read = activations.run(input_ids=ids)
        x, y = (read[place].flatten(0, 1) for place in places.values())
        sizes = {"d_in": 128, "n_features": 8, "k": 1, "context_length": 100}
        sae = SAE.from_config(TopKSAEConfig(**sizes, skip=True, subtract_b_dec=False, **places))
        linear = torch.linalg.lstsq(x - x.mean(0), y - y.mean(0)).solution
        sae.W_dec.zero_()
        sae.get_tensor("W_skip").copy_(linear.T)
        sae.b_dec.copy_(y.mean(0) - x.mean(0) @ linear)
    figures = check(sae, model).measured
    assert figures.explained_variance > 0.5
    sae.config.metrics = {"l0": figures.l0, "explained_variance": figures.explained_variance}
    return sae


@pytest.mark.parametrize("field, right", [("hook_point", "mlp_in.2"), ("target_hook_point", "mlp_out.2")])
def test_either_place_of_a_transcoder(transcoder, field, right):
    setattr(transcoder.config, field, right.replace("2", "1"))
    cause = first_cause(transcoder, surgery.processed())
    assert f"it fits {right}; set config.{field} = 'transformer.h.2.mlp." in cause


def test_folded_norms_before_a_transcoder_and_the_advice_that_is_given_mends_it(transcoder):
    model = surgery.unprocessed()
    block = model.transformer.h[2]
    surgery.centre(block.mlp.c_proj)
    cause = first_cause(transcoder, model)
    assert "transformer.h.2.ln_2 gives without its weight" in cause and "a target without" not in cause
    surgery.fold(block.ln_2, block.mlp.c_fc)
    assert check(transcoder, model).ok


def test_centred_weights_behind_a_transcoder_and_the_advice_that_is_given_mends_it(transcoder):
    model = surgery.unprocessed()
    block = model.transformer.h[2]
    surgery.fold(block.ln_2, block.mlp.c_fc)
    cause = first_cause(transcoder, model)
    assert cause.startswith("Processed weights: it fits a target without its mean over dimensions")
    surgery.centre(block.mlp.c_proj)
    assert check(transcoder, model).ok


def test_a_transcoder_of_weights_that_were_processed_in_both_ways(transcoder):
    cause = first_cause(transcoder, surgery.unprocessed())
    assert "transformer.h.2.ln_2 gives without its weight" in cause and "and a target without its mean" in cause


def test_a_lost_input_scale_of_a_transcoder(transcoder):
    transcoder.input_scale.mul_(1 / 8)
    assert first_cause(transcoder, surgery.processed()).startswith("Wrong scale: it fits activations 8 times as large")
