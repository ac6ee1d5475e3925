"""What the config of an SAE means in a language model: where it reads and writes, and which tokens it leaves out."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hfsae.configuration import SAEConfig, join_places, places_in
from hfsae.data.encoding import special_token_ids
from hfsae.data.left_out import LeftOut, placeholder_ids
from hfsae.hooks import HookPoint, SideBySide, inner_model, portable_name, resolve_hook_point, resolve_hook_points
from hfsae.hooks.layout import DecoderLayout
from hfsae.hooks.side_by_side import below
from hfsae.hooks.width import resolve_with_width

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class SAEHookPoints:
    """Where one SAE reads and where it writes, by the names of hook points.

    Args:
        reads: Where it reads; the places of a crosscoder are joined by `+`.
        writes: Where a transcoder writes; None where it writes where it reads.

    Example:
        >>> SAEHookPoints("mlp_in.8", "mlp_out.8").target
        'mlp_out.8'
        >>> SAEHookPoints("resid_post.1+resid_post.2").names
        ['resid_post.1', 'resid_post.2']
    """

    reads: str
    writes: str | None = None

    @classmethod
    def resolved(cls, model: nn.Module, reads: str, writes: str | None = None) -> "SAEHookPoints":
        """The same with canonical names of a model.

        Raises:
            HookPointError: If the model lacks a place.
            ValueError: If a place is joined with itself.
        """
        source = _resolved_joined(model, reads)
        target = None if writes is None else _resolved_joined(model, writes)
        return cls(source, target if target != source else None)

    @property
    def target(self) -> str:
        """Where it writes."""
        return self.writes or self.reads

    @property
    def read_names(self) -> list[str]:
        """The hook points that it reads."""
        return places_in(self.reads)

    @property
    def names(self) -> list[str]:
        """The hook points whose activations its training needs, each once."""
        return names_of([self])

    def rows(self, activations: Mapping[str, Tensor]) -> Tensor:
        """(N, d_in) rows that it reads, from activations by hook point; of a crosscoder behind each other."""
        return activations_at(activations, self.reads)

    def target_rows(self, activations: Mapping[str, Tensor]) -> Tensor | None:
        """(N, d_out) rows that a transcoder is to write; None where it writes where it reads."""
        return None if self.writes is None else activations_at(activations, self.writes)

    def input_widths(self, widths: Mapping[str, int]) -> list[int]:
        """The size of the activations at each hook point that it reads."""
        return [widths[name] for name in self.read_names]

    def output_width(self, widths: Mapping[str, int]) -> int:
        """The size of the activations where it writes."""
        return sum(widths[name] for name in places_in(self.target))

    def portable_name(self, model: nn.Module) -> str | None:
        """The portable name of where it reads; None where a place has none."""
        names = [portable_name(model, name) for name in self.read_names]
        return None if None in names else _own_name(model, join_places(map(str, names)))

    def source_names(self, model: nn.Module) -> list[str]:
        """What the sources of a crosscoder are called: models side by side by their names, else by portable names."""
        if isinstance(model, SideBySide):
            return list(model.models)
        return places_in(self.portable_name(model) or self.reads)

    def own_name(self, model: nn.Module) -> str:
        """What a config calls where it reads: of models side by side once, where it is the same place of all."""
        return _own_name(model, self.reads)


def names_of(hook_points: Iterable[SAEHookPoints]) -> list[str]:
    """The hook points that several SAEs read or write, each once, in the order of their first mention."""
    joined = (place for points in hook_points for place in (points.reads, points.writes) if place is not None)
    return list(dict.fromkeys(name for place in joined for name in places_in(place)))


def activations_at(rows: Mapping[str, Tensor], place: str) -> Tensor:
    """The rows (N, d) of a hook point, or of several that are joined, one behind the other."""
    parts = [rows[part] for part in places_in(place)]
    return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]


def hook_points_named(
    model: nn.Module, hook_point: str, target_hook_point: str | None, *, cross_layer: bool = False
) -> list[SAEHookPoints]:
    """Where the SAEs read and write that two training arguments describe, wildcards and lists included.

    Args:
        model: A language model, bare or wrapped.
        hook_point: Where they read.
        target_hook_point: Where transcoders write; None for SAEs that write where they read.
        cross_layer: Whether one cross-layer transcoder reads and writes all of them.

    Raises:
        HookPointError: If the model lacks a place.
        ValueError: If there are neither as many targets as places to read, nor one, or places with a target are
            joined.
    """
    model = inner_model(model)  # named inside of its wrappers: found there with and without these
    sources = _named(model, hook_point)
    if target_hook_point is None:
        return [SAEHookPoints(source) for source in sources]
    targets = _named(model, target_hook_point)
    if cross_layer:
        return [_layer_by_layer(model, hook_point, sources, target_hook_point, targets)]
    targets = targets * len(sources) if len(targets) == 1 else targets
    if any(len(places_in(place)) > 1 for place in (*sources, *targets)):
        raise ValueError("a crosscoder writes where it reads: places joined by + take no target_hook_point.")
    if _is_wild(hook_point) and _is_wild(target_hook_point):
        _refuse_other_layers(model, (hook_point, sources), (target_hook_point, targets))
    if len(targets) != len(sources):
        raise ValueError(
            f"hook_point names {len(sources)} places and target_hook_point {len(targets)}: a transcoder reads at one "
            "and writes at one. Name as many, in the same order, or one target for all."
        )
    pairs = zip(sources, targets, strict=True)
    return [SAEHookPoints(source, target if target != source else None) for source, target in pairs]


def _layer_by_layer(
    model: nn.Module, reads: str, sources: list[str], writes: str, targets: list[str]
) -> SAEHookPoints:
    """Where a cross-layer transcoder reads and writes: as many places, in the order of the model's layers."""
    sources, targets = (
        list(dict.fromkeys(part for place in side for part in places_in(place))) for side in (sources, targets)
    )
    if _is_wild(reads) and _is_wild(writes):
        _refuse_other_layers(model, (reads, sources), (writes, targets))
    if len(targets) != len(sources) or set(targets) & set(sources):
        raise ValueError(
            f"hook_point names {len(sources)} places and target_hook_point {len(targets)}: a cross-layer transcoder "
            "reads each layer at one place and writes it at another. Name as many, in the same order."
        )
    layout = DecoderLayout.find(model)
    layers = [layout.layer_of(HookPoint.parse(place).path) if layout else None for place in sources]
    if None not in layers and layers != sorted(layers, key=lambda layer: layer or 0):
        raise ValueError(
            f"hook_point={reads!r} names layers in another order than the model runs them: {layers}. "
            "Features write at later layers, so name the first one first."
        )
    return SAEHookPoints(join_places(sources), join_places(targets))


