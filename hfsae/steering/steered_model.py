"""`steer_model`: a language model with features turned up or down for good, which needs no hfsae to run."""

import json
import logging
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hfsae.analysis import FeatureCollection, TokenTexts, steer
from hfsae.analysis.interventions import activation_units
from hfsae.analysis.weights import chosen_features
from hfsae.attachment import refuse_swapped
from hfsae.autoencoder import SparseAutoencoder
from hfsae.data.left_out import in_words
from hfsae.data.tokenizer_identity import refuse_no_tokenizer
from hfsae.evaluation.text_batches import Text
from hfsae.functional.precision import own_default_device
from hfsae.hooks import HookPoint, inner_model
from hfsae.hooks.quantised import holds_quantised_weights, quantised_in_place
from hfsae.identity import weights_sha256
from hfsae.in_model import hook_points_of
from hfsae.label_file import Label
from hfsae.language_model import origin_of
from hfsae.progress import quietly
from hfsae.saving import folder_at_once
from hfsae.steering.bias_places import BiasPlace, NoBiasError, as_if_biased, biased, find_bias_place
from hfsae.steering.steered_card import CARD_FILE, RECORD_FILE, render_steered_card
from hfsae.steering.text_effect import TextEffect, text_effects
from hfsae.storage import told_as_system_error

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

Form = Literal["auto", "model", "adapter"]

_TOKENS_TOLD = 10


@dataclass(frozen=True)
class SteeredModel:
    """What `steer_model` wrote.

    Attributes:
        folder: Where.
        form: `"model"`, which holds all weights, or `"adapter"`, which PEFT puts on the base model.
        record: What `steering.json` says: features, strengths, the changed tensor, and what was measured.
    """

    folder: Path
    form: str
    record: dict[str, Any]


@own_default_device()
def steer_model(
    model: PreTrainedModel,
    sae: SparseAutoencoder,
    strengths: Mapping[int, float],
    output: str | os.PathLike,
    *,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    maxima: FeatureCollection | Mapping[int, float] | None = None,
    form: Form = "auto",
    data: "Text | None" = None,
    data_name: str | None = None,
    max_tokens: int = 20_000,
    batch_size: int = 16,
    labels: Mapping[int, Label] | None = None,
    sae_name: str | None = None,
    license: str | None = None,
) -> SteeredModel:
    """Writes a language model that is steered by itself: the features' directions are added to one of its biases.

    The folder holds a config, weights, tokenizer, generation config and card, as `AutoModelForCausalLM` loads them.
    Where the model's class has no bias at the place, it is a LoRA adapter whose bias does the same. Both act as
    `steer` does, at every token. What the SAE's config leaves out (position 0, special tokens) is steered too, which a
    bias cannot tell apart.

    Args:
        model: The causal LM that the SAE reads, not wrapped. It is the same afterwards.
        sae: The SAE whose features are meant.
        strengths: Strength by feature, as for `steer`; a negative one works against it.
        output: A folder that is not there yet, or is empty. It appears whole or not at all.
        tokenizer: Written along; needed where `data` are texts.
        maxima: Each feature's largest activation, or a collection that knows it: strengths then are multiples of it.
        form: `"model"`, `"adapter"`, or `"auto"`: a model where its class can hold the bias, else an adapter.
        data: Text on which the effect is measured for the card, as `hfsae.evaluate_sae` takes it; None: not measured.
        data_name: What the card calls it.
        max_tokens: Tokens of it.
        batch_size: Sequences a batch.
        labels: What features are called.
        sae_name: What the card calls the SAE: a Hub repository, or a folder.
        license: A licence id of the Hub, for the card.

    Returns:
        What was written.

    Raises:
        NoBiasError: If no bias adds a constant where the SAE writes; says what stands between.
        ValueError: For no features or unknown ones, or for strengths that are no finite numbers or change nothing.
            Likewise for an SAE whose features write something else at each token, an adapter around the model, a
            wrapper, or an impossible form. All before anything is measured.
        FileExistsError: If the folder holds something.
        ImportError: If an adapter is to be written and PEFT is not installed.

    Example:
        >>> steer_model(model, sae, {17: 2.0}, "steered", tokenizer=tokenizer, maxima=collection)  # doctest: +SKIP
        >>> AutoModelForCausalLM.from_pretrained("steered")  # doctest: +SKIP
    """
    if tokenizer is not None:
        refuse_no_tokenizer(tokenizer)
    place_to_write = Path(output)
    point, place, form = found_place(model, sae, list(strengths), place_to_write, form)
    vector, units = steering_vector(sae, strengths, maxima)
    effect: dict[str, Any] | None = None
    if data is not None:
        told: dict[str, Any] = {"tokenizer": tokenizer, "max_tokens": max_tokens, "batch_size": batch_size}
        effect = {"text": data_name, **_measured(model, sae, units, place, vector, data, **told)}
    record = {
        "format": 1,
        "form": form,
        "base_model": sae.config.base_model or model.name_or_path or None,
        "base_model_revision": sae.config.base_model_revision,
        "class": type(model).__name__,
        "place": str(point),
        "tensor": place.tensor,
        "config_fields": dict(place.config_fields) if form == "model" else {},
        "dtype": str(model.dtype).removeprefix("torch."),
        "vector_norm": float(vector.norm()),
        "sae": sae_name,
        "weights_sha256": weights_sha256(sae),
        "left_out": in_words(sae.config.exclude_special_tokens, sae.config.exclude_positions),
        "features": [_said(sae, feature, units[feature], maxima, (labels or {}).get(feature)) for feature in units],
        "license": license,
        "effect": effect,
    }
    with folder_at_once(place_to_write) as beside, quietly():
        if form == "model":
            with biased(model, place, vector), told_as_system_error(place_to_write):
                model.save_pretrained(beside)
        else:
            _save_adapter(model, sae, place, vector, beside)
        if tokenizer is not None:
            tokenizer.save_pretrained(beside)
        (beside / RECORD_FILE).write_text(json.dumps(record, indent=2), encoding="utf-8")
        (beside / CARD_FILE).write_text(str(render_steered_card(record)), encoding="utf-8")
    return SteeredModel(place_to_write, form, record)


