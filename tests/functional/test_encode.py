import gc
import importlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hfsae.functional import Above, BatchTopK, DensePattern, Pattern, Selection, SparsePattern, TopK, encode
from tests.functional.products import TOLERANCE

# The package's `encode` is the function; its module holds the limits that tests make small.
encode_module = importlib.import_module("hfsae.functional.encode")
N_TOKENS, N_FEATURES, D_IN = 96, 128, 8
quick = settings(max_examples=60)


def problem(
    n_tokens: int, n_features: int, d_in: int, *, centered: bool = True, dtype=torch.float64, shift: float = 0.0
) -> list[Tensor | None]:
    """x, weight, bias and center, all leaves; `shift` moves the bias and with it how much is positive."""
    generator = torch.Generator().manual_seed(n_tokens + 31 * n_features + 997 * d_in)
    shapes = [(n_tokens, d_in), (n_features, d_in), (n_features,), (d_in,)]
    x, weight, bias, center = (torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes)
    leaves = [x, weight, bias + shift, center if centered else None]
    return [None if leaf is None else leaf.requires_grad_() for leaf in leaves]


def plain(x: Tensor, weight: Tensor, bias: Tensor, center: Tensor | None) -> Tensor:
    return (x if center is None else x - center) @ weight.T + bias


def at_entries(pattern: Pattern, dense: Tensor) -> Tensor:
    return dense[pattern.tokens, pattern.features] if isinstance(pattern, SparsePattern) else dense


@st.composite
def rules(draw: st.DrawFn, n_features: int) -> Selection:
    k = draw(st.integers(1, n_features))
    return draw(st.sampled_from([TopK(k), BatchTopK(k), Above(0.0), Above(torch.linspace(-1, 1, n_features))]))


@quick
@given(st.data(), st.integers(0, 8), st.integers(1, 12), st.integers(1, 6), st.booleans())
def test_values_and_all_gradients_are_those_of_plain_autograd_on_both_paths(
    data: st.DataObject, n_tokens: int, n_features: int, d_in: int, centered: bool
):
    rule = data.draw(rules(n_features))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]))
    shift = data.draw(st.sampled_from([-5.0, 0.0, 5.0]))
    for path in ("dense", "sparse", "auto"):
        given_leaves = problem(n_tokens, n_features, d_in, centered=centered, dtype=dtype, shift=shift)
        plain_leaves = problem(n_tokens, n_features, d_in, centered=centered, dtype=dtype, shift=shift)
        pattern, pre = encode(*given_leaves, rule, path)
        expected = at_entries(pattern, plain(*plain_leaves))
        torch.testing.assert_close(pre, expected, **TOLERANCE[dtype])
        weight = torch.linspace(-1, 1, max(pre.numel(), 1), dtype=dtype)[: pre.numel()].view_as(pre)
        (pre * weight).sum().backward()
        (expected * weight).sum().backward()
        for leaf, same in zip(given_leaves, plain_leaves, strict=True):
            if leaf is not None:
                torch.testing.assert_close(leaf.grad, same.grad, **TOLERANCE[dtype])


@quick
@given(st.data(), st.integers(0, 8), st.integers(1, 12))
def test_both_paths_select_the_same_entries(data: st.DataObject, n_tokens: int, n_features: int):
    rule = data.draw(rules(n_features))
    leaves = problem(n_tokens, n_features, 3)
    dense, _ = encode(*leaves, rule, "dense")
    sparse, _ = encode(*leaves, rule, "sparse")
    assert isinstance(dense, DensePattern) and isinstance(sparse, SparsePattern)
    assert torch.equal(sparse.to_dense(torch.ones(len(sparse.features))).bool(), dense.mask)


@pytest.mark.parametrize("path", ["dense", "sparse"])
@pytest.mark.parametrize("rule", [TopK(2), BatchTopK(2), Above(0.1)], ids=["topk", "batch_topk", "above"])
def test_gradcheck(rule: Selection, path: str):
    leaves = problem(4, 6, 3)
    assert torch.autograd.gradcheck(lambda *tensors: encode(*tensors, rule, path)[1], leaves)


def test_only_the_gradients_that_are_needed_are_made():
    x, weight, bias, center = problem(5, 8, 3)
    x = x.detach()
    _, pre = encode(x, weight.detach(), bias, center, TopK(2), "sparse")
    pre.sum().backward()
    assert x.grad is None and bias.grad is not None and center.grad is not None


