"""Training on two GPUs, against the same on one device. Skipped where there are fewer."""

import json

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from hfsae import SAE
from tests.data.tiny import language_model
from tests.training.test_device_map import PLACES, trained
from tests.training.test_processes import launch, of_both
from tests.training.tiny import make_sae, trainer
from tests.training.two_processes import SEVERAL, STEPS, train_alike, train_several_alike, train_wide

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
    pytest.mark.usefixtures("accelerate_starts_anew"),
]

ALIKE = ("topk", "standard")
TOLERANCE = 1e-4
"""Of weights after 20 steps on a GPU and on a CPU."""


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """A folder in which two processes, each with a GPU, have trained some cases (NCCL)."""
    cases = (*(f"alike-{name}" for name in ALIKE), "text-batch_topk", "resampled", "several-spread", "wide-shard")
    return launch("torchrun", tmp_path_factory.mktemp("nccl"), *cases, on_gpus=True)


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name, tensor in expected.items():
        assert torch.allclose(found[name].cpu(), tensor.cpu(), rtol=0, atol=TOLERANCE), name


@pytest.mark.parametrize("architecture", ALIKE)
def test_two_gpus_take_the_steps_of_one_cpu(together, tmp_path, architecture):
    alone = train_alike(tmp_path, make_sae(architecture), processes=1).sae
    found = SAE.from_pretrained(together / f"alike-{architecture}" / f"checkpoint-{STEPS}" / "saes")
    assert_close(found.state_dict(), alone.state_dict())


@pytest.mark.parametrize("case", ["text-batch_topk", "resampled"])
def test_two_gpus_hold_the_same_weights_at_the_end_of_a_run_on_text(together, case):
    first, second = of_both(together, case)
    assert first == second and first["completed"]
    assert "2 × NVIDIA" in SAE.from_pretrained(together / case).config.training["hardware"]


def test_saes_spread_over_two_processes_with_a_gpu_each(together, tmp_path):
    train_several_alike(tmp_path, processes=1)
    for name in SEVERAL:
        alone, found = (
            SAE.from_pretrained(folder / f"checkpoint-{STEPS}" / "saes" / name)
            for folder in (tmp_path, together / "several-spread")
        )
        assert_close(found.state_dict(), alone.state_dict())


def test_an_sae_cut_over_two_gpus(together, tmp_path):
    train_wide(tmp_path, processes=1)
    for file in ("model.safetensors", "state.safetensors"):
        whole, cut = (
            load_file(f / f"checkpoint-{STEPS}" / "saes" / file) for f in (tmp_path, together / "wide-shard")
        )
        assert_close(cut, whole)


def test_one_process_spreads_its_saes_over_its_gpus(tmp_path):
    saes = {"a": {"k": 2}, "b": {"architecture": "gated"}, "c": {"n_features": 96}}
    ends = []
    for placement in ("replicate", "spread"):
        run = trainer(tmp_path / placement, inputs={"saes": saes}, sae_placement=placement, steps=8, use_cpu=False)
        ends.append(run.train().saes)
        devices = {learner._device.index for learner in run._run.learners.values()}
        assert devices == ({0, 1} if placement == "spread" else {0})
    for name in saes:
        assert_close(ends[1][name].state_dict(), ends[0][name].state_dict())


def test_a_language_model_over_two_gpus_beside_saes_over_both(tmp_path):
    expected = trained(tmp_path / "cpu")
    AcceleratorState._reset_state(reset_partial_state=True)
    language_model().save_pretrained(tmp_path / "lm")
    map_ = json.dumps({name: index % 2 for index, name in enumerate(PLACES)})
    options = {"model_device_map": map_, "sae_placement": "spread", "use_cpu": False}
    found = trained(tmp_path / "gpus", str(tmp_path / "lm"), **options)
    for name, (weights, recovered) in expected.items():
        assert torch.allclose(found[name][0].cpu(), weights, rtol=0, atol=1e-2)
        assert found[name][1] == pytest.approx(recovered, abs=0.02)