def found_place(
    model: PreTrainedModel, sae: SparseAutoencoder, features: Sequence[int], output: Path, form: Form
) -> tuple[HookPoint, BiasPlace, Form]:
    """Where the SAE writes, the bias that adds there, and the form: all that can be refused before work begins.

    Args:
        model: As for `steer_model`.
        sae: The SAE.
        features: The features that are meant.
        output: Where the model is to be written.
        form: As for `steer_model`.

    Raises:
        NoBiasError: As `steer_model`, as the errors below.
        ValueError: For unknown features, a wrapper, an adapter, or an impossible form.
        FileExistsError: If the folder holds something.
    """
    refuse_swapped(sae, model)
    refuse_before_loading(sae, features, output, form)
    _refuse_wrapped(model)
    point = hook_points_of(sae.config, model)[1]
    place = find_bias_place(model, point)
    return point, place, _chosen_form(form, place, model)


def refuse_before_loading(sae: SparseAutoencoder, features: Sequence[int], output: Path, form: str) -> None:
    """Refuses what can be refused without the language model; arguments and errors as those of `found_place`."""
    _refuse_what_is_there(output)
    if form not in get_args(Form):
        raise ValueError(f"form is {form!r}, expected one of {', '.join(map(repr, get_args(Form)))}.")
    chosen_features(sae, features)
    _refuse_scales_by_token(sae)


def steering_vector(
    sae: SparseAutoencoder,
    strengths: Mapping[int, float],
    maxima: FeatureCollection | Mapping[int, float] | None = None,
) -> tuple[Tensor, dict[int, float]]:
    """What `steer` adds to every activation: one vector (d_out,) float32, and the strengths in units of activation.

    Args:
        sae: The SAE.
        strengths: As for `steer`.
        maxima: As for `steer`.

    Raises:
        ValueError: As `steer_model`.
    """
    features = chosen_features(sae, list(strengths))
    _refuse_scales_by_token(sae)
    units = {feature: strength * activation_units(sae, feature, maxima) for feature, strength in strengths.items()}
    values = torch.tensor([units[feature] for feature in strengths], dtype=torch.float32)
    if not values.isfinite().all():
        raise ValueError(f"strengths are {list(strengths.values())}: expected finite numbers.")
    directions = sae.feature_directions.detach()[features.to(sae.device)].float().cpu()
    vector = (values[:, None] * directions).sum(0)
    if not vector.any():
        raise ValueError(f"strengths {list(strengths.values())} add nothing: the model would be the same.")
    return vector, units


def _refuse_what_is_there(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} holds something already: name a new folder, or move that one away.")


def _refuse_scales_by_token(sae: SparseAutoencoder) -> None:
    if sae.config.input_transform in ("layer_norm", "constant_norm"):
        raise ValueError(
            f"with input_transform={sae.config.input_transform!r} a feature writes something else at each token, "
            "which no bias does: use hfsae.steer."
        )