# -- chunks -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("chunk_tokens", [1, 3, 8])
@pytest.mark.parametrize(
    "rule", [TopK(2), BatchTopK(2), Above(0.5), Above(torch.linspace(-1, 1, 12))], ids=["topk", "batch", "0.5", "each"]
)
def test_encoding_in_chunks_gives_the_same_as_at_once(monkeypatch, rule: Selection, chunk_tokens: int):
    leaves, again = problem(8, 12, 4), problem(8, 12, 4)
    whole_pattern, whole = encode(*leaves, rule, "sparse")
    monkeypatch.setattr(encode_module, "CHUNK_BYTES", chunk_tokens * 4 * 12)
    pattern, pre = encode(*again, rule, "sparse")
    # Within a token top-k gives no order, and a product of fewer rows may round differently: compare densely.
    torch.testing.assert_close(pattern.to_dense(pre), whole_pattern.to_dense(whole))
    whole.square().sum().backward()
    pre.square().sum().backward()
    for leaf, same in zip(again, leaves, strict=True):
        torch.testing.assert_close(leaf.grad, same.grad)


class LargestTensor(TorchDispatchMode):
    """Records the size of the largest tensor that any operation makes."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and tensor.layout == torch.strided:
                self.numel = max(self.numel, tensor.numel())
        return made


@pytest.mark.parametrize("rule", [TopK(2), BatchTopK(2), Above(8.0)], ids=["topk", "batch_topk", "above"])
def test_chunks_keep_the_product_from_ever_being_there_as_a_whole(monkeypatch, rule: Selection):
    leaves = problem(N_TOKENS, N_FEATURES, D_IN)
    with LargestTensor() as whole, torch.no_grad():
        encode(*leaves, rule, "sparse")
    monkeypatch.setattr(encode_module, "CHUNK_BYTES", 8 * 4 * N_FEATURES)
    with LargestTensor() as chunked:
        _, pre = encode(*leaves, rule, "sparse")
        pre.sum().backward()
    assert whole.numel == N_TOKENS * N_FEATURES
    assert chunked.numel <= whole.numel / 4  # chunks, gradients, candidates of the batch-wide rule


def test_a_chunk_is_at_least_one_token(monkeypatch):
    monkeypatch.setattr(encode_module, "CHUNK_BYTES", 1)
    pattern, pre = encode(*problem(5, 12, 4), TopK(3), "sparse")
    assert pre.shape == (15,) and pattern.n_tokens == 5


# -- memory -----------------------------------------------------------------------------------------------------------
def tensors_of_at_least(numel: int) -> list[Tensor]:
    return [o for o in gc.get_objects() if type(o) is Tensor and o.layout == torch.strided and o.numel() >= numel]


@pytest.mark.parametrize("rule", [TopK(4), BatchTopK(4), Above(8.0)], ids=["topk", "batch_topk", "above"])
@pytest.mark.parametrize("path", ["sparse", "dense"])
def test_nothing_of_size_tokens_times_features_is_kept_for_the_backward_of_the_sparse_path(rule: Selection, path: str):
    x, weight, bias, center = problem(N_TOKENS, N_FEATURES, D_IN)
    rows = torch.randn(N_FEATURES, D_IN, dtype=torch.float64, requires_grad=True)
    before = {id(tensor) for tensor in tensors_of_at_least(N_TOKENS * N_FEATURES)}
    saved: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        pattern, pre = encode(x, weight, bias, center, rule, path)
        decoded = pattern.decode(pattern.keep(torch.relu(pre)), rows)
    alive = [t for t in tensors_of_at_least(N_TOKENS * N_FEATURES) if id(t) not in before]
    if path == "sparse":
        assert max(saved) <= N_FEATURES * D_IN and not alive
    else:  # shows that both ways of looking see what is there
        assert max(saved) == N_TOKENS * N_FEATURES and alive
    decoded.sum().backward()
    assert weight.grad is not None


# -- the chooser ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "rule, expected",
    [
        (TopK(16), SparsePattern),  # 16 / 128 is the break-even share, 1 / 8
        (TopK(17), DensePattern),
        (BatchTopK(16), SparsePattern),
        (BatchTopK(17), DensePattern),
        (Above(100.0), SparsePattern),
        (Above(-100.0), DensePattern),
    ],
)
def test_auto_is_sparse_below_the_break_even_density_and_dense_above_it(rule: Selection, expected: type):
    pattern, _ = encode(*problem(N_TOKENS, N_FEATURES, D_IN, shift=10.0), rule, "auto")
    assert type(pattern) is expected


def test_the_density_that_decides_is_the_one_found_in_the_batch():
    """The same rule on the same SAE: sparse where few features pass, dense where many do."""
    leaves = problem(N_TOKENS, N_FEATURES, D_IN)
    pre = plain(*leaves)
    for share, expected in [(0.11, SparsePattern), (0.14, DensePattern)]:
        threshold = pre.detach().quantile(1 - share)
        assert type(encode(*leaves, Above(threshold), "auto")[0]) is expected


def test_entries_within_the_margin_weigh_half():
    """A fifth of all is kept, but hardly anything of it is active: sparse, where a fifth active would be dense."""
    leaves = problem(N_TOKENS, N_FEATURES, D_IN)
    pre = plain(*leaves).detach()
    kept, active = pre.quantile(0.8), pre.quantile(0.99)
    rule = Above(active, margin=(active - kept).item())
    pattern, at_entries = encode(*leaves, rule, "auto")
    assert isinstance(pattern, SparsePattern)
    assert len(at_entries) == torch.count_nonzero(rule.mask(pre)) > 0.19 * pre.numel()
    assert type(encode(*leaves, Above(kept), "auto")[0]) is DensePattern


@pytest.mark.parametrize("share, expected", [(0.2, SparsePattern), (0.3, DensePattern)])
def test_where_the_dense_product_would_not_fit_auto_takes_what_needs_less_memory(monkeypatch, share, expected):
    monkeypatch.setattr(encode_module, "CHUNK_BYTES", N_TOKENS * N_FEATURES * 4 - 1)
    leaves = problem(N_TOKENS, N_FEATURES, D_IN)
    threshold = plain(*leaves).detach().quantile(1 - share)
    assert type(encode(*leaves, Above(threshold), "auto")[0]) is expected


# -- precision --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("chunk_tokens", [1, 1000])
def test_under_autocast_low_precision_selects_and_full_precision_gives_the_values(monkeypatch, chunk_tokens: int):
    monkeypatch.setattr(encode_module, "CHUNK_BYTES", chunk_tokens * 4 * N_FEATURES)
    leaves = problem(N_TOKENS, N_FEATURES, D_IN, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        pattern, pre = encode(*leaves, TopK(4), "sparse")
    assert pre.dtype == torch.float32
    exact = at_entries(pattern, plain(*leaves))
    torch.testing.assert_close(pre, exact, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(exact, exact.bfloat16().float(), rtol=1e-5, atol=1e-5), "the test could not fail"


@pytest.mark.parametrize("path", ["dense", "sparse"])
def test_under_autocast_gradients_reach_float32_leaves_inside_and_outside_of_it(path: str):
    exact = problem(N_TOKENS, N_FEATURES, D_IN, dtype=torch.float32)
    encode(*exact, TopK(4), path)[1].sum().backward()
    for backward_inside in (False, True):
        leaves = problem(N_TOKENS, N_FEATURES, D_IN, dtype=torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            total = encode(*leaves, TopK(4), path)[1].float().sum()
            if backward_inside:
                total.backward()
        if not backward_inside:
            total.backward()
        for leaf, same in zip(leaves, exact, strict=True):
            assert leaf.grad.dtype == torch.float32
            # Selections near the cut may differ, so the direction is what must agree.
            assert torch.cosine_similarity(leaf.grad.flatten(), same.grad.flatten(), dim=0) > 0.98


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("chunk_tokens", [1, 1000])
def test_narrow_weights_work_on_the_sparse_path_as_on_the_dense_one(monkeypatch, dtype, chunk_tokens: int):
    monkeypatch.setattr(encode_module, "CHUNK_BYTES", chunk_tokens * 4 * N_FEATURES)
    leaves = problem(N_TOKENS, N_FEATURES, D_IN, dtype=dtype)
    dense = problem(N_TOKENS, N_FEATURES, D_IN, dtype=dtype)
    pattern, pre = encode(*leaves, Above(2.0), "sparse")
    dense_pattern, dense_pre = encode(*dense, Above(2.0), "dense")
    assert pre.dtype == dtype
    pre.sum().backward()
    (dense_pre * dense_pattern.mask).sum().backward()
    for leaf, same in zip(leaves, dense, strict=True):
        torch.testing.assert_close(leaf.grad, same.grad, rtol=0.05, atol=0.5)
