"""What the config of an SAE means in a language model: where it reads and writes, and which tokens it leaves out."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hfsae.configuration import SAEConfig, join_places, places_in
from hfsae.data.encoding import special_token_ids
from hfsae.data.left_out import LeftOut
from hfsae.hooks import HookPoint, SideBySide, portable_name, resolve_hook_point, resolve_hook_points, width
from hfsae.hooks.layout import DecoderLayout
from hfsae.hooks.side_by_side import below

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def hook_points_of(config: SAEConfig, model: PreTrainedModel) -> tuple[HookPoint, HookPoint]:
    """Where in a model an SAE reads and where it writes: the same place unless it is a transcoder.

    Args:
        config: The SAE's config.
        model: A causal LM.

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
        point = resolve_hook_point(model, name)
        if (there := width(model, point)) != size:
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


def resolve_joined(model: nn.Module, name: str) -> str:
    """The canonical name of a place, or of places that are joined.

    Raises:
        HookPointError: If the model lacks one.
        ValueError: If one comes twice.
    """
    if isinstance(model, SideBySide):
        places = resolve_in_each(model, name)
        if len(places) > 1:
            raise ValueError(f"hook_point={name!r} names several places: one crosscoder reads one of every model.")
        return places[0]
    parts = [str(resolve_hook_point(model, part.strip())) for part in places_in(name)]
    if len(set(parts)) < len(parts):
        raise ValueError(f"hook_point={name!r} joins a place with itself: name each once.")
    return join_places(parts)


def resolve_in_each(models: SideBySide, name: str) -> list[str]:
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


def own_place(model: nn.Module, place: str) -> str:
    """A place as the models that stand side by side call it: once, where it is the same for all of them."""
    if not isinstance(model, SideBySide):
        return place
    own = [part.removeprefix(f"{model.part_of(part)}.") for part in places_in(place)]
    return own[0] if len(set(own)) == 1 else join_places(own)


def portable_names(model: nn.Module, place: str) -> str | None:
    """The portable name of a place, or those of places that are joined; None where one has none."""
    names = [portable_name(model, part) for part in places_in(place)]
    return None if None in names else own_place(model, join_places(map(str, names)))


def source_names(model: nn.Module, place: str) -> str | None:
    """What the sources of a crosscoder are called, joined: models side by side by their names, else places."""
    return join_places(model.models) if isinstance(model, SideBySide) else portable_names(model, place)


def separate(places: Iterable[str | None]) -> list[str]:
    """Each place by itself and once, in the order of their first mention; None is none."""
    return list(dict.fromkeys(part for place in places if place is not None for part in places_in(place)))


def rows_at(rows: Mapping[str, Tensor], place: str) -> Tensor:
    """The rows (N, d) of a place, or of places that are joined."""
    parts = [rows[part] for part in places_in(place)]
    return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]


def widths_at(widths: Mapping[str, int], place: str) -> list[int]:
    """The size of the activations at a place, or at each of those that are joined."""
    return [widths[part] for part in places_in(place)]


def refuse_other_sources(config: SAEConfig, place: str, widths: list[int], label: str) -> None:
    """Refuses an SAE of one source where several places are joined, and a crosscoder whose sources are others.

    Raises:
        ValueError: Names the SAE by its label.
    """
    parts, own = places_in(place), config.input_widths
    if len(parts) > 1 and len(own) == 1:
        raise ValueError(
            f"{label} reads one place, but {place} joins {len(parts)}: choose a crosscoder "
            "(architecture='crosscoder'), or part the places with commas for an SAE each."
        )
    if len(parts) == 1 and len(own) > 1 and sum(own) == sum(widths):
        return  # rows that were joined before they came
    if own != widths and len(own) > 1:
        raise ValueError(
            f"{label} has source_widths={own}, but the activations at {place} have {widths} dimensions: join the "
            "places of its sources with +, in their order."
        )


def refuse_other_models(config: SAEConfig, model: nn.Module, label: str) -> None:
    """Refuses a crosscoder whose sources are not the models that stand side by side, in their order.

    Raises:
        ValueError: Names the SAE by its label.
    """
    names, given = list(getattr(config, "source_names", [])), list(getattr(model, "models", {}))
    if names != given:
        raise ValueError(f"{label} has the sources {', '.join(names)}, but the models are {', '.join(given)}.")


def left_out_of(config: SAEConfig, model: PreTrainedModel, tokenizer: "PreTrainedTokenizerBase | None") -> LeftOut:
    """Which tokens an SAE's config leaves out of this model's text."""
    special = _special_token_ids(config, model, tokenizer) if config.exclude_special_tokens else []
    return LeftOut(tuple(special), tuple(config.exclude_positions))


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
