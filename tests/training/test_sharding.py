"""SAEs cut along their features; what two processes make of them is tested in `test_processes`."""

import pytest
import torch

from hfsae import SAE, BatchTopKSAEConfig, TopKSAEConfig
from hfsae.training.sharding import placed_like, refuse_unfit, whole
from tests.training.tiny import trainer


@pytest.mark.parametrize(
    "config, revival, why",
    [
        (BatchTopKSAEConfig(d_in=4, n_features=16, k=2), "auto", "not batch_topk"),
        (TopKSAEConfig(d_in=4, n_features=16, k=2, multi_topk=True), "auto", "multi_topk"),
        (TopKSAEConfig(d_in=4, n_features=16, k=2, activation="groupmax"), "auto", "groupmax"),
        (TopKSAEConfig(d_in=4, n_features=15, k=2), "auto", "15 on 2 processes"),
        (TopKSAEConfig(d_in=4, n_features=16, k=9), "auto", "k=9 candidates"),
        (TopKSAEConfig(d_in=4, n_features=16, k=2), "resample", "auxk"),
    ],
)
def test_what_cannot_be_cut_is_refused_with_the_reason(config, revival, why):
    with pytest.raises(ValueError, match=why):
        refuse_unfit(SAE.from_config(config), revival, processes=2)


def test_a_topk_sae_can_be_cut():
    refuse_unfit(SAE.from_config(TopKSAEConfig(d_in=4, n_features=16, k=8)), "auto", processes=2)


def test_the_trainer_refuses_before_the_first_step(tmp_path):
    with pytest.raises(ValueError, match="not jumprelu"):
        trainer(tmp_path, architecture="jumprelu", sae_placement="shard").train()


def test_on_one_process_it_is_the_ordinary_run(tmp_path):
    ends = [
        trainer(tmp_path / placement, sae_placement=placement, steps=3).train().sae.state_dict()
        for placement in ("replicate", "shard")
    ]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_a_tensor_that_is_not_cut_is_left_as_it_is():
    tensor = torch.arange(3.0)
    assert whole(tensor) is tensor and placed_like(tensor, torch.zeros(5)).equal(tensor)
