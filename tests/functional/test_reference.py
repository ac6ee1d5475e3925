"""The reference against numbers worked out by hand: x = (3, 1), identity weights unless said otherwise."""

import math

import pytest
import torch
from torch import Tensor

from hfsae.functional import reference
from hfsae.functional.reference import Weights

X = torch.tensor([[3.0, 1.0]], dtype=torch.float64)


def weights(decoder_scale: float = 1.0, b_dec: tuple[float, float] = (0.0, 0.0)) -> Weights:
    eye, zeros = torch.eye(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    return Weights(eye.clone(), zeros, decoder_scale * eye, torch.tensor(b_dec, dtype=torch.float64))


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_b_dec_is_subtracted_before_and_added_after():
    w = weights(b_dec=(1.0, 2.0))
    assert reference.pre_activations(X, w).tolist() == [[2.0, -1.0]]
    assert reference.decode(vector(2.0, 0.0)[None], w).tolist() == [[3.0, 2.0]]


@pytest.mark.parametrize("weighted, expected", [(True, 10 + 0.5 * 8), (False, 10 + 0.5 * 4)])
def test_standard(weighted: bool, expected: float):
    """z = (3, 1); rows of norm 2 write (6, 2), which misses by 9 + 1."""
    z, loss = reference.standard(X, weights(2.0), coefficient=0.5, weight_by_decoder_norm=weighted)
    assert z.tolist() == X.tolist() and loss.item() == expected


def test_topk_and_its_wider_term():
    z, loss = reference.topk(X, weights(), k=1)
    assert z.tolist() == [[3.0, 0.0]] and loss.item() == 1.0
    _, loss = reference.topk(X, weights(2.0), k=1, multi_topk=True)
    assert loss.item() == (9 + 1) + (9 + 1) / 8


def test_batch_topk_shares_its_budget_over_the_batch():
    x = torch.cat([X, vector(0.5, 0.2)[None]])
    z, loss = reference.batch_topk(x, weights(), k=1)
    assert z.tolist() == [[3.0, 1.0], [0.0, 0.0]]
    assert loss.item() == pytest.approx((0.25 + 0.04) / 2)


def test_jumprelu_values_and_gradient_of_the_threshold():
    """θ = (2.8, 1.1), ε = 0.5: 3 passes, 1 is cut, both lie within the kernel."""
    threshold = vector(2.8, 1.1).requires_grad_()
    z, loss = reference.jumprelu(X, weights(), threshold=threshold, bandwidth=0.5, coefficient=0.7)
    assert z.tolist() == [[3.0, 0.0]]
    assert loss.item() == pytest.approx(1.0 + 0.7 * 1)
    loss.backward()
    # ∂/∂θ of the error is 2 (x̂ − x) · (−θ/ε); of the count −1/ε.
    assert threshold.grad.tolist() == pytest.approx([-0.7 / 0.5, 2 * (0 - 1) * (-1.1 / 0.5) - 0.7 / 0.5])


@pytest.mark.parametrize(
    "sparsity, penalty", [("l0", 1.0), ("l0_quadratic", (1 / 4 - 1) ** 2), ("tanh", math.tanh(0.1 * 3))]
)
def test_jumprelu_penalties(sparsity: str, penalty: float):
    _, loss = reference.jumprelu(
        X, weights(), threshold=vector(2.0, 2.0), bandwidth=0.5, coefficient=2.0,
        sparsity=sparsity, target_l0=4.0, tanh_scale=0.1,
    )  # fmt: skip
    assert loss.item() == pytest.approx(1.0 + 2.0 * penalty)


def test_gated_by_hand():
    """Gate bias (−2, −2): gates 1 and −1, so feature 0 alone is on, with magnitude 2 · 3 + 0.5 − 6 = 0.5."""
    w = weights()._replace(b_e=vector(-2.0, -2.0))
    z, loss = reference.gated(
        X, w, magnitude_bias=vector(-5.5, 0.0), magnitude_log_scale=vector(math.log(2), 0.0), coefficient=3.0
    )
    assert z.flatten().tolist() == pytest.approx([0.5, 0.0])
    assert loss.item() == pytest.approx((2.5**2 + 1) + 3.0 * 1 + (2**2 + 1))


def test_gated_gate_error_does_not_move_the_decoder():
    """With nothing on, only the gate's own error could reach the decoder's rows."""
    w = weights()._replace(b_e=vector(-2.0, -2.0), W_dec=torch.eye(2, dtype=torch.float64).requires_grad_())
    options = {"magnitude_log_scale": vector(0.0, 0.0), "coefficient": 0.0}
    reference.gated(X, w, magnitude_bias=vector(-9.0, -9.0), **options)[1].backward()
    assert w.W_dec.grad.abs().sum() == 0


def test_auxk_by_hand():
    """Nothing living is on, so e = x: (3, 1) and (−3, 1). Feature 0 is dead and makes (3, 0) and (0, 0) of them."""
    x = torch.cat([X, vector(-3.0, 1.0)[None]])
    dead = torch.tensor([True, False])
    loss = reference.auxk(x, weights(), features=torch.zeros_like(x), dead=dead, alpha=0.5)
    missed, variance, spread = 1 + (9 + 1), 9.0, 18.0
    assert loss.item() == pytest.approx(0.5 * 1 * variance * missed / spread)


def test_pre_act_measures_dead_features_alone():
    threshold, dead = vector(5.0, 5.0), torch.tensor([False, True])
    assert reference.pre_act(X, weights(2.0), threshold=threshold, dead=dead).item() == (5 - 1) * 2
