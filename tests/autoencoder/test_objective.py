import pytest
import torch
from torch import Tensor

from hfsae.autoencoder.objective import TrainingStep, squared_error
from hfsae.autoencoder.outputs import StepState
from hfsae.functional import DensePattern, Pattern, SparsePattern
from tests.architectures.variants import N_FEATURES, VARIANTS, activations, state

ALPHA = 1 / 32


def auxk(sae, x: Tensor, dead: Tensor) -> Tensor:
    step = state(dead=dead, n_dead=int(dead.sum()), auxk_alpha=ALPHA)
    return sae(x, state=step).losses["auxk"]


def some_dead(every: int = 4) -> Tensor:
    return torch.arange(N_FEATURES) % every == 0


# -- squared error and means ------------------------------------------------------------------------------------------
def test_squared_error_sums_over_dimensions_and_averages_over_tokens():
    assert squared_error(torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.zeros(2, 2)) == 2.5


def test_no_tokens_have_no_error():
    assert squared_error(torch.zeros(0, 3), torch.zeros(0, 3)) == 0


def test_narrow_activations_are_compared_in_float32():
    error = squared_error(torch.full((1, 4096), 1.0, dtype=torch.bfloat16), torch.zeros(1, 4096, dtype=torch.bfloat16))
    assert error.dtype == torch.float32 and error == 4096


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_a_mean_per_token_counts_tokens_without_entries_too(kind: str):
    mask = torch.tensor([[True, True], [False, False], [False, True], [False, False]])
    pattern: Pattern = DensePattern.from_mask(mask) if kind == "dense" else SparsePattern.from_mask(mask)
    values = mask * 2.0 if kind == "dense" else torch.full((3,), 2.0)
    step = TrainingStep(torch.zeros(4, 1), torch.zeros(4, 1), pattern, values, values, torch.zeros(4, 1), StepState())
    assert step.mean_per_token(values) == 1.5 and step.mse() == 0


# -- auxk -------------------------------------------------------------------------------------------------------------
def test_auxk_is_left_out_while_nothing_is_dead_or_its_weight_is_0():
    sae, x = VARIANTS["topk"].make(), activations(10)
    assert "auxk" not in sae(x, state=state(dead=some_dead() & False, n_dead=0, auxk_alpha=ALPHA)).losses
    assert "auxk" not in sae(x, state=state(dead=None, auxk_alpha=ALPHA)).losses
    assert "auxk" not in sae(x, state=state(dead=some_dead(), n_dead=6, auxk_alpha=0.0)).losses


@pytest.mark.parametrize("path", ["dense", "sparse"])
def test_auxk_moves_dead_rows_alone_and_no_living_one(path: str):
    """The residual is detached: dead features are to follow it, living ones not to make room for them."""
    sae, x, dead = VARIANTS["topk"].make(), activations(30), some_dead()
    gradients = []
    for alpha in (0.0, ALPHA):
        sae.zero_grad()
        sae(x, state=state(path, dead=dead, n_dead=6, auxk_alpha=alpha)).loss.backward()
        gradients.append((sae.W_dec.grad.clone(), sae.encoder.weight.grad.clone(), sae.encoder.bias.grad.clone()))
    for without, with_auxk in zip(*gradients, strict=True):
        changed = (without != with_auxk).reshape(N_FEATURES, -1).any(1)
        assert not changed[~dead].any() and changed[dead].any()


@pytest.mark.parametrize("path", ["dense", "sparse"])
@pytest.mark.parametrize("architecture", ["topk", "jumprelu"])
@pytest.mark.parametrize("others", [1, 5, 1000])
def test_features_that_fill_up_the_dead_ones_change_nothing(architecture: str, path: str, others: int):
    x, dead = activations(30), some_dead()
    found = []
    for n_dead in (6, min(6 + others, N_FEATURES)):
        sae = VARIANTS[architecture].make(**({"pre_act_coefficient": 0.5} if architecture == "jumprelu" else {}))
        out = sae(x, state=state(path, dead=dead, n_dead=n_dead, auxk_alpha=ALPHA))
        out.loss.backward()
        found.append([out.loss.detach(), *(parameter.grad for parameter in sae.parameters())])
    for exact, filled_up in zip(*found, strict=True):
        torch.testing.assert_close(filled_up, exact, rtol=1e-12, atol=1e-14)


