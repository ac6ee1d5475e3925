"""Names of places: portable and TransformerLens names resolved against a model, wildcards, ranges, and back again."""

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import nn

from hfsae.hooks.decoder_blocks import TRANSFORMER_LENS_ONLY
from hfsae.hooks.layout import EMBED, FINAL_NORM, LAYER_ROLES, DecoderLayout, is_called
from hfsae.hooks.lens_names import MODEL_WIDE, ROLE_OF_TRANSFORMER_LENS, portable_to_transformer_lens
from hfsae.hooks.points import HookPoint, HookPointError, split_stream, split_visit
from hfsae.hooks.side_by_side import SideBySide, below

_HOOK_NORMALIZED = (
    "TransformerLens' hook_normalized is what a norm computes before it multiplies by its weight, and no module of a "
    "Hugging Face model returns that; ln2.hook_out is what it returns"
)

_WRAPPERS = ("model", "language_model", "text_model", "decoder", "base_model")
"""What the modules around a decoder's list of layers are called, beside the model class's own `base_model_prefix`."""

_SELECTOR = r"\*|-?\d+(?:--?\d+)?"  # every layer, one layer, or first-last
_PORTABLE_NAME = re.compile(rf"(?P<role>\w+)\.(?P<selector>{_SELECTOR})")
_TRANSFORMER_LENS_NAME = re.compile(rf"blocks\.(?P<selector>{_SELECTOR})\.(?P<tail>[\w.]+)")


def resolve_hook_point(model: nn.Module, name: str | HookPoint) -> HookPoint:
    """Find one place in a model.

    Args:
        model: A Hugging Face causal LM, its base model, or a multimodal model around one.
        name: A portable name (`"resid_post.8"`, `"attn_out.-1"`, `"embed"`, `"final_norm"`; `"layers.8"` means
            `"resid_post.8"`), a TransformerLens name (`"blocks.8.hook_resid_pre"`, `"blocks.8.mlp.hook_out"`,
            `"ln_final.hook_out"`), or a canonical name (`"transformer.h.8.output"`). Negative layers count from the
            end. A canonical name of the same decoder in another wrapping is found too. `"model.layers.3.output"` finds
            `layers.3.output` in a base model, and `model.language_model.layers.3.output` in a multimodal one.

    Returns:
        The hook point, with the path that its module has in `model`.

    Raises:
        HookPointError: If the model has no such place; the message lists the nearest ones. Likewise if the layer is
            out of range; the message says how many there are. Likewise if the name stands for several places.

    Example:
        >>> str(resolve_hook_point(gpt2, "blocks.8.hook_resid_pre"))
        'transformer.h.8.input'
    """
    return resolve_with_layout(model, name)[0]


def resolve_with_layout(
    model: nn.Module, name: str | HookPoint, layout: DecoderLayout | None = None
) -> tuple[HookPoint, DecoderLayout | None]:
    """The same, with the model's layout, which is found on the way if it is not given; None where it has none."""
    found = expand_hook_points(model, name, layout)
    points, layout = found.places, found.layout
    if len(points) > 1 or _names_several(str(name)):
        raise HookPointError(
            f"{str(name)!r} can name several places, where one is expected: name one layer, such as 'resid_post.3'; "
            "resolve_hook_points finds all of them."
        )
    return next(iter(points.values())), layout


def resolve_hook_points(model: nn.Module, names: str | HookPoint | Sequence[str | HookPoint]) -> list[HookPoint]:
    """Find many places in a model.

    Args:
        model: As for `resolve_hook_point`.
        names: One name or several. Beside what `resolve_hook_point` takes, a layer can be a wildcard or a range that
            includes both ends: `"resid_post.*"`, `"resid_post.4-8"`, `"blocks.*.hook_mlp_out"`,
            `"model.layers.0-3.mlp.output"`. A wildcard leaves out the layers that lack the place; a range that
            names such a layer is an error.

    Returns:
        Every place once, in the order in which it is first named.

    Raises:
        HookPointError: As for `resolve_hook_point`.
    """
    return list(dict.fromkeys(expand_hook_points(model, names).places.values()))


@dataclass(frozen=True)
class NamedPlaces:
    """What names mean in a model.

    Attributes:
        places: Name to hook point. A name with a wildcard or range becomes one name a layer, in the same style.
        optional: The places that only a wildcard names.
        layout: The model's layout, if it has one.
    """

    places: dict[str, HookPoint]
    optional: frozenset[HookPoint]
    layout: DecoderLayout | None


