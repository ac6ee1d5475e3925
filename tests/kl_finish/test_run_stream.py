"""Runs with a KL finish: what their steps read, on one process and on two, whole and in two parts."""

import json

import pytest
import torch

from hfsae import SAE
from tests.data.tiny import language_model
from tests.training.test_processes import launch
from tests.training.test_resume import few_documents, run_whole_and_in_two, streaming, two_saes
from tests.training.tiny import ARCHITECTURES, BATCH, contents, stop_at, trainer
from tests.training.two_processes import FINISHED, STEPS, train_with_kl

# Of the 13 steps of a run that is stopped after 12, the last 6 are of the finish: it begins with step 7.
FIRST = 7
HALF = {"kl_tokens": 6 * BATCH}
REVIVING = {"dead_feature_window": 40, "resample_every": 2 * BATCH, "shuffle_window_tokens": 3 * BATCH}


@pytest.mark.parametrize("stop", [4, FIRST, 9], ids=["before", "between", "inside"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_run_goes_on_bit_by_bit(tmp_path, architecture, stop):
    whole, broken = run_whole_and_in_two(tmp_path, stop, architecture=architecture, **HALF, **REVIVING)
    assert whole == broken and len(whole) == 5
    place = json.loads(whole["stream-rank-0.json"])
    assert set(place) == {"sequences"}


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_accumulation_steps": 2, "kl_tokens": 12 * BATCH},
        {"hook_point": "mlp_in.*", "target_hook_point": "mlp_out.*"},
        {"mix_documents": False},
        {"bf16": True},
    ],
    ids=["accumulated", "a set", "padded", "bf16"],
)
def test_a_run_goes_on_bit_by_bit_whatever_it_was_told(tmp_path, options):
    whole, broken = run_whole_and_in_two(tmp_path, 9, **{**HALF, **options})
    assert whole == broken


@pytest.mark.parametrize("inputs", [streaming, few_documents, two_saes])
def test_a_run_goes_on_bit_by_bit_whatever_it_reads(tmp_path, inputs):
    whole, broken = run_whole_and_in_two(tmp_path, 9, inputs, **HALF)
    assert whole == broken


def test_a_run_that_is_all_finish_starts_from_activations_too(tmp_path):
    whole, broken = run_whole_and_in_two(tmp_path, 3, kl_tokens=1)
    assert whole == broken


def test_up_to_its_finish_a_run_is_the_same_as_without(tmp_path):
    """But for a last window that ends with the finish: here the windows end there too."""
    options = {"steps": 12, "shuffle_window_tokens": 2 * BATCH, "save_steps": 6}
    for name, kl_tokens in (("with", 0.5), ("without", 0)):
        trainer(tmp_path / name, kl_tokens=kl_tokens, callbacks=[stop_at(8)], **options).train()
    saved = [contents(tmp_path / name / "checkpoint-6") for name in ("with", "without")]
    assert saved[0] == saved[1]
    after = [contents(tmp_path / name / "checkpoint-8") for name in ("with", "without")]
    assert after[0]["saes/model.safetensors"] != after[1]["saes/model.safetensors"]


def test_the_finish_trains_on_as_many_tokens_and_logs_what_it_looks_at(tmp_path):
    run = trainer(tmp_path, kl_tokens=0.5, logging_steps=6)
    output = run.train()
    before, after = run.state.log_history
    assert "kl_nats" not in before and after["kl_nats"] > 0
    assert 0 < after["kl"] < after["mse"]  # it pulls as hard, and is smaller than what it pulls at
    assert output.saes[""].config.training["n_tokens"] == 12 * BATCH
    assert output.saes[""].config.training["arguments"]["kl_tokens"] == 0.5


def test_saes_of_a_sweep_end_as_each_would_alone(tmp_path):
    saes = {"a": {"n_features": 32}, "b": {"architecture": "gated", "hook_point": "resid_post.0"}}
    options = {"kl_tokens": 0.5, "activation_dtype": "float32"}

    def weights(name, chosen):
        inputs = {"model": language_model(), "saes": chosen}
        return trainer(tmp_path / name, inputs=inputs, **options).train().saes

    together = weights("both", saes)
    for name, own in saes.items():
        alone = weights(name, {name: own})[name].state_dict()
        for key, tensor in together[name].state_dict().items():
            assert torch.equal(tensor, alone[key]), (name, key)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return launch("forked", tmp_path_factory.mktemp("kl"), *FINISHED)


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(trained, tmp_path):
    alone = train_with_kl(tmp_path, processes=1).sae.state_dict()
    together = SAE.from_pretrained(trained / "kl" / f"checkpoint-{STEPS}" / "saes").state_dict()
    for name, tensor in alone.items():
        assert torch.allclose(together[name], tensor, rtol=0, atol=1e-5), name


@pytest.mark.slow
def test_a_run_of_two_processes_goes_on_bit_by_bit(trained):
    whole, broken = (contents(trained / "kl-two-parts" / name / "checkpoint-12") for name in ("whole", "broken"))
    assert whole == broken and len(whole) == 6
