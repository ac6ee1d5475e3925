"""A training step against the reference: features, loss and every gradient, on the dense and on the sparse path."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hfsae import SAE
from hfsae.functional import DensePattern, SparsePattern, reference
from hfsae.training.optimisation import renormalise
from tests.architectures.variants import (
    HAVE_K,
    SHARE_A_BUDGET,
    TIED,
    VARIANTS,
    activations,
    scramble,
    state,
    weights_of,
)

TOLERANCE = {torch.float32: {"rtol": 2e-4, "atol": 2e-4}, torch.float64: {"rtol": 1e-9, "atol": 1e-9}}
PATHS = ["dense", "sparse"]


def gradients(sae: SAE) -> dict[str, Tensor]:
    """Every parameter's gradient, which is 0 where the loss does not reach; clears them."""
    found = {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in sae.named_parameters()}
    sae.zero_grad(set_to_none=True)
    return found


def assert_same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor], dtype: torch.dtype) -> None:
    for name, gradient in expected.items():
        # Thresholds are float32 whatever the SAE is.
        tolerance = TOLERANCE[dtype if gradient.dtype == dtype else torch.float32]
        torch.testing.assert_close(found[name], gradient, **tolerance, msg=lambda text, name=name: f"{name}: {text}")


@torch.no_grad()
def round_encoder(sae: SAE) -> None:
    """Whole numbers in the encoder, so that products are exact and pre-activations tie, on 0 too."""
    sae.input_scale.fill_(1.0)
    for tensor in (sae.encoder.weight, sae.encoder.bias, sae.b_dec):
        tensor.copy_((2 * tensor).round())


@pytest.mark.parametrize("name", VARIANTS)
@settings(max_examples=30)
@given(data=st.data())
def test_a_step_is_the_references_on_both_paths(name: str, data: st.DataObject):
    variant = VARIANTS[name]
    d_in, n_features = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 16))
    n_tokens, idle = data.draw(st.integers(1, 9)), data.draw(st.integers(0, 2))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]))
    shift = data.draw(st.sampled_from([-3.0, 0.0, 3.0]))
    options = {"k": data.draw(st.integers(1, n_features))} if variant.architecture in HAVE_K else {}
    sae = variant.make(d_in, n_features, dtype=dtype, **options)
    scramble(sae, seed=data.draw(st.integers(0, 2**31)))
    x = activations(n_tokens, d_in, dtype=dtype)
    # Steps along rows longer than 1 may leave more than there was, and more of rounding errors too.
    runs_away = variant.architecture in TIED and dtype == torch.float32
    # Which of the batch's equals make up its budget is anybody's choice, so such rules are spared ties.
    if name not in SHARE_A_BUDGET and not runs_away and data.draw(st.booleans()):
        round_encoder(sae)
        x = x.round()
    with torch.no_grad():
        sae.encoder.bias.add_(shift)
        if runs_away:
            renormalise(sae.W_dec)
        x[:idle] = (sae.b_dec / sae._scale_in).to(dtype)  # tokens on which the encoder sees nothing but its bias

    features, loss = variant.reference(sae, sae.scaled(x))
    loss.backward()
    expected = gradients(sae)
    for path in PATHS:
        out = sae(x, state=state(path))
        assert isinstance(out.features.pattern, SparsePattern if path == "sparse" else DensePattern)
        torch.testing.assert_close(out.features.to_dense(), features.detach(), **TOLERANCE[dtype])
        torch.testing.assert_close(out.loss, loss.detach(), **TOLERANCE[dtype])
        out.loss.backward()
        assert_same_gradients(gradients(sae), expected, dtype)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", VARIANTS)
