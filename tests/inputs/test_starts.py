"""SAEs that training starts from, before their weights are read."""

import pytest

from hfsae import SAE, JumpReLUSAEConfig, SAETrainingArguments, TopKSAEConfig
from hfsae.estimate.run_needs import estimate
from hfsae.inputs import starts
from hfsae.inputs.starts import Starts
from hfsae.sweeps.sweep import Sweep
from tests.models_on_disk import TINY_LM


@pytest.fixture
def start(tmp_path) -> str:
    """A folder with an SAE that no default of a training argument describes."""
    config = JumpReLUSAEConfig(
        d_in=128, n_features=96, sparsity="l0_quadratic", hook_point="mlp_in.1", target_hook_point="mlp_out.2"
    )
    SAE.from_config(config).save_pretrained(tmp_path / "start")
    return str(tmp_path / "start")


def test_architecture_width_and_k_are_those_of_the_start(start, tmp_path):
    told = Starts().started(SAETrainingArguments(init_from=start, learning_rate=1e-4, target_l0=5.0))
    assert (told.architecture, told.n_features, told.init_from) == ("jumprelu", 96, None)
    assert (told.learning_rate, told.target_l0) == (1e-4, 5.0)
    assert (told.hook_point, told.target_hook_point) == ("mlp_in.1", "mlp_out.2")
    assert Starts().started(SAETrainingArguments(init_from=start, hook_point="mlp_in.3")).hook_point == "mlp_in.3"
    SAE.from_config(TopKSAEConfig(d_in=8, n_features=16, k=3)).save_pretrained(tmp_path / "topk")
    assert Starts().started(SAETrainingArguments(init_from=str(tmp_path / "topk"))).k == 3
    assert Starts().started(SAETrainingArguments(init_from=str(tmp_path / "topk"), k=2)).k == 2
    assert Starts().started(SAETrainingArguments(k=2)).architecture == "topk"


@pytest.mark.parametrize("missing", ["./runs/gpt2/topk", "runs/gpt2/topk", "/runs/gpt2/topk", "~/runs/gpt2/topk"])
def test_a_folder_that_is_gone_is_named_whole_and_not_looked_for_on_the_hub(missing, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"there is no folder {missing} "):
        Starts().config(missing)


def test_an_estimate_is_of_the_sae_it_starts_from(start):
    args = SAETrainingArguments(model_name_or_path=str(TINY_LM), init_from=start)
    # W_enc and W_dec, both biases, the thresholds.
    assert estimate(args).saes[""].parameters == 2 * 128 * 96 + 96 + 128 + 96


def test_a_sweep_from_one_start_keeps_what_its_architecture_reads(start):
    content = {"init_from": start, "target_l0": [4.0, 6.0], "hook_point": "resid_post.1"}
    assert list(Sweep.of(content).saes) == ["jumprelu-l0-4", "jumprelu-l0-6"]


def test_a_sweep_reads_its_start_once(start, monkeypatch):
    """Of another project's SAE the weights are read for its config."""
    read = []
    load = starts.load_config
    monkeypatch.setattr(starts, "load_config", lambda *place, **where: read.append(place) or load(*place, **where))
    sweep = Sweep.of({"init_from": start, "target_l0": [4.0, 6.0, 8.0], "hook_point": "resid_post.1"})
    assert len(sweep.saes) == 3 and read == [(start,)]
