"""Where a constant can be added to an activation by the model's own weights: the bias of one of its modules.

A bias does what a hook does only where its module's output reaches the place unchanged: no norm, no scale and no gate
between. Names do not tell that for sure, so each module that may do is tried. The model is run with a vector added to
the module's output, and with the same vector added at the place. Both have to say the same.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hfsae.hooks import HookPoint, capture, splice
from hfsae.hooks.devices import input_device
from hfsae.hooks.layout import DecoderLayout
from hfsae.hooks.quantised import holds_quantised_weights
from hfsae.hooks.quiet import on_the_side
from hfsae.hooks.splice import add_vector
from hfsae.hooks.width import width
from hfsae.model_classes import without_weights

# Of the logits' change: what may differ by the order of additions, and by rounding in sixteen bits.
_TOLERANCE = 1e-4
_TOLERANCE_OF_HALF = 3e-2
_TOKENS = (2, 6)


class NoBiasError(ValueError):
    """No module's bias adds a constant at a place; says why."""


@dataclass(frozen=True)
class BiasPlace:
    """A module whose bias adds to the activation at a place of a model, and to nothing else.

    Attributes:
        module: Its path.
        bias: What the module calls the bias; of a mixture of experts it has a row for each.
        has_bias: Whether the model has that bias already, and it can be written to.
        config_fields: Fields of the config that give the module a bias, where it has none; empty where none does.
        takes_adapter: Whether a LoRA adapter can bring the bias along: the module is a matrix.
    """

    module: str
    bias: str = "bias"
    has_bias: bool = False
    config_fields: Mapping[str, bool] = field(default_factory=dict)
    takes_adapter: bool = True

    @property
    def tensor(self) -> str:
        """The path of the bias."""
        return f"{self.module}.{self.bias}"

    @property
    def fits_weights(self) -> bool:
        """Whether the model's own class can hold the bias."""
        return self.has_bias or bool(self.config_fields)


@torch.no_grad()
def find_bias_place(model: PreTrainedModel, point: HookPoint) -> BiasPlace:
    """Finds the module whose bias adds to an activation.

    Args:
        model: A causal LM, not wrapped.
        point: The place.

    Raises:
        NoBiasError: If there is none; says what stands between.
    """
    if point.visit is not None or point.stream is not None:
        what = "one visit of a module that runs several times" if point.visit is not None else "one of several streams"
        raise NoBiasError(f"{point} is {what}: a bias acts on all of them.")
    scope = _scope(model, point)
    size = width(model, point)
    vector = _like_the_activation(model, point)
    found: BiasPlace | None = None
    for place in _candidates(model, scope, size):
        if (found is None or place.fits_weights) and _adds_at(model, place, point, vector):
            found = place
        if found is not None and found.fits_weights:
            return found
    if found is not None:
        return found
    raise NoBiasError(f"no bias adds a constant at {point} of {type(model).__name__}: {_reason(model, point)}")


@contextmanager
def biased(model: PreTrainedModel, place: BiasPlace, vector: Tensor) -> Iterator[PreTrainedModel]:
    """The model with a vector added to a bias, in its weights and its config; afterwards it is as it was.

    Args:
        model: The model in which `place` was found.
        place: Where; `place.fits_weights` holds.
        vector: (d,).
    """
    fresh = _missing_biases(model, place.config_fields) if place.config_fields else {}
    before = None if fresh else model.get_parameter(place.tensor).detach().clone()
    config = model.config.get_text_config()
    try:
        for name, value in place.config_fields.items():
            setattr(config, name, value)
        for path, shape in fresh.items():
            holder = model.get_submodule(path.rpartition(".")[0])
            holder.bias = nn.Parameter(holder.weight.new_zeros(shape), requires_grad=False)  # type: ignore[operator]
        _add(model.get_parameter(place.tensor), vector)
        yield model
    finally:
        for path in fresh:
            model.get_submodule(path.rpartition(".")[0]).bias = None  # type: ignore[assignment]
        for name, value in place.config_fields.items():
            setattr(config, name, not value)
        if before is not None:
            _set(model.get_parameter(place.tensor), before)


@torch.no_grad()
def _set(bias: Tensor, value: Tensor) -> None:
    bias.copy_(value)


def _add(bias: Tensor, vector: Tensor) -> None:
    """Adds in float32, so that the sum is rounded once."""
    _set(bias, bias.float() + vector.to(bias.device, torch.float32))


# -- which modules ----------------------------------------------------------------------------------------------------
def _scope(model: PreTrainedModel, point: HookPoint) -> str:
    """The path of what holds all modules that may write at a place last."""
    layout = DecoderLayout.find(model)
    if layout is None:
        return point.path if point.side == "output" else point.path.rpartition(".")[0]
    layer = layout.layer_of(point.path)
    if layer is None:
        return point.path
    if point.path == layout.block_path(layer) and point.side == "input":
        if layer == 0:
            raise NoBiasError(f"{point} is what the embedding gives, and no module before it has a bias.")
        return layout.block_path(layer - 1)
    return layout.block_path(layer)


def _candidates(model: PreTrainedModel, scope: str, size: int) -> Iterator[BiasPlace]:
    """Modules that give `size` numbers a token and have a bias, or can get one; the last ones first."""
    for name, module in reversed(list(model.get_submodule(scope).named_modules())):
        path = f"{scope}.{name}" if name else scope
        if _output_size(module) == size:
            yield _described(model, path)
        for bias, parameter in module.named_parameters(recurse=False):
            # One row for each expert; their weights add up to 1 where this is exact.
            if bias.endswith("_bias") and parameter.dim() == 2 and parameter.shape[1] == size:
                yield BiasPlace(path, bias, has_bias=not holds_quantised_weights(model), takes_adapter=False)