def _named(model: nn.Module, names: str) -> list[str]:
    """The canonical names of places, each once; the places that a crosscoder reads together are joined."""
    found: list[str] = []
    for name in (name.strip() for name in names.split(",")):
        if isinstance(model, SideBySide) and name:
            found += _resolved_in_each(model, name)
        elif len(places_in(name)) > 1:
            found.append(_resolved_joined(model, name))
        elif name:
            found += map(str, resolve_hook_points(model, name))
    return list(dict.fromkeys(found))


def _resolved_joined(model: nn.Module, name: str) -> str:
    """The canonical name of a place, or of places that are joined."""
    if isinstance(model, SideBySide):
        places = _resolved_in_each(model, name)
        if len(places) > 1:
            raise ValueError(f"hook_point={name!r} names several places: one crosscoder reads one of every model.")
        return places[0]
    if len(places_in(name)) == 1:
        return str(resolve_hook_point(model, name.strip()))
    parts: list[str] = []
    for part in map(str.strip, places_in(name)):
        points = resolve_hook_points(model, part) if part else []
        if len(points) != 1:
            many = f"joins {part!r}, which names {len(points)} places" if part else "joins a place without a name"
            raise ValueError(f"hook_point={name!r} {many}: every part between + is one place, such as 'mlp_out.0'.")
        parts.append(str(points[0]))
    if len(set(parts)) < len(parts):
        raise ValueError(f"hook_point={name!r} joins a place with itself: name each once.")
    return join_places(parts)


