"""Which process trains which SAE."""

import logging

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st

from hfsae.parallel.dealing import deal, deal_devices, devices_here, own_devices, shared_out
from hfsae.parallel.exchange import from_owners, rows_of_all
from tests.training.tiny import trainer


@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=12), st.integers(1, 6))
def test_nobody_is_idle_and_nobody_has_a_whole_sae_more_than_another(sizes, processes):
    costs = {str(index): size for index, size in enumerate(sizes)}
    if len(costs) < processes:
        with pytest.raises(ValueError, match=f"{len(costs)} for {processes} processes"):
            deal(costs, processes)
        return
    owners = deal(costs, processes)
    held = [sum(costs[name] for name in costs if owners[name] == rank) for rank in range(processes)]
    assert list(owners) == list(costs) and min(held) > 0
    assert max(held) - min(held) <= max(sizes)


def test_the_log_says_who_owns_which(caplog):
    with caplog.at_level(logging.INFO, "hfsae"):
        deal({"wide": 300, "a": 100, "b": 100}, 2)
    assert "process 0 trains wide" in caplog.text and "process 1 trains a, b" in caplog.text


def test_a_process_deals_its_saes_to_its_devices(caplog):
    first, second, third = (torch.device("cuda", index) for index in range(3))
    with caplog.at_level(logging.INFO, "hfsae"):
        dealt = deal_devices({"a": 100, "wide": 300, "b": 100}, [first, second])
    assert dealt == {"a": second, "wide": first, "b": second} and "cuda 0 trains wide" in caplog.text
    assert deal_devices({"alone": 1}, [first, second, third]) == {"alone": first}
    assert deal_devices({}, [first]) == {} and devices_here(Accelerator(cpu=True)) == [torch.device("cpu")]


def test_one_process_has_everything():
    rows = {"resid_post.1": torch.arange(6.0).view(3, 2)}
    gathered = rows_of_all(rows, Accelerator(cpu=True), torch.bfloat16)
    assert gathered["resid_post.1"].equal(rows["resid_post.1"]) and gathered["resid_post.1"].dtype == torch.float32
    assert from_owners({"b": 1, "a": 2}, ["a", "b"]) == {"a": 2, "b": 1}


@pytest.mark.parametrize("devices", [1, 2])
def test_a_run_that_is_spread_over_one_process_is_the_same_run(tmp_path, monkeypatch, devices):
    monkeypatch.setattr("hfsae.parallel.placement.devices_here", lambda _: [torch.device("cpu")] * devices)
    saes = {"a": {"k": 2}, "b": {"architecture": "gated"}}
    ends = [
        trainer(tmp_path / placement, inputs={"saes": saes}, sae_placement=placement, steps=4).train().saes
        for placement in ("replicate", "spread")
    ]
    for name in saes:
        assert all(map(torch.equal, ends[0][name].parameters(), ends[1][name].parameters()))


@given(st.integers(1, 16), st.integers(1, 16))
def test_a_machines_devices_are_shared_out_and_each_process_keeps_that_of_accelerate(devices, processes):
    shares = [shared_out(devices, process, processes) for process in range(processes)]
    assert [share[0] for share in shares] == [process % devices for process in range(processes)]
    if processes <= devices:
        assert sorted(sum(shares, [])) == list(range(devices))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_process_by_itself_may_use_whatever_there_is():
    assert own_devices(Accelerator(cpu=True)) == []
