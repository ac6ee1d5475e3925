"""The closed forms of Rajamanoharan et al. 2024b (arXiv:2407.14435), equations 10 to 12, with the rectangle kernel."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hfsae.functional import blocks, count_active, is_active, jump_relu

# h around the threshold 1 with ε = 0.5: the kernel reaches from 0.75 to 1.25, open at both ends.
PRE = torch.tensor([[-1.0, 0.75, 0.8, 1.0, 1.2, 1.25, 3.0]], dtype=torch.float64)
NEAR = torch.tensor([[0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0]], dtype=torch.float64)
THRESHOLD, BANDWIDTH = 1.0, 0.5


def leaves(pre: torch.Tensor = PRE) -> tuple[torch.Tensor, torch.Tensor]:
    threshold = torch.full((pre.shape[1],), THRESHOLD, dtype=pre.dtype)
    return pre.clone().requires_grad_(), threshold.requires_grad_()


def test_jump_relu_is_h_above_the_threshold_and_0_at_or_below_it():
    pre, threshold = leaves()
    expected = torch.tensor([[0.0, 0.0, 0.0, 0.0, 1.2, 1.25, 3.0]], dtype=torch.float64)
    torch.testing.assert_close(jump_relu(pre, threshold, BANDWIDTH), expected)


def test_jump_relu_gradient_to_the_threshold_is_minus_theta_over_epsilon_inside_the_kernel():
    pre, threshold = leaves()
    jump_relu(pre, threshold, BANDWIDTH).sum().backward()
    torch.testing.assert_close(threshold.grad, -(THRESHOLD / BANDWIDTH) * NEAR[0])


def test_the_kernel_sees_the_pre_activation_and_not_the_jumped_value():
    """h = 0.8 is cut to 0, which lies outside of the kernel around θ = 1; it must move the threshold all the same."""
    pre, threshold = leaves(torch.tensor([[0.8]], dtype=torch.float64))
    jump_relu(pre, threshold, BANDWIDTH).sum().backward()
    assert threshold.grad.item() == -THRESHOLD / BANDWIDTH


def test_jump_relu_gradient_to_h_is_that_of_the_identity_where_active_and_0_elsewhere():
    pre, threshold = leaves()
    jump_relu(pre, threshold, BANDWIDTH).sum().backward()
    torch.testing.assert_close(pre.grad, (PRE > THRESHOLD).double())


def test_counting_moves_the_threshold_by_minus_one_over_epsilon_and_h_not_at_all():
    pre, threshold = leaves()
    count = count_active(pre, threshold, BANDWIDTH)
    assert count == 3 and count.dtype == pre.dtype
    (2 * count).backward()
    torch.testing.assert_close(threshold.grad, -2 * NEAR[0] / BANDWIDTH)
    assert pre.grad is None


def test_flags_add_up_to_the_count_with_gradients_of_their_own():
    pre, threshold = leaves()
    flags = is_active(pre, threshold, BANDWIDTH)
    assert flags.tolist() == [[0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0]] and flags.dtype == pre.dtype
    weights = torch.arange(1.0, 8.0, dtype=torch.float64)
    (flags * weights).sum().backward()
    torch.testing.assert_close(threshold.grad, -weights * NEAR[0] / BANDWIDTH)
    assert pre.grad is None and is_active(pre.bfloat16(), threshold, BANDWIDTH).dtype == torch.float32


@settings(max_examples=30)
@given(st.integers(0, 6), st.integers(1, 5), st.integers(0, 2**31))
def test_gradients_are_summed_to_the_shape_of_the_threshold(n_tokens: int, n_features: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    pre = torch.randn(n_tokens, n_features, generator=generator)
    weight = torch.randn(n_tokens, n_features, generator=generator)
    shared, each = torch.tensor(0.3, requires_grad=True), torch.full((n_tokens, n_features), 0.3, requires_grad=True)
    (jump_relu(pre, shared, 0.7) * weight).sum().backward()
    (jump_relu(pre, each, 0.7) * weight).sum().backward()
    torch.testing.assert_close(shared.grad, each.grad.sum())
    assert shared.grad.shape == ()


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_blocks_of_rows_change_nothing(rows: int, monkeypatch: pytest.MonkeyPatch):
    pre, weight = torch.randn(2, 7, 3, dtype=torch.float64)
    whole, in_parts = torch.full((2, 3), 0.3, dtype=torch.float64).unbind()
    gradients = []
    for threshold in (whole.clone().requires_grad_(), in_parts.clone().requires_grad_()):
        leaf = pre.clone().requires_grad_()
        counts = count_active(leaf, threshold, 0.7) + (is_active(leaf, threshold, 0.7) * weight).sum()
        ((jump_relu(leaf, threshold, 0.7) * weight).sum() + counts).backward()
        gradients.append((leaf.grad, threshold.grad))
        monkeypatch.setattr(blocks, "_BLOCK", 3 * rows)
    torch.testing.assert_close(gradients[0], gradients[1])
