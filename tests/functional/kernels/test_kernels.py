import pytest
import torch

from hfsae.functional import kernels


def test_break_even_shares_are_those_of_bandwidth_against_arithmetic_times_what_was_measured():
    shares = {"NVIDIA H100 80GB HBM3": 295, "NVIDIA H200": 206, "NVIDIA A100-SXM4-80GB": 156}
    for name, share in shares.items():
        assert 2.5 / kernels.break_even(name, torch.bfloat16) == pytest.approx(share, abs=0.5)
        # Tensor cores make half as many products of numbers that are twice as long.
        assert 2.5 / kernels.break_even(name, torch.float32, tf32=True) == pytest.approx(share, abs=0.5)
        assert kernels.break_even(name, torch.float32) > 1 / 20


def test_of_an_unknown_gpu_the_dense_product_is_taken_to_be_fast():
    assert kernels.break_even("Some GPU", torch.bfloat16) == kernels.break_even("NVIDIA H100", torch.bfloat16)


def test_tensors_that_are_not_on_a_gpu_are_not_served():
    assert not kernels.serves(torch.zeros(3))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_wide_floats_are_not_served_and_neither_is_anything_without_triton(monkeypatch):
    narrow, wide = torch.zeros(3, device="cuda"), torch.zeros(3, device="cuda", dtype=torch.float64)
    assert kernels.serves(narrow) and not kernels.serves(narrow, wide)
    monkeypatch.setattr(kernels, "has_triton", lambda: False)
    assert not kernels.serves(narrow)


@pytest.mark.parametrize(("autocast", "share"), [(True, 2.5 / 206), (False, 2.5 / 27.9)])
def test_what_pays_here_depends_on_autocast(monkeypatch, autocast: bool, share: float):
    """Under autocast all products read bfloat16."""
    monkeypatch.setattr(kernels, "serves", lambda *_: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA H200")
    x = torch.zeros(3, 4)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert kernels.break_even_here(x) == pytest.approx(share, rel=0.01)


def test_nothing_pays_where_nothing_serves():
    assert kernels.break_even_here(torch.zeros(3, 4)) == 0