def expand_hook_points(
    model: nn.Module, names: str | HookPoint | Sequence[str | HookPoint], layout: DecoderLayout | None = None
) -> NamedPlaces:
    """Find many places, each under the name it was asked by.

    Args:
        model: As for `resolve_hook_point`.
        names: As for `resolve_hook_points`.
        layout: The model's, where it was found before.

    Raises:
        HookPointError: As for `resolve_hook_point`, and if `names` is empty.
    """
    if not callable(getattr(model, "get_submodule", None)):
        raise TypeError(f"hook points are places in a model, got a {type(model).__name__}: load the model first.")
    asked = [names] if isinstance(names, str | HookPoint) else list(names)
    if not asked:
        raise HookPointError("no hook point was named")
    if isinstance(model, SideBySide):
        return _side_by_side(model, asked)
    layout, reason = (layout, "") if layout is not None else _layout(model)
    points: dict[str, HookPoint] = {}
    wild: set[HookPoint] = set()
    exact: set[HookPoint] = set()
    for name in asked:
        try:
            found = _expand(model, layout, str(name))
        except HookPointError as error:
            if layout is None:
                raise HookPointError(f"{error}. Only module paths can name its places, because {reason}") from error
            raise
        points |= found
        (wild if "*" in str(name) else exact).update(found.values())
    return NamedPlaces(points, frozenset(wild - exact), layout)


def _side_by_side(models: SideBySide, asked: Sequence[str | HookPoint]) -> NamedPlaces:
    """The same for models side by side: each name has the name of one of them in front."""
    places: dict[str, HookPoint] = {}
    optional: set[HookPoint] = set()
    for name in map(str, asked):
        part = models.part_of(name)
        try:
            found = expand_hook_points(models.models[part], name.removeprefix(f"{part}."))
        except HookPointError as error:
            raise HookPointError(f"of the model {part!r}: {error}") from error
        places |= {f"{part}.{key}": below(part, point) for key, point in found.places.items()}
        optional |= {below(part, point) for point in found.optional}
    return NamedPlaces(places, frozenset(optional), None)


def _layout(model: nn.Module) -> tuple[DecoderLayout | None, str]:
    """The model's layout; where it has none, why."""
    if isinstance(model, nn.DataParallel):
        raise HookPointError(
            "DataParallel runs copies of the model, which hooks do not reach: pass the model inside, model.module"
        )
    try:
        return DecoderLayout(model), ""
    except HookPointError as error:
        return None, str(error)


def available_hook_points(model: nn.Module) -> dict[str, HookPoint]:
    """All portable names that a model offers, with the places they mean, from the first layer to the last.

    Args:
        model: As for `resolve_hook_point`.

    Raises:
        HookPointError: If the model has no recognisable decoder.
    """
    return _available(DecoderLayout(model))


def portable_name(model: nn.Module, hook_point: str | HookPoint) -> str | None:
    """The portable name of a place (`"resid_post.8"`), or None where it has none.

    Args:
        model: As for `resolve_hook_point`.
        hook_point: Anything that `resolve_hook_point` takes.

    Raises:
        HookPointError: If the model has no such place.
    """
    point = resolve_hook_point(model, hook_point)
    if isinstance(model, SideBySide):
        part = model.part_of(point)
        name = portable_name(model.models[part], model.own(point))
        return None if name is None else f"{part}.{name}"
    layout = DecoderLayout.find(model)
    available = _available(layout) if layout is not None else {}
    names = {place: name for name, place in available.items()}
    whole = names.get(replace(point, visit=None))
    return names.get(point) or (None if whole is None else f"{whole}@{point.visit}")


def transformer_lens_name(model: nn.Module, hook_point: str | HookPoint) -> str | None:
    """The TransformerLens name of a place (`"blocks.8.hook_resid_post"`), or None where it has none, or names a visit.

    TransformerLens keeps the heads of `attn.hook_z` apart, (batch, seq, heads, d_head); here they are flattened.

    Args:
        model: As for `resolve_hook_point`.
        hook_point: Anything that `resolve_hook_point` takes.

    Raises:
        HookPointError: If the model has no such place.
    """
    point = resolve_hook_point(model, hook_point)
    name = portable_name(model, point)
    if name is not None:
        return portable_to_transformer_lens(name)
    layout = DecoderLayout.find(model)
    layer = layout.layer_of(point.path) if layout is not None else None
    if layout is None or layer is None:
        return None
    places = layout.transformer_lens_places(layer)
    return next((f"blocks.{layer}.{tail}" for tail, place in places.items() if place == point), None)


