"""SAEs cut along their features; what two processes make of them is tested in `test_processes`."""

import pytest
import torch

from hfsae import SAE, MatryoshkaSAEConfig, StandardSAE, TopKCrossLayerTranscoderSAEConfig, TopKSAEConfig
from hfsae.autoencoder import strategies
from hfsae.parallel.sharded_sae import placed_like, refuse_unfit, rows_of_own, stored, whole
from tests.training.tiny import ARCHITECTURES, make_sae, trainer

LAYERS = {"source_names": ["a", "b"], "source_widths": [4, 4]}


@pytest.mark.parametrize(
    "config, why",
    [
        (TopKSAEConfig(d_in=4, n_features=16, k=1, activation="groupmax"), "k=1 on 2 processes"),
        (TopKSAEConfig(d_in=4, n_features=15, k=2), "15 on 2 processes"),
        (MatryoshkaSAEConfig(d_in=4, n_features=16, k=2, orthogonality=0.1), "held against each other.*orthogonality"),
        (TopKCrossLayerTranscoderSAEConfig(**LAYERS, n_features=14, k=2), "features of each layer, which 7 on 2"),
    ],
)
def test_what_cannot_be_cut_is_refused_with_the_reason(config, why):
    with pytest.raises(ValueError, match=why):
        refuse_unfit(SAE.from_config(config), processes=2)


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name != "matching_pursuit"])
def test_every_architecture_can_be_cut(architecture):
    refuse_unfit(make_sae(architecture), processes=2)


def test_an_architecture_that_says_nothing_of_it_is_refused_before_the_first_step(tmp_path, monkeypatch):
    monkeypatch.setattr(strategies, "_shardable", set())
    with pytest.raises(ValueError, match="how to cut standard"):
        trainer(tmp_path, architecture="standard", sae_placement="shard").train()


def test_a_rule_that_nobody_knows_how_to_share_is_refused(monkeypatch):
    sae = make_sae("standard")
    monkeypatch.setattr(StandardSAE, "selection", lambda self: object())
    with pytest.raises(ValueError, match="how to cut standard"):
        refuse_unfit(sae, processes=2)


def test_on_one_process_it_is_the_ordinary_run(tmp_path):
    ends = [
        trainer(tmp_path / placement, sae_placement=placement, steps=3).train().sae.state_dict()
        for placement in ("replicate", "shard")
    ]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_a_tensor_that_is_not_cut_is_left_as_it_is():
    tensor = torch.arange(3.0)
    assert whole(tensor) is tensor and stored(tensor, keep=True) is tensor and stored(tensor, keep=False) is None
    assert placed_like(tensor, torch.zeros(5)).equal(tensor)


def test_of_a_tensor_that_is_not_cut_all_rows_are_here():
    mine, place = rows_of_own(torch.zeros(5, 2), torch.tensor([4, 1]))
    assert mine.all() and place.tolist() == [4, 1]
