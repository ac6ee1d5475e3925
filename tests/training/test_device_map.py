"""One language model spread by accelerate, its weights in memory and on disk, with the SAEs beside it."""

import json

import pytest
import torch
from accelerate import dispatch_model

from tests.data.tiny import language_model
from tests.quick import mostly_slow
from tests.training.tiny import trainer

PLACES = {
    "transformer.wte": "cpu",
    "transformer.wpe": "cpu",
    "transformer.h.0": "cpu",
    "transformer.h.1": "disk",
    "transformer.h.2": "disk",
    "transformer.ln_f": "cpu",
    "lm_head": "cpu",
}


def trained(folder, model=None, **options) -> dict[str, tuple[torch.Tensor, float]]:
    inputs = {} if model is None else {"model": model}
    saes = {"inside": {"hook_point": "resid_post.0"}, "after": {"hook_point": "resid_post.1"}}
    options = {"activation_dtype": "float32", **options}  # in full precision passes are the same wherever weights lie
    output = trainer(folder, inputs={**inputs, "saes": saes}, steps=4, eval_tokens=100, **options).train()
    return {name: (sae.W_dec, output.metrics[name]["loss_recovered"]) for name, sae in output.saes.items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("whole"))


def assert_equal(found, expected):
    for name, (weights, recovered) in expected.items():
        assert torch.equal(found[name][0], weights) and found[name][1] == pytest.approx(recovered)


def test_a_model_that_was_spread_trains_and_measures_the_same_saes(whole, tmp_path):
    spread = dispatch_model(language_model(), PLACES, main_device="cpu", offload_dir=tmp_path / "offloaded")
    assert spread.transformer.h[1].mlp.c_fc.weight.device.type == "meta"  # it lies on the disk
    assert_equal(trained(tmp_path / "run", spread), whole)


@pytest.mark.parametrize("device_map", mostly_slow(["auto", json.dumps(dict.fromkeys(PLACES, "cpu"))], quick=["auto"]))
def test_the_trainer_lets_the_model_lie_where_it_was_told_to(whole, tmp_path, device_map):
    language_model().save_pretrained(tmp_path / "lm")
    assert_equal(trained(tmp_path / "run", str(tmp_path / "lm"), model_device_map=device_map), whole)


def test_a_device_map_that_is_none_is_refused(tmp_path):
    language_model().save_pretrained(tmp_path / "lm")
    with pytest.raises(ValueError, match="model_device_map must be a word"):
        trained(tmp_path / "run", str(tmp_path / "lm"), model_device_map="{cpu")