def _available(layout: DecoderLayout) -> dict[str, HookPoint]:
    available = {EMBED: layout.embed} if layout.embed is not None else {}
    for layer in range(len(layout.blocks)):
        for role, point in layout.places(layer).items():
            if layout.streams is not None and role in ("resid_pre", "resid_post"):
                streams = range(layout.streams.number)
                available |= {f"{role}.{layer}[{stream}]": replace(point, stream=stream) for stream in streams}
            else:
                available[f"{role}.{layer}"] = point
    return available | ({FINAL_NORM: layout.final_norm} if layout.final_norm is not None else {})


def _names_several(name: str) -> bool:
    name, _ = split_stream(split_visit(name)[0])
    return any(re.fullmatch(_SELECTOR, part) and re.search(r"\*|\d-", part) for part in name.split("."))


def _expand(model: nn.Module, layout: DecoderLayout | None, name: str) -> dict[str, HookPoint]:
    """The places that one name means; a stream or visit at its end (`resid_post.*[0]@1`) holds for all of them."""
    place, visit = split_visit(name)
    place, stream = split_stream(place)
    points = _expand_place(model, layout, place)
    if stream is not None:
        points = {f"{key}[{stream}]": replace(point, stream=stream) for key, point in points.items()}
        if layout is not None:
            for point in points.values():
                layout.stream_axis(point)
    if visit is None:
        return points
    return {f"{key}@{visit}": replace(point, visit=visit) for key, point in points.items()}


def _expand_place(model: nn.Module, layout: DecoderLayout | None, name: str) -> dict[str, HookPoint]:
    if name in MODEL_WIDE:
        point = None if layout is None else layout.embed if MODEL_WIDE[name] == EMBED else layout.final_norm
        if point is None:
            raise _unknown(model, layout, name)
        return {name: point}
    if layout is not None and (match := _TRANSFORMER_LENS_NAME.fullmatch(name)):
        role = ROLE_OF_TRANSFORMER_LENS.get(match["tail"], match["tail"])
        places = layout.places if role in LAYER_ROLES else layout.transformer_lens_places
        if role in LAYER_ROLES or role in TRANSFORMER_LENS_ONLY:
            return _expand_layers(layout, name, role, match["selector"], f"blocks.{{}}.{match['tail']}", places)
    if layout is not None and (match := _PORTABLE_NAME.fullmatch(name)):
        role = "resid_post" if match["role"] == "layers" else match["role"]
        if role in LAYER_ROLES:
            return _expand_layers(layout, name, role, match["selector"], f"{match['role']}.{{}}", layout.places)
    return _expand_canonical(model, layout, name)


def _expand_layers(
    layout: DecoderLayout,
    name: str,
    role: str,
    selector: str,
    template: str,
    places: Callable[[int], dict[str, HookPoint]],
) -> dict[str, HookPoint]:
    """The places of one role in the selected layers, each under the name that `template` gives it."""
    layers = _select(layout, selector, name)
    found = {layer: place for layer in layers if (place := places(layer).get(role)) is not None}
    lacking = [layer for layer in layers if layer not in found]
    if not found or (lacking and selector != "*"):
        raise _lacks_role(layout, role, lacking[0], places)
    if not _names_several(name):
        return {name: found[layers[0]]}
    return {template.format(layer): point for layer, point in found.items()}


def _expand_canonical(model: nn.Module, layout: DecoderLayout | None, name: str) -> dict[str, HookPoint]:
    try:
        point = HookPoint.parse(name)
    except HookPointError as error:
        raise _unknown(model, layout, name) from error
    parts = point.path.split(".")
    selecting = [i for i, part in enumerate(parts) if re.fullmatch(_SELECTOR, part) and not part.isdecimal()]
    if layout is None or not selecting:
        path = _locate(model, layout, point.path)
        if path is None:
            raise _unknown(model, layout, name)
        return {name: HookPoint(path, point.side)}

    position, selector = selecting[0], parts[selecting[0]]
    if len(selecting) > 1 or parts[:position][-1:] != layout.layers_path.split(".")[-1:]:
        raise HookPointError(f"{name!r}: a wildcard, range or negative index can only stand for the decoder's layer")
    points = {}
    for layer in _select(layout, selector, name):
        path = ".".join([*parts[:position], str(layer), *parts[position + 1 :]])
        located = _locate(model, layout, path)
        if located is not None:
            key = f"{path}.{point.side}" if _names_several(name) else name
            points[key] = HookPoint(located, point.side)
        elif selector != "*":
            raise _unknown(model, layout, f"{path}.{point.side}")
    if not points:
        raise _unknown(model, layout, name)
    return points


