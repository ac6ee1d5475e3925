"""How processes share SAEs: what each placement says of who has what, and what a step exchanges."""

import pytest
import torch
from accelerate import Accelerator

from hfsae import SAE, GatedSAEConfig, TopKSAEConfig
from hfsae.parallel.placement import Replicate, Shard, Spread, placement_of, planned_placement

SIZES = {"wide": 300, "a": 100, "b": 100}
NAMES = ("replicate", "spread", "shard")


def sae():
    return SAE.from_config(TopKSAEConfig(d_in=4, n_features=8, k=2))


@pytest.mark.parametrize(("name", "kind"), list(zip(NAMES, (Replicate, Spread, Shard), strict=True)))
def test_every_value_of_the_argument_has_a_class(name, kind):
    assert type(placement_of(name, Accelerator(cpu=True))) is kind and planned_placement(name, 4).processes == 4


def test_who_trains_and_who_writes_which_sae():
    for name in ("replicate", "shard"):
        placement = planned_placement(name, 2)
        owners = placement.owners(SIZES)
        assert set(owners.values()) == {0} and placement.trained_by(1, owners) == list(SIZES)
    spread = planned_placement("spread", 2)
    owners = spread.owners(SIZES)
    assert [spread.trained_by(rank, owners) for rank in range(2)] == [["wide"], ["a", "b"]]


def test_fewer_saes_than_processes_are_refused_where_each_has_its_own():
    planned_placement("replicate", 3).refuse_too_few(1)
    with pytest.raises(ValueError, match="there are 2 for 3 processes"):
        planned_placement("spread", 3).refuse_too_few(2)


def test_an_sae_that_cannot_be_cut_is_refused_where_it_would_be():
    gated = SAE.from_config(GatedSAEConfig(d_in=4, n_features=7))
    planned_placement("replicate", 2).refuse_unfit(gated)
    with pytest.raises(ValueError, match="sae_placement='shard'"):
        planned_placement("shard", 2).refuse_unfit(gated)


@pytest.mark.parametrize("name", NAMES)
def test_one_process_exchanges_nothing_and_steps_the_sae_itself(name):
    placement, one = placement_of(name, Accelerator(cpu=True)), sae()
    rows = {"here": torch.arange(8.0).view(2, 4)}
    assert placement.step_module(one) is one and torch.equal(
        placement.step_rows(rows, torch.float32)["here"], rows["here"]
    )
    assert placement.bytes_exchanged(one, tokens=8, active=2) == 0 and placement.averaged == 1
    assert placement.share_of_text == (0, 1) and placement.gather({"x": 1}, ["x"]) == {"x": 1}
    assert placement.reduce(torch.ones(()), "sum") == 1 and placement.devices(SIZES) == dict.fromkeys(
        SIZES, one.device
    )


def test_what_a_step_of_several_processes_exchanges():
    """An all-reduce of m bytes sends 2 (P - 1) / P of them."""
    one, numbers = sae(), sum(parameter.numel() for parameter in sae().parameters())
    assert planned_placement("replicate", 4).bytes_exchanged(one, tokens=8, active=2) == 1.5 * 4 * numbers
    assert planned_placement("spread", 4).bytes_exchanged(one, tokens=8, active=2) == 0
    values, outputs = 4 * 8 * 2 * 3, 1.5 * 4 * 8 * 4
    assert planned_placement("shard", 4).bytes_exchanged(one, tokens=8, active=2) == values + outputs
    many = 1.5 * 4 * 8 * 4 * 256  # above 1,024 candidates a token, histograms
    assert planned_placement("shard", 4).bytes_exchanged(one, tokens=8, active=500) == many + outputs


def test_rows_and_features_are_shared_out_by_one_placement_each():
    parts = {name: (planned_placement(name, 4).row_shares, planned_placement(name, 4).feature_parts) for name in NAMES}
    assert parts == {"replicate": (1, 1), "spread": (4, 1), "shard": (4, 4)}