def _resolved_in_each(models: SideBySide, name: str) -> list[str]:
    """The same place in each of several models, joined; of a name with a wildcard or range, one a layer.

    Raises:
        HookPointError: If one of the models lacks it.
        ValueError: If places are joined already, or the models have it in other layers.
    """
    if len(places_in(name)) > 1:
        raise ValueError(
            f"hook_point={name!r} joins places, but of several models a crosscoder reads one place each: name one."
        )
    found = {part: resolve_hook_points(models, f"{part}.{name.strip()}") for part in models.models}
    layers = {part: [_layer(models, point) for point in points] for part, points in found.items()}
    if len({tuple(of_one) for of_one in layers.values()}) > 1:
        lengths = ", ".join(f"{_n_layers(model)} in {part}" for part, model in models.models.items())
        raise ValueError(
            f"hook_point={name!r} is not in the same layers of every model (there are {lengths}): name a layer that "
            "all have by its number, such as 'resid_post.3'."
        )
    return [join_places(map(str, points)) for points in zip(*found.values(), strict=True)]


def _layer(models: SideBySide, place: HookPoint) -> int | None:
    layout = DecoderLayout.find(models.models[models.part_of(place)])
    return None if layout is None else layout.layer_of(models.own(place).path)


def _n_layers(model: nn.Module) -> int | str:
    layout = DecoderLayout.find(model)
    return "an unknown number" if layout is None else len(layout.blocks)


def _own_name(model: nn.Module, place: str) -> str:
    """A place as the models that stand side by side call it: once, where it is the same for all of them."""
    if not isinstance(model, SideBySide):
        return place
    own = [part.removeprefix(f"{model.part_of(part)}.") for part in places_in(place)]
    return own[0] if len(set(own)) == 1 else join_places(own)


def _is_wild(names: str) -> bool:
    return "*" in names and "," not in names


def _refuse_other_layers(model: nn.Module, reads: tuple[str, list[str]], writes: tuple[str, list[str]]) -> None:
    """`mlp_in.*` to `mlp_out.*` means layer by layer: not the third layer to the second, where one lacks a place.

    Raises:
        ValueError: If one name finds places in layers in which the other finds none.
    """
    layout = DecoderLayout.find(model)
    assert layout is not None  # a wildcard has found layers
    read, written = (
        [layout.layer_of(HookPoint.parse(point).path) for point in points] for _, points in (reads, writes)
    )
    if read != written:
        only = ", ".join(str(layer) for layer in sorted(set(read) ^ set(written), key=str))
        raise ValueError(
            f"{reads[0]!r} and {writes[0]!r} do not find the same layers of {type(model).__name__}: of layers {only} "
            "there is one of the two places alone. Name the layers that have both, such as 'mlp_in.1-3' and "
            "'mlp_out.1-3'."
        )


def hook_points_of(
    config: SAEConfig, model: PreTrainedModel, layout: DecoderLayout | None = None
) -> tuple[HookPoint, HookPoint]:
    """Where in a model an SAE reads and where it writes: the same place unless it is a transcoder.

    Args:
        config: The SAE's config.
        model: A causal LM.
        layout: The model's, where it was found before; many SAEs of one model need it once.

    Raises:
        HookPointError: If the model has no such place.
        ValueError: If the config names none, is a crosscoder's, or the activations there have another size than the
            SAE's.
    """
    if config.hook_point is None:
        raise ValueError(
            "this SAE's config names no hook point. Set sae.config.hook_point to the place it was trained on, such as "
            "'resid_post.8'; hfsae.hooks.available_hook_points(model) lists what the model offers."
        )
    if config.is_cross_layer:
        raise ValueError(
            "a cross-layer transcoder reads and writes at every layer: attach_all(model, sae.by_layer()) has it stand "
            "at all of them, sae.layer(name) gives the features of one."
        )
    if len(config.input_widths) > 1:
        raise ValueError(
            f"a crosscoder reads several sources at once ({config.hook_point}): take one of them, sae.source(name), "
            "or give it activations of all."
        )
    target = config.target_hook_point or config.hook_point
    points = []
    for name, size, field in ((config.hook_point, config.d_in, "d_in"), (target, config.d_out, "d_out")):
        point, there = resolve_with_width(model, name, layout)
        if there != size:
            raise ValueError(
                f"the activations of {type(model).__name__} at {point} have {there} dimensions, but this SAE has "
                f"{field}={size}: it belongs to {config.base_model or 'another model or hook point'}."
            )
        points.append(point)
    return points[0], points[1]


