"""A whole sparse step through the kernels, against the plain formulas: values, gradients, counts."""

import importlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

from hfsae.functional import (
    Above,
    BatchTopK,
    DensePattern,
    Selection,
    SparsePattern,
    TopK,
    encode,
    entries,
    not_a_number,
    patterns,
    selection,
)
from hfsae.functional.kernels import largest, products
from hfsae.functional.reference import Weights, pre_activations, squared_error

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
quick = settings(max_examples=10, deadline=None, derandomize=True)


@pytest.fixture(autouse=True)
def always_served(monkeypatch):
    """On a CPU too, where the kernels are interpreted."""
    for module in (importlib.import_module("hfsae.functional.encode"), entries, not_a_number, patterns, selection):
        monkeypatch.setattr(module, "serves", lambda *_: True)


def leaves(n_tokens: int, n_features: int, shift: float) -> tuple[torch.Tensor, Weights]:
    generator = torch.Generator().manual_seed(n_tokens + 31 * n_features)
    shapes = (n_tokens, 6), (n_features, 6), (n_features,), (n_features, 6), (6,)
    x, *weights = (torch.randn(shape, generator=generator).to(DEVICE) for shape in shapes)
    weights[1] += shift
    return x, Weights(*(weight.requires_grad_() for weight in weights))


@st.composite
def rules(draw: st.DrawFn, n_features: int) -> Selection:
    k = draw(st.sampled_from(sorted({1, n_features // 2, n_features} - {0})))
    return draw(st.sampled_from([TopK(k), BatchTopK(k), Above(0.0)]))


def compare(rule: Selection, n_tokens: int, n_features: int, shift: float, repeated: bool = False) -> None:
    x, ours = leaves(n_tokens, n_features, shift)
    _, plain = leaves(n_tokens, n_features, shift)
    if repeated:  # tokens that are equal, features that are equal: ties everywhere
        with torch.no_grad():
            for w in (ours, plain):
                w.W_e[:] = w.W_e[:1]
                w.b_e[:] = w.b_e[:1]
    pattern, pre = encode(x, ours.W_e, ours.b_e, ours.b_dec, rule, "sparse")
    values = pre.relu()
    loss = squared_error(pattern.decode(values, ours.W_dec) + ours.b_dec, x)
    loss.backward()
    assert isinstance(pattern, SparsePattern)
    mask = pattern.to_dense(torch.ones(len(pattern.features), device=DEVICE)) > 0
    z = pre_activations(x, plain).relu() * mask
    expected = squared_error(z @ plain.W_dec + plain.b_dec, x)
    expected.backward()
    torch.testing.assert_close(loss, expected)
    for ours_leaf, plain_leaf in zip(ours, plain, strict=True):
        torch.testing.assert_close(ours_leaf.grad, plain_leaf.grad, rtol=1e-4, atol=1e-5)
    assert torch.equal(pattern.tokens_firing(values), (z != 0).sum(0))


@quick
@given(st.data(), st.integers(1, 5), st.integers(1, 12), st.sampled_from([0.0, 1.0]))
def test_a_step_is_that_of_the_plain_formulas(data: st.DataObject, n_tokens: int, n_features: int, shift: float):
    compare(data.draw(rules(n_features)), n_tokens, n_features, shift)


@pytest.mark.parametrize("rule", [TopK(3), BatchTopK(3), Above(0.0)], ids=["topk", "batch_topk", "above"])
def test_a_step_in_which_nothing_is_active(rule: Selection):
    compare(rule, 3, 8, shift=-1e3)


@pytest.mark.parametrize("rule", [TopK(3), BatchTopK(3)], ids=["topk", "batch_topk"])
def test_a_step_full_of_ties(rule: Selection):
    compare(rule, 4, 8, shift=5.0, repeated=True)


@pytest.mark.parametrize("rule", [TopK(3), BatchTopK(3), Above(0.0), Above(torch.zeros(40))], ids=str)
@pytest.mark.parametrize("negative", [False, True], ids=["nan", "-nan"])
def test_a_token_that_holds_nan_writes_nan_and_leaves_the_others_alone(rule: Selection, negative: bool):
    x, w = leaves(5, 40, shift=0.0)
    x[3, 2] = torch.tensor([-4194304 if negative else 2143289344], dtype=torch.int32).view(torch.float32)
    with torch.no_grad():
        pattern, pre = encode(x, w.W_e, w.b_e, w.b_dec, rule, "sparse")
        written = pattern.decode(pre.relu(), w.W_dec)
    assert written[3].isnan().all() and written[[0, 1, 2, 4]].isfinite().all()
    assert pattern.to_dense(pre.relu())[[0, 1, 2, 4]].count_nonzero() > 0


def test_a_step_on_one_token_with_every_feature():
    compare(TopK(7), 1, 7, shift=0.0)


def test_the_kernels_are_what_made_it(monkeypatch):
    called = set()
    columns = []
    top_k = largest.largest
    monkeypatch.setattr(largest, "largest", lambda *args: columns.append(top_k(*args)) or columns[-1])
    for name in ("sum_rows", "sum_long_rows", "inner_products", "sum_values"):
        kernel = getattr(products, name)

        def noted(*args, kernel=kernel, name=name):
            called.add(name)
            return kernel(*args)

        monkeypatch.setattr(products, name, noted)
    compare(TopK(3), 2, 8, shift=0.0)
    assert called == {"sum_rows", "sum_long_rows", "inner_products", "sum_values"}
    assert [tuple(chosen.shape) for chosen in columns] == [(2, 3)]


def test_on_a_gpu_the_density_decides_too(monkeypatch):
    """Here with the shares that a GPU would have: sparse at 3 of 8 below ½, dense where dense products are faster."""
    x, w = leaves(4, 8, shift=0.0)
    module = importlib.import_module("hfsae.functional.encode")
    for share, expected in ((1 / 2, SparsePattern), (1 / 3, DensePattern), (0.0, DensePattern)):
        monkeypatch.setattr(module, "_break_even", lambda _, share=share: share)
        for rule in (TopK(3), Above(pre_activations(x, w).flatten().sort(descending=True).values[4 * 3])):
            assert type(encode(x, w.W_e, w.b_e, w.b_dec, rule)[0]) is expected