def _output_size(module: nn.Module) -> int | None:
    if isinstance(module, Conv1D):
        return module.nf
    if isinstance(module, nn.LayerNorm):
        return module.normalized_shape[-1] if module.bias is not None else None
    return module.out_features if isinstance(module, nn.Linear) else None


# -- whether it does --------------------------------------------------------------------------------------------------
def _probe(model: PreTrainedModel) -> Tensor:
    """Token ids of two texts, the same in every run."""
    vocabulary = model.config.get_text_config().vocab_size
    return torch.randint(0, vocabulary, _TOKENS, generator=torch.Generator().manual_seed(0)).to(input_device(model))


def _like_the_activation(model: PreTrainedModel, point: HookPoint) -> Tensor:
    """A random vector as long as the activations at a place usually are."""
    with on_the_side(model), capture(model, str(point)) as taken:
        model(input_ids=_probe(model), use_cache=False)
        size = taken[str(point)].float().norm(dim=-1).median()
    random = torch.randn(width(model, point), generator=torch.Generator().manual_seed(1), dtype=torch.float32).to(
        size.device
    )
    return size.clamp(min=1e-3) * random / random.norm()


def _adds_at(model: PreTrainedModel, place: BiasPlace, point: HookPoint, vector: Tensor) -> bool:
    """Whether a vector added to a module's output is one added at a place, for all that the model says."""
    ids = _probe(model)
    with on_the_side(model):
        plain = model(input_ids=ids, use_cache=False).logits.float()
        with splice(model, point, add_vector(vector.to(model.dtype))):
            wanted = model(input_ids=ids, use_cache=False).logits.float()
        with as_if_biased(model, place, vector):
            made = model(input_ids=ids, use_cache=False).logits.float()
    tolerance = _TOLERANCE if model.dtype == torch.float32 else _TOLERANCE_OF_HALF
    effect = (wanted - plain).abs().max()
    return bool(effect > 0) and bool((made - wanted).abs().max() <= tolerance * effect)


@contextmanager
def as_if_biased(model: PreTrainedModel, place: BiasPlace, vector: Tensor) -> Iterator[None]:
    """Adds a vector to what a module returns, whether or not it has a bias; of experts, to each one's own."""
    if place.bias != "bias":
        with biased(model, place, vector):
            yield
        return
    hook = model.get_submodule(place.module).register_forward_hook(lambda _module, _inputs, y: y + vector.to(y))
    try:
        yield
    finally:
        hook.remove()


# -- how it gets a bias -----------------------------------------------------------------------------------------------
def _described(model: PreTrainedModel, path: str) -> BiasPlace:
    module, is_quantised = model.get_submodule(path), holds_quantised_weights(model)
    has_bias = isinstance(module.bias, nn.Parameter) and not is_quantised
    fields = {} if has_bias or is_quantised else _fields_for(model, f"{path}.bias")
    takes_adapter = not isinstance(module, nn.LayerNorm)
    return BiasPlace(path, has_bias=has_bias, config_fields=fields, takes_adapter=takes_adapter)


def _fields_for(model: PreTrainedModel, tensor: str) -> dict[str, bool]:
    """The field of the config that makes the model's class declare a bias, and beside it nothing but other biases."""
    text = model.config.get_text_config()
    names = [name for name, value in text.to_dict().items() if "bias" in name and isinstance(value, bool)]
    for name in names:
        fields = {name: not getattr(text, name)}
        if tensor in _missing_biases(model, fields):
            return fields
    return {}


def _missing_biases(model: PreTrainedModel, fields: Mapping[str, bool]) -> dict[str, torch.Size]:
    """Shapes of the biases that a model lacks with other fields of its config; none where more than that differs."""
    config = deepcopy(model.config)
    for name, value in fields.items():
        setattr(config.get_text_config(), name, value)
    try:
        config.architectures = [type(model).__name__]
        skeleton = without_weights(config)
    except (ValueError, TypeError):
        return {}
    if type(skeleton) is not type(model):
        return {}
    here, there = model.state_dict(), skeleton.state_dict()
    fresh = {name: tensor.shape for name, tensor in there.items() if name not in here}
    kept = all(name in there and there[name].shape == tensor.shape for name, tensor in here.items())
    biases = all(
        name.endswith(".bias") and isinstance(model.get_submodule(name.rpartition(".")[0]), nn.Linear)
        for name in fresh
    )
    return fresh if kept and biases else {}


def _reason(model: PreTrainedModel, point: HookPoint) -> str:
    """What keeps a bias from a place, as far as the model's parts tell."""
    layout = DecoderLayout.find(model)
    layer = None if layout is None else layout.layer_of(point.path)
    if layout is None or layer is None:
        return "what passes there is not what a matrix or a norm with a bias returns."
    places = layout.places(layer)
    for role in ("mlp_out", "attn_out"):
        ends = places.get(role)
        if ends is not None and "norm" in type(model.get_submodule(ends.path)).__name__.lower():
            return (
                f"the norm {ends.path} stands between the block's last matrix and the residual stream, and it has no "
                "bias. Steer with hfsae.steer there."
            )
    if "mlp_out" not in places or "mlp_act" not in places:
        return (
            "what the block writes last is scaled, gated or a mixture of experts on its way into the residual stream. "
            "Steer with hfsae.steer there."
        )
    return "what passes there is no sum to which a matrix or a norm with a bias adds. Steer with hfsae.steer there."