def hook_points_of_sources(config: SAEConfig, model: PreTrainedModel) -> list[HookPoint]:
    """Where in a model each source of a crosscoder is read, and written; for any other SAE where it reads.

    Args:
        config: The SAE's config.
        model: A causal LM; for sources of several models a `SideBySide` that holds each under the source's name.

    Raises:
        HookPointError: If the model has no such place.
        ValueError: As for `hook_points_of`, and if a source's model is not given.
    """
    sizes = zip(config.source_places, config.input_widths, strict=True)
    alone = [SAEConfig(d_in=size, hook_point=place, n_features=1) for place, size in sizes]
    names = list(getattr(config, "source_names", []))
    for name, one in zip(names or [None], alone, strict=True):
        one.base_model = config.models_by_source.get(name or "", {}).get("base_model") or config.base_model
    if isinstance(model, SideBySide):
        return [_of_source(name, one, model) for name, one in zip(names, alone, strict=True)]
    if len(names) > 1 and len(set(config.source_places)) == 1:
        raise ValueError(
            f"this crosscoder reads one place of several language models, one for each of {', '.join(names)}, and got "
            f"one {type(model).__name__}: give SideBySide({{name: model, ...}}), or sae.load_base_model()."
        )
    return [hook_points_of(one, model)[0] for one in alone]


def hook_points_of_layers(config: SAEConfig, model: PreTrainedModel) -> list[tuple[HookPoint, HookPoint]]:
    """Where in a model a cross-layer transcoder reads and writes at each layer.

    Raises:
        HookPointError: If the model has no such place.
        ValueError: As for `hook_points_of`.
    """
    known = {"n_features": 1, "subtract_b_dec": False, "base_model": config.base_model}
    return [
        hook_points_of(
            SAEConfig(d_in=reads, d_out=writes, hook_point=source, target_hook_point=target, **known), model
        )
        for reads, writes, source, target in zip(
            config.input_widths, config.output_widths, config.source_places, config.target_places, strict=True
        )
    ]


def _of_source(name: str, config: SAEConfig, models: SideBySide) -> HookPoint:
    if name not in models.models:
        raise ValueError(f"the crosscoder's source {name!r} has no model; given are {', '.join(models.models)}.")
    return below(name, hook_points_of(config, models.models[name])[0])


def left_out_of(config: SAEConfig, model: PreTrainedModel, tokenizer: "PreTrainedTokenizerBase | None") -> LeftOut:
    """Which tokens an SAE's config leaves out of this model's text; with special tokens go images and their marks."""
    special: set[int] = set()
    if config.exclude_special_tokens:
        special = {*_special_token_ids(config, model, tokenizer), *placeholder_ids(model.config)}
    return LeftOut(tuple(sorted(special)), tuple(config.exclude_positions))


def _special_token_ids(
    config: SAEConfig, model: PreTrainedModel, tokenizer: "PreTrainedTokenizerBase | None"
) -> list[int]:
    if tokenizer is not None:
        return special_token_ids(tokenizer)
    text_config = model.config.get_text_config()
    recorded = _in_ranges((config.training or {}).get("special_tokens"), getattr(text_config, "vocab_size", 0))
    if recorded:
        return recorded
    sources = [text_config, getattr(model, "generation_config", None)]
    ids: set[int] = set()
    for source in sources:
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            value = getattr(source, name, None)
            ids.update(value if isinstance(value, list | tuple) else [] if value is None else [value])
    return sorted(ids)


def _in_ranges(ranges: Any, vocabulary: int) -> list[int]:
    """The ids in recorded ranges, as far as the model knows them; none where the record is of another kind."""
    ids: set[int] = set()
    for ends in ranges if isinstance(ranges, list) else []:
        if not isinstance(ends, list) or len(ends) != 2 or not all(type(end) is int for end in ends):
            return []
        ids.update(range(max(0, ends[0]), min(ends[1] + 1, vocabulary)))
    return sorted(ids)