def test_gradients_of_b_dec_and_of_the_input_are_those_of_plain_autograd(name: str, path: str):
    """Through the decoder, the encoder's x − b_dec and the target, at a size where all of it counts."""
    variant = VARIANTS[name]
    sae = variant.make()
    x = activations(200).requires_grad_()
    variant.reference(sae, sae.scaled(x))[1].backward()
    expected, expected_x = gradients(sae)["b_dec"], x.grad.clone()
    x.grad = None
    sae(x, state=state(path)).loss.backward()
    torch.testing.assert_close(sae.b_dec.grad, expected)
    torch.testing.assert_close(x.grad, expected_x)
    assert expected.abs().min() > 1e-3


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "name",
    [
        *("standard", "standard-l1", "topk", "multi-topk", "hierarchical-topk", "abs_topk", "matching_pursuit"),
        *("batch_topk", "matryoshka", "matryoshka-recipe", "gated"),
        *("crosscoder", "topk_crosscoder", "standard_crosscoder"),
    ],
)
def test_gradcheck_in_float64_of_what_has_no_straight_through_part(name: str, path: str):
    """Numerical differentiation: independent of the reference too. Gated is left without its detached decoder term."""
    variant = VARIANTS[name]
    sae = variant.make(3, 8, k=2) if variant.architecture in HAVE_K else variant.make(3, 8)
    x = activations(4, 3)
    names = [n for n, _ in sae.named_parameters() if name != "gated" or n not in ("W_dec", "b_dec")]
    leaves = tuple(sae.get_parameter(n).detach().clone().requires_grad_() for n in names)

    def loss(*tensors: Tensor) -> Tensor:
        given = dict(zip(names, tensors, strict=True))
        return torch.func.functional_call(sae, given, (x,), {"state": state(path)}).loss

    assert torch.autograd.gradcheck(loss, leaves)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "name", ["topk", "abs_topk", "matching_pursuit", "batch_topk", "matryoshka", "jumprelu", "crosscoder"]
)
@pytest.mark.parametrize("n_dead", [1, 2, 9])
def test_auxk_is_the_references_for_fewer_and_for_more_dead_features_than_it_uses(name: str, path: str, n_dead: int):
    """d_in = 6 lets 3 dead features at a time reconstruct a token's residual."""
    sae, x = VARIANTS[name].make(), activations(30)
    dead = torch.zeros(sae.config.n_features, dtype=torch.bool)
    dead[torch.randperm(len(dead), generator=torch.Generator().manual_seed(5))[:n_dead]] = True
    features, loss = VARIANTS[name].reference(sae, sae.scaled(x))
    about = {"features": features.detach(), "dead": dead, "alpha": 1 / 32, "signed": sae.signed}
    auxk = reference.auxk(sae.scaled(x), weights_of(sae), **about)
    (loss + auxk).backward()
    expected = gradients(sae)
    out = sae(x, state=state(path, dead=dead, n_dead=n_dead, auxk_alpha=1 / 32))
    torch.testing.assert_close(out.losses["auxk"], auxk.detach())
    out.loss.backward()
    assert_same_gradients(gradients(sae), expected, torch.float64)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", ["topk", "abs_topk", "matching_pursuit"])
def test_auxk_leaves_out_features_that_only_fill_the_dead_ones_up(name: str, path: str):
    """A step works on a number of features that is rounded up, so that few numbers come up."""
    sae, x = VARIANTS[name].make(), activations(30)
    dead = torch.arange(sae.config.n_features) % 12 == 5
    found = []
    for n_dead in (2, 4, 16):
        out = sae(x, state=state(path, dead=dead, n_dead=n_dead, auxk_alpha=1 / 32))
        out.loss.backward()
        found.append((out.losses["auxk"], *gradients(sae).values()))
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0])


@pytest.mark.parametrize("path", PATHS)
def test_the_pre_activation_loss_is_the_references(path: str):
    sae, x = VARIANTS["jumprelu"].make(pre_act_coefficient=0.01), activations(30)
    dead = torch.arange(sae.config.n_features) % 5 == 0
    _, loss = VARIANTS["jumprelu"].reference(sae, sae.scaled(x))
    pre_act = reference.pre_act(sae.scaled(x), weights_of(sae), threshold=sae.threshold, dead=dead)
    (loss + 0.01 * pre_act).backward()
    expected = gradients(sae)
    out = sae(x, state=state(path, dead=dead, n_dead=int(dead.sum())))
    torch.testing.assert_close(out.losses["pre_act"], 0.01 * pre_act.detach())
    out.loss.backward()
    assert_same_gradients(gradients(sae), expected, torch.float64)