def test_auxk_does_not_add_b_dec_to_what_dead_features_write():
    """With dead features that write nothing, what is missed is the residual itself, wherever b_dec stands."""
    sae, x, dead = VARIANTS["topk"].make(subtract_b_dec=False), activations(30), some_dead(1)
    with torch.no_grad():
        sae.encoder.bias.fill_(-1000.0)
        sae.b_dec += 5
    scaled = sae.scaled(x)
    residual = scaled - sae.b_dec
    variance = scaled.var(0, correction=0).sum()
    expected = ALPHA * variance * residual.square().sum() / (residual - residual.mean(0)).square().sum()
    torch.testing.assert_close(auxk(sae, x, dead), expected.detach())


@pytest.mark.parametrize("factor", [0.01, 100.0])
def test_auxk_keeps_its_share_of_the_loss_whatever_the_scale_of_the_activations(factor: float):
    """The published weight belongs to a main loss over the variance; without V the term would vanish here."""
    sae, x, dead = VARIANTS["topk"].make(), activations(30), some_dead()
    step = state(dead=dead, n_dead=6, auxk_alpha=ALPHA)
    before = sae(x, state=step).losses
    with torch.no_grad():
        for tensor in (sae.encoder.bias, sae.b_dec):
            tensor *= factor
        sae.input_scale *= factor
    after = sae(x, state=step).losses
    torch.testing.assert_close(
        after["mse"] / before["mse"], torch.tensor(factor**2, dtype=torch.float64), rtol=1e-5, atol=0
    )
    torch.testing.assert_close(after["auxk"] / after["mse"], before["auxk"] / before["mse"], rtol=1e-5, atol=0)


@pytest.mark.parametrize("n_dead", [1, 2, 3, 6])
def test_fewer_dead_features_than_auxk_uses_weigh_less(n_dead: int):
    """d_in = 6 lets 3 work at a time: the first two are a third and two thirds of the weight."""
    sae, x = VARIANTS["topk"].make(), activations(30)
    with torch.no_grad():
        sae.encoder.bias[:6] = -1000.0  # those dead write nothing, so that only the weight changes
    all_dead = auxk(sae, x, torch.arange(N_FEATURES) < 6)
    torch.testing.assert_close(auxk(sae, x, torch.arange(N_FEATURES) < n_dead), all_dead * min(n_dead / 3, 1))


def test_auxk_has_finite_gradients_where_there_is_nothing_to_explain():
    for x in (torch.zeros(5, 6, dtype=torch.float64), activations(1), activations(1).expand(5, 6)):
        sae = VARIANTS["topk"].make(subtract_b_dec=False)
        with torch.no_grad():
            sae.b_dec.zero_()
            sae.encoder.bias.zero_()
        step = state(dead=some_dead(), n_dead=6, auxk_alpha=ALPHA)
        out = sae(x, state=step)
        out.loss.backward()
        assert out.loss.isfinite()
        assert all(p.grad is None or p.grad.isfinite().all() for p in sae.parameters())


def test_auxk_works_on_the_dead_rows_alone():
    """Two dead features of many: nothing of the size tokens × features is kept for the backward."""
    sae, x = VARIANTS["topk"].make(6, 512, k=2), activations(64)
    dead = torch.zeros(512, dtype=torch.bool)
    dead[[7, 300]] = True
    sizes: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = sae(x, state=state("sparse", dead=dead, n_dead=2, auxk_alpha=ALPHA))
    assert "auxk" in out.losses and max(sizes) <= 512 * 6
