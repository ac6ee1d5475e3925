"""SAEs in use under `torch.export`, `torch.jit.trace`, the transforms of `torch.func` and on the meta device."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from hfsae import SAE
from hfsae.functional import jump_relu
from tests.architectures.variants import ARCHITECTURES, D_IN, HAVE_K, N_FEATURES, VARIANTS, activations

OPTIONS = [
    *((name, {}) for name in ARCHITECTURES),
    ("topk", {"activation": "groupmax"}),
    ("standard", {"input_transform": "layer_norm", "rescale_by_decoder_norm": True}),
    ("jumprelu", {"skip": True, "subtract_b_dec": False, "hook_point": "mlp_in.1", "target_hook_point": "mlp_out.1"}),
]


class Call(nn.Module):
    """What somebody serves: features, or a reconstruction."""

    def __init__(self, sae: SAE, of: Callable[[SAE, Tensor], Tensor]):
        super().__init__()
        self.sae, self._of = sae, of

    def forward(self, x: Tensor) -> Tensor:
        return self._of(self.sae, x)


def encoded(sae: SAE, x: Tensor) -> Tensor:
    return sae.encode(x)


def reconstructed(sae: SAE, x: Tensor) -> Tensor:
    return sae(x).reconstruction


def make(name: str, options: dict) -> SAE:
    return VARIANTS[name].make(dtype=torch.float32, **options).eval()


@pytest.mark.parametrize("of", [encoded, reconstructed])
@pytest.mark.parametrize("name, options", OPTIONS, ids=[f"{name} {', '.join(options)}" for name, options in OPTIONS])
def test_what_is_exported_and_traced_computes_the_same_on_other_activations(name, options, of):
    sae = make(name, options)
    x, other = activations(10, dtype=torch.float32), activations(7, dtype=torch.float32, seed=5)
    other[3, 2] = torch.nan
    call, expected = Call(sae, of), of(sae, other).detach()

    def is_right(found: Tensor) -> bool:
        whole = [row for row in range(7) if row != 3]
        return torch.allclose(found[whole], expected[whole], atol=1e-6) and bool(found[3].isnan().any())

    tokens = ({0: torch.export.Dim("tokens")},)
    for strict in (False, True) if hasattr(torch.compiler, "is_exporting") else (False,):  # from torch 2.7 on
        exported = torch.export.export(call, (x,), dynamic_shapes=tokens, strict=strict).module()
        assert is_right(exported(other))
    with torch.no_grad():
        assert is_right(torch.jit.trace(call, (x,))(other))


@pytest.mark.parametrize("of", [encoded, reconstructed])
@pytest.mark.parametrize("name, options", OPTIONS, ids=[f"{name} {', '.join(options)}" for name, options in OPTIONS])
def test_vmap_and_jacobians_are_those_of_one_token_after_another(name, options, of):
    sae = make(name, options)
    x = activations(4, dtype=torch.float32)
    assert torch.allclose(torch.vmap(lambda row: of(sae, row))(x), of(sae, x), atol=1e-6)
    row = x[0].clone().requires_grad_()
    out = of(sae, row)
    slow = torch.stack([torch.autograd.grad(one, row, retain_graph=True)[0] for one in out])
    assert slow.any()
    for jacobian in (torch.func.jacrev, torch.func.jacfwd):
        assert torch.allclose(jacobian(lambda row: of(sae, row))(x[0]), slow, atol=1e-5)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_gradients_of_parameters_by_transforms_are_those_of_backward(name):
    sae = VARIANTS[name].make(dtype=torch.float64).eval()
    x = activations(20)

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(sae, parameters, (x,)).reconstruction.square().mean()

    found = torch.func.grad(loss)({name: p.detach() for name, p in sae.named_parameters()})
    sae(x).reconstruction.square().mean().backward()
    for parameter, tensor in sae.named_parameters():
        if parameter == "threshold":  # in use, entries below it are not looked at
            continue
        expected = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad.to_dense()
        assert torch.allclose(found[parameter], expected, atol=1e-9), parameter
    assert name in HAVE_K or found["encoder.weight"].any()


def test_the_straight_through_gradient_of_thresholds_is_the_same():
    pre = activations(40, 5).requires_grad_()
    threshold = torch.rand(5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weight = activations(40, 5, seed=2)

    def loss(pre: Tensor, threshold: Tensor) -> Tensor:
        return (jump_relu(pre, threshold, 0.5) * weight).sum()

    found = torch.func.grad(loss, argnums=(0, 1))(pre.detach(), threshold.detach())
    expected = torch.autograd.grad(loss(pre, threshold), (pre, threshold))
    assert expected[1].all()
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.allclose(ours, theirs)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_shapes_are_known_without_numbers(name):
    sae = copy.deepcopy(VARIANTS[name].make()).to("meta")
    x = torch.empty(2, 5, D_IN, device="meta", dtype=torch.float64)
    assert sae.encode(x).shape == (2, 5, N_FEATURES) and sae.encode(x).is_meta
    assert sae(x).reconstruction.shape == (2, 5, D_IN)
