"""Norms whose denominators are those of one prompt, so that they are linear in what they read.

A norm is known by what it does, not by its class: `w · z / √(mean z² + ε) + b`, where z is the input, or the input
less its mean. What a module does is found by probing it, and believed where it gives what the module gave of the
prompt.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_EPSILONS = ("variance_epsilon", "eps", "epsilon", "norm_eps")
_LARGE = 1e4
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Norm:
    """What one norm computes: `weight · z / √(mean z² + epsilon) + bias`.

    Attributes:
        weight: (d,), what the result is multiplied by, whatever the module adds to what it stores.
        bias: (d,).
        centred: Whether z is the input less its mean (LayerNorm), or the input (RMSNorm).
        epsilon: What is added to the mean square.
    """

    weight: Tensor
    bias: Tensor
    centred: bool
    epsilon: float

    @classmethod
    def of(cls, module: nn.Module, x: Tensor) -> "Norm | None":
        """What a module computes, told from what it makes of a few vectors; None where it is no such norm.

        Args:
            module: Any module.
            x: (..., d), what it was given, for its width, dtype and device.
        """
        probe = _probe(x)
        try:
            bias = module.forward(torch.zeros_like(probe))
            reach, moved = (module.forward(_LARGE * (probe + shift)) for shift in (0.0, 1.0))
        except (TypeError, ValueError, RuntimeError):
            return None
        if not all(isinstance(made, Tensor) and made.shape == probe.shape for made in (bias, reach, moved)):
            return None
        weight = (reach - bias) * probe.square().mean().sqrt() / probe
        centred = bool(torch.allclose(reach, moved, rtol=1e-3, atol=1e-5))
        epsilon = next((value for name in _EPSILONS if isinstance(value := getattr(module, name, None), float)), 0.0)
        return cls(weight.detach(), bias.detach(), centred, epsilon)

    def denominators(self, x: Tensor) -> Tensor:
        """(..., 1) of an input (..., d)."""
        return (self._numerator(x).square().mean(-1, keepdim=True) + self.epsilon).sqrt()

    def apply(self, x: Tensor, denominators: Tensor) -> Tensor:
        """The norm of x with given denominators: an affine map of x."""
        return self.weight * (self._numerator(x) / denominators) + self.bias

    def _numerator(self, x: Tensor) -> Tensor:
        return x - x.mean(-1, keepdim=True) if self.centred else x


def _probe(x: Tensor) -> Tensor:
    """(d,) without zeros, of mean zero."""
    probe = torch.ones(x.shape[-1], dtype=x.dtype, device=x.device)
    probe[1::2] = -1
    if len(probe) % 2 and len(probe) > 1:
        probe[:3] = torch.tensor([1.0, 1.0, -2.0])
    return probe


class FrozenNorms:
    """The norms of a model, and their denominators for one prompt.

    Attributes:
        frozen: Whether the denominators that were noted are used; otherwise they are noted. In either case the norm
            is computed here, in the dtype of its input: many of transformers' norms compute in float32.
        unknown: Paths of modules that are called norms but compute something else; they are left as they are.
    """

    def __init__(self, model: nn.Module):
        self.frozen = False
        self.unknown: list[str] = []
        self._modules = {path: module for path, module in model.named_modules() if _is_called_norm(module)}
        self._noted: dict[str, list[tuple[Norm, Tensor] | None]] = {path: [] for path in self._modules}
        self._calls: Counter[str] = Counter()

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """One forward pass with these norms; leaving takes the hooks off."""
        self._calls.clear()
        with ExitStack() as hooks:
            for path, module in self._modules.items():

                def hook(module: nn.Module, args: tuple, output: Any, path: str = path) -> Any:
                    return self._replay(path, args) if self.frozen else self._note(path, module, args, output)

                hooks.callback(module.register_forward_hook(hook).remove)
            yield

    def _note(self, path: str, module: nn.Module, args: tuple, output: Any) -> Tensor | None:
        """Keeps what the module does and the denominators; what is no such norm is kept as None."""
        known = None
        if len(args) == 1 and isinstance(args[0], Tensor) and isinstance(output, Tensor):
            norm = Norm.of(module, args[0])
            if norm is not None:
                denominators = norm.denominators(args[0])
                difference = (norm.apply(args[0], denominators) - output).abs().max()
                known = (norm, denominators.detach()) if difference <= _TOLERANCE * output.abs().max() else None
        if known is None:
            self.unknown.append(path)
        self._noted[path].append(known)
        return None if known is None else known[0].apply(args[0], known[1])

    def _replay(self, path: str, args: tuple) -> Tensor | None:
        known = self._noted[path][self._calls[path]]
        self._calls[path] += 1
        if known is None:
            return None
        norm, denominators = known
        # OPT flattens its tokens: (batch * seq, d).
        copies = len(args[0]) // len(denominators) if len(denominators) > 1 else 1
        return norm.apply(args[0], denominators.repeat(copies, *[1] * (denominators.dim() - 1)))


def _is_called_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower() and not any(True for _ in module.children())