def _select(layout: DecoderLayout, selector: str, name: str) -> list[int]:
    """The layers that a wildcard, a number or a range means."""
    n_layers = len(layout.blocks)
    if selector == "*":
        return list(range(n_layers))
    first, last = re.fullmatch(r"(-?\d+)(?:-(-?\d+))?", selector).groups()  # pyright: ignore[reportOptionalMemberAccess]
    ends = [int(end) for end in (first, last if last is not None else first)]
    for end in ends:
        if not -n_layers <= end < n_layers:
            raise _out_of_range(layout, end, name)
    start, stop = (end % n_layers for end in ends)
    if start > stop:
        raise HookPointError(f"{name!r} names no layer: the range runs from layer {start} down to layer {stop}")
    return list(range(start, stop + 1))


def _locate(model: nn.Module, layout: DecoderLayout | None, path: str) -> str | None:
    """The path of a module in this model; also of one that is named as in another wrapping of the same decoder."""
    if is_called(_module_at(model, path)):
        return path
    if layout is None:
        return None
    wrappers = {*_WRAPPERS, getattr(model, "base_model_prefix", "")}
    parts = path.split(".")
    while parts:
        moved = ".".join([layout.decoder_path, *parts]).strip(".")
        if is_called(_module_at(model, moved)):
            return moved
        if parts.pop(0) not in wrappers:
            return None
    return None


def _module_at(model: nn.Module, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def _out_of_range(layout: DecoderLayout, layer: int, name: str) -> HookPointError:
    n_layers = len(layout.blocks)
    return HookPointError(
        f"{name!r}: there is no layer {layer}; {type(layout.model).__name__} has {n_layers} layers, 0 to "
        f"{n_layers - 1} (or -{n_layers} to -1)"
    )


def _lacks_role(
    layout: DecoderLayout, role: str, layer: int, places: Callable[[int], dict[str, HookPoint]]
) -> HookPointError:
    block = type(layout.blocks[layer]).__name__
    having = [str(i) for i in range(len(layout.blocks)) if role in places(i)]
    elsewhere = f"layers that have it: {', '.join(having)}" if having else "no layer of this model has it"
    why = f". {_HOOK_NORMALIZED}" if role == "ln2.hook_normalized" else ""
    return HookPointError(
        f"layer {layer}, a {block}, has no {role}; it offers {', '.join(places(layer))} ({elsewhere}){why}. Any "
        f"other place can be named by its module path and side, such as '{layout.block_path(layer)}.output'"
    )


def _unknown(model: nn.Module, layout: DecoderLayout | None, name: str) -> HookPointError:
    """The error for a name that is nowhere in the model, with the nearest places that are."""
    path = name.removesuffix(".input").removesuffix(".output")
    if layout is not None and (match := re.fullmatch(rf".*\b{layout.layers_path.split('.')[-1]}\.(\d+)(\..*)?", path)):
        if int(match[1]) >= len(layout.blocks):
            return _out_of_range(layout, int(match[1]), name)
    parts = path.split(".")
    prefixes = (".".join(parts[:i]) for i in range(len(parts), 0, -1))
    parent = next((prefix for prefix in prefixes if _module_at(model, prefix) is not None), "")
    below = [f"{parent}.{child}".strip(".") for child, _ in model.get_submodule(parent).named_children()]
    around = [place for place in (parent, *below) if place and is_called(model.get_submodule(place))]
    portable = _available(layout) if layout is not None else {}
    if name.startswith("blocks."):
        portable = [lens for place in portable if (lens := portable_to_transformer_lens(place)) is not None]
    known = [*portable, *(f"{place}.{side}" for place in around for side in ("input", "output"))]
    nearest = difflib.get_close_matches(name, known, n=5, cutoff=0.3) or known[:5]
    return HookPointError(f"{type(model).__name__} has no hook point {name!r}; the nearest are: {', '.join(nearest)}")
