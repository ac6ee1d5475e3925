"""Models whose matrices are stored in fewer bits: how they are told, how one is read, and which lose gradients."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from accelerate.utils import align_module_device, has_offloaded_params
from torch import Tensor, nn

from hfsae.hooks.inner import inner_model

# What torch calls a step of the backward pass that an operator has not.
_NO_BACKWARD = "WarnNotImplemented"
# Here torch keeps its layers of integers, whose weights are no parameters.
_TORCH_QUANTISED = ("torch.ao.nn.", "torch.nn.quantized", "torch.nn.intrinsic.quantized")


def holds_quantised_weights(model: nn.Module) -> bool:
    """Whether some of a model's matrices are stored in fewer bits, whoever made them so.

    transformers marks the models that it loads so. What was changed after loading (by `quantize_` of torchao,
    optimum-quanto, `quantize_dynamic`) bears no mark: its layers and tensors tell.

    Args:
        model: A language model, or a wrapper around one.
    """
    inner = inner_model(model)
    return bool(getattr(inner, "is_quantized", False)) or quantised_in_place(inner)


def quantised_in_place(model: nn.Module) -> bool:
    """Whether a model was quantised after it was loaded, so that its config does not tell.

    Args:
        model: A language model.
    """
    if getattr(model, "is_quantized", False) or getattr(model.config, "quantization_config", None) is not None:
        return False
    return any(map(_is_of_integers, model.modules())) or any(map(_is_packed, model.parameters()))


def plain_weight(module: Any) -> Tensor | None:
    """A module's matrix in floating point, a quantised one as what it stands for; None where there is no such one.

    One that accelerate offloaded is read from where it lies.

    Args:
        module: The module.
    """
    weight = getattr(module, "weight", None)
    if isinstance(weight, Tensor) and weight.is_meta and has_offloaded_params(module):
        with align_module_device(module, torch.device("cpu")):
            weight = module.weight.detach().clone()
    if isinstance(module, nn.Module) and not isinstance(weight, Tensor) and _is_of_integers(module):
        weight = weight()  # type: ignore[misc]
    if not isinstance(weight, Tensor):
        return None
    if weight.is_quantized or (weight.is_floating_point() and _is_packed(weight)):
        return weight.detach().dequantize()
    return weight if weight.is_floating_point() else None


@contextmanager
def gradients_reach_through(model: nn.Module) -> Iterator[None]:
    """Refuses a forward pass in which a matrix lets no gradients through: those behind it would lack its part.

    Args:
        model: The model, which is called inside.

    Raises:
        ValueError: In the forward pass, with the name of the layer.
    """
    with ExitStack() as hooks:
        for path, module in model.named_modules():
            if hasattr(module, "in_features") and hasattr(module, "out_features"):
                hooks.callback(module.register_forward_hook(partial(_refuse_lost_gradients, path)).remove)
        yield


def _refuse_lost_gradients(path: str, module: nn.Module, inputs: tuple, output: Any) -> None:
    if not torch.is_grad_enabled() or not any(isinstance(x, Tensor) and x.requires_grad for x in inputs):
        return
    if not isinstance(output, Tensor) or (
        output.grad_fn is not None and not output.grad_fn.name().endswith(_NO_BACKWARD)
    ):
        return
    raise ValueError(
        f"{path}, a {type(module).__module__}.{type(module).__qualname__}, lets no gradients through, and they are "
        "needed here: load the language model without this quantisation."
    )


def _is_of_integers(module: nn.Module) -> bool:
    return type(module).__module__.startswith(_TORCH_QUANTISED)


def _is_packed(tensor: Tensor) -> bool:
    """Whether a tensor is of a class that another package made to hold numbers in fewer bits."""
    kinds = (type(tensor), type(tensor.data))
    return any(not kind.__module__.startswith("torch.") and kind.__module__ != "torch" for kind in kinds)
