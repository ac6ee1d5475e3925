"""The k largest that are screened in bfloat16 on a GPU are those of float32, whatever is shown."""

import importlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton")

from hfsae.functional import TopK, encode, kernels, patterns, selection
from hfsae.functional.kernels import screened
from hfsae.functional.kernels.screened import screened_largest

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def alone(monkeypatch) -> list[int]:
    """How many tokens of each chunk were computed in float32 alone."""
    counts: list[int] = []
    in_float32 = screened._in_float32

    def counted(*args):
        counts.append(int(args[-1].sum()))
        return in_float32(*args)

    monkeypatch.setattr(screened, "_in_float32", counted)
    return counts


def found(x: Tensor, weight: Tensor, bias: Tensor, k: int, tokens_at_once: int = 100) -> tuple[Tensor, Tensor]:
    features, pre = screened_largest(*(part.to(DEVICE) for part in (x, weight, bias)), k, tokens_at_once)
    assert features.shape == pre.shape == (len(x), k)
    assert all(len(set(row)) == k for row in features.tolist()), "a feature must not come twice"
    return features.cpu(), pre.cpu()


def check(x: Tensor, weight: Tensor, bias: Tensor, k: int, tokens_at_once: int = 100) -> None:
    """What is found is what float64 says, each number at its feature."""
    features, pre = found(x, weight, bias, k, tokens_at_once)
    exact = (x.double() @ weight.double().T + bias.double()).float()
    within = {"rtol": 1e-5, "atol": 1e-6 * exact.abs().max().item()}
    torch.testing.assert_close(pre, exact.gather(1, features), **within)
    expected = exact.sort(descending=True).values[:, :k]
    torch.testing.assert_close(pre.sort(descending=True).values, expected, **within)


@pytest.mark.slow
@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    st.integers(0, 2**31), st.integers(1, 20), st.integers(1, 40), st.integers(5, 150), st.sampled_from([1, 3, 511])
)
def test_sums_that_float32_makes_without_rounding_are_right_to_the_last_bit(
    seed: int, n_tokens: int, d_in: int, n_features: int, most: int
):
    """Nine bits an operand, which bfloat16 rounds; small whole numbers tie often."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (n_tokens, d_in), (n_features, d_in), (n_features,)
    x, weight, bias = (torch.randint(-most, most + 1, shape, generator=generator).float() for shape in shapes)
    k = 1 + seed % (n_features // 5)
    features, pre = found(x, weight, bias, k, tokens_at_once=7)
    exact = torch.addmm(bias, x, weight.T)
    assert torch.equal(pre, exact.gather(1, features))
    assert torch.equal(pre.sort(descending=True).values, exact.sort(descending=True).values[:, :k])


def gaussian(n_tokens: int, n_features: int, d_in: int = 48) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n_tokens * n_features)
    shapes = (n_tokens, d_in), (n_features, d_in), (n_features,)
    x, weight, bias = (torch.randn(shape, generator=generator) for shape in shapes)
    return x, weight, bias / 8


def test_of_ordinary_tokens_none_is_computed_in_float32_alone(alone):
    check(*gaussian(8, 400), k=4)
    assert alone == [0]


def test_chunks_are_put_together(alone):
    check(*gaussian(8, 200), k=3, tokens_at_once=3)
    assert len(alone) == 3


def test_features_that_bfloat16_cannot_tell_apart_are_told_apart_by_float32(alone):
    x, weight, bias = gaussian(5, 300)
    weight = weight[:1] * (1 + torch.arange(300)[:, None] * 2.0**-18)
    check(x, weight, torch.zeros_like(bias), k=2)
    assert alone == [5]


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e25])
def test_tiny_and_huge_numbers(scale: float):
    x, weight, bias = gaussian(5, 120)
    check(x * scale, weight / 7, bias * scale, k=3)


def test_a_bias_of_minus_infinity_costs_the_others_nothing(alone):
    x, weight, bias = gaussian(7, 200)
    bias[::3] = -torch.inf
    check(x, weight, bias, k=3)
    assert alone == [0]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's, which computes with numpy
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_token_that_is_not_finite_is_left_to_float32(value: float, alone):
    x, weight, bias = gaussian(6, 150)
    x[2, 3] = value
    features, pre = found(x, weight, bias, 3)
    assert alone == [1]
    whole = [0, 1, 3, 4, 5]
    exact = torch.addmm(bias, x, weight.T)
    torch.testing.assert_close(pre[whole].sort().values, exact[whole].topk(3).values.flip(1))
    assert not pre[2].isfinite().all()
    torch.testing.assert_close(pre[2], exact[2, features[2]], equal_nan=True)


def test_a_weight_that_is_not_finite_leaves_all_to_float32(alone):
    x, weight, bias = gaussian(6, 150)
    weight[7, 1] = torch.nan
    found(x, weight, bias, 3)
    assert alone == [6]


def test_torchs_own_setting_is_as_before():
    before = torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction
    with screened._summed_in_float32():
        assert not torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction
    assert torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction == before


def test_a_step_goes_that_way_where_it_pays_and_gives_the_same(monkeypatch, alone):
    module = importlib.import_module("hfsae.functional.encode")
    for part in (module, patterns, selection):
        monkeypatch.setattr(part, "serves", lambda *_: True)
    x, weight, bias = (part.to(DEVICE) for part in gaussian(6, 256))

    def gradients() -> tuple[Tensor, ...]:
        leaves = [part.clone().requires_grad_() for part in (x, weight, bias)]
        pattern, pre = encode(leaves[0], leaves[1], leaves[2], None, TopK(4), "sparse")
        dense = pattern.to_dense(pre)
        dense.square().sum().backward()
        return dense.detach(), *(leaf.grad for leaf in leaves)

    plain = gradients()
    assert not alone
    monkeypatch.setattr(module, "screens", lambda *_: True)
    for ours, theirs in zip(gradients(), plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)
    assert alone == [0]


def test_it_pays_for_many_features_in_full_float32_alone(monkeypatch):
    monkeypatch.setattr(kernels, "serves", lambda *_: True)
    monkeypatch.setattr(kernels, "has_tensor_cores", lambda _: True)
    x, weight = torch.zeros(3, 8), torch.zeros(8192, 8)
    assert kernels.screens(x, weight, 32) and not kernels.screens(x, weight, 33)
    assert not kernels.screens(x[:0], weight, 32)
    assert not kernels.screens(x.bfloat16(), weight.bfloat16(), 32)
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert not kernels.screens(x, weight, 32)