def _refuse_wrapped(model: nn.Module) -> None:
    inner = inner_model(model)
    if inner is not model:
        raise ValueError(
            f"the language model is inside of a {type(model).__name__}: pass the model itself; of an adapter, merge "
            "it first with model.merge_and_unload()."
        )
    if getattr(inner, "peft_config", None):
        raise ValueError("the language model has a PEFT adapter: merge it into the weights first, then steer.")
    if any(parameter.is_meta for parameter in inner.parameters()):
        raise ValueError(
            f"weights of the {type(inner).__name__} are offloaded, where no bias can be changed: load the language "
            "model without a device map that names 'cpu' beside other devices, or 'disk'."
        )
    if quantised_in_place(inner):
        raise ValueError(
            f"the {type(inner).__name__} was quantised after it was loaded, which nobody who loads a steered model "
            "knows: load it with from_pretrained(..., quantization_config=...), or steer with hfsae.steer."
        )


def _chosen_form(form: Form, place: BiasPlace, model: PreTrainedModel) -> Form:
    if form == "auto":
        form = "model" if place.fits_weights else "adapter"
    if form == "model" and not place.fits_weights:
        why = "its weights are quantised" if holds_quantised_weights(model) else "its class has none"
        raise NoBiasError(f"{place.tensor} of {type(model).__name__} cannot be: {why}. form='adapter' is exact there.")
    if form == "adapter" and not place.takes_adapter:
        raise NoBiasError(f"{place.module} is no matrix, and only those take a LoRA adapter: form='model' is exact.")
    return form


def _said(
    sae: SparseAutoencoder,
    feature: int,
    unit: float,
    maxima: FeatureCollection | Mapping[int, float] | None,
    label: Label | None,
) -> dict[str, Any]:
    relative = None if maxima is None else unit / activation_units(sae, feature, maxima)
    return {
        "feature": feature,
        "strength": unit,
        "times_maximum": relative,
        "label": None if label is None else label.text,
    }


def _measured(
    model: PreTrainedModel,
    sae: SparseAutoencoder,
    units: Mapping[int, float],
    place: BiasPlace,
    vector: Tensor,
    data: Text,
    *,
    tokenizer: "PreTrainedTokenizerBase | None",
    **options: Any,
) -> dict[str, Any]:
    """The effect on a text, and how far it is from that of `steer`, which leaves some tokens as they are."""

    def written() -> Any:
        return biased(model, place, vector) if place.fits_weights else as_if_biased(model, place, vector)

    def hooked() -> Any:
        return steer(model, sae, units, tokenizer=tokenizer)

    effect = text_effects(model, sae, data, {"": written}, tokenizer=tokenizer, **options)[""]
    apart = text_effects(model, sae, data, {"": written}, reference=hooked, tokenizer=tokenizer, **options)[""]
    texts = None if tokenizer is None else TokenTexts(tokenizer)

    def moved(raised: bool) -> list[dict[str, Any]]:
        return [_token(effect, token, texts) for token in effect.most_moved(_TOKENS_TOLD, raised=raised)]

    found = {
        "n_predictions": effect.n_predictions,
        "kl": effect.kl,
        "top_changed": effect.top_changed,
        "perplexity": effect.perplexity,
        "steered_perplexity": effect.changed_perplexity,
        "kl_from_steer": apart.kl,
        "raised": moved(True),
        "lowered": moved(False),
    }
    odd = [name for name, value in found.items() if isinstance(value, float) and not math.isfinite(value)]
    return {**found, **dict.fromkeys(odd)}


def _token(effect: TextEffect, token: int, texts: TokenTexts | None) -> dict[str, Any]:
    before, after = effect.of_tokens([token])
    return {"token_id": token, "text": None if texts is None else texts([token])[0], "before": before, "after": after}


def _save_adapter(
    model: PreTrainedModel, sae: SparseAutoencoder, place: BiasPlace, vector: Tensor, folder: Path
) -> None:
    """Writes a LoRA adapter whose matrices are 0 and whose bias is the vector."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ImportError(
            f"{type(model).__name__} has no bias at the place, and an adapter needs PEFT: pip install 'hfsae[peft]'."
        ) from error
    config = LoraConfig(r=1, lora_alpha=1, lora_bias=True, target_modules=[place.module], task_type="CAUSAL_LM")
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that such an adapter cannot be merged
        try:
            adapted = get_peft_model(model, config)
        except ValueError as error:  # PEFT has a layer of its own for each kind of quantisation
            raise NoBiasError(
                f"PEFT gives {place.module} no adapter with a bias: {error}. Steer with hfsae.steer there."
            ) from error
    try:
        module: Any = model.get_submodule(place.module)
        with torch.no_grad():
            module.lora_A["default"].weight.zero_()
            module.lora_B["default"].weight.zero_()
            module.lora_B["default"].bias.copy_(vector)
        own = adapted.peft_config["default"]
        origin = origin_of(sae.config) if sae.config.base_model else None
        if origin is not None:
            own.base_model_name_or_path, own.revision = origin.name, origin.revision
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a bias has one axis, which PEFT takes for a matrix that is not whole
            adapted.save_pretrained(str(folder))
    finally:
        adapted.unload()
