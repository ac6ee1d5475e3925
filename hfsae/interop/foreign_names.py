"""Language models and places in them as other projects call them, in our names.

A place becomes canonical (`transformer.h.8.output`) without the language model: a skeleton without weights is asked
where the place is. It is made from the model's own config where that lies on this machine (a folder, or the Hub's
cache). Else it is made from the config of the family that the model's name tells.
"""

import json
import re
from functools import lru_cache

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from hfsae.configuration import SAEConfig
from hfsae.hooks import HookPoint, HookPointError, resolve_hook_point, transformer_lens_name
from hfsae.hooks.names import portable_to_transformer_lens

# TransformerLens' short names; a name that a rule below covers is left out.
_HUB_IDS = {
    "gpt2-small": "openai-community/gpt2",
    "gpt2": "openai-community/gpt2",
    "gpt2-medium": "openai-community/gpt2-medium",
    "gpt2-large": "openai-community/gpt2-large",
    "gpt2-xl": "openai-community/gpt2-xl",
    "mistral-7b": "mistralai/Mistral-7B-v0.1",
    "mistral-7b-instruct": "mistralai/Mistral-7B-Instruct-v0.1",
    "gelu-1l": "NeelNanda/GELU_1L512W_C4_Code",
}
# Organisations by what a model's short name starts with.
_ORGANISATIONS = {
    "pythia-": "EleutherAI",
    "gemma-": "google",
    "meta-llama-": "meta-llama",
    "llama-": "meta-llama",
    "qwen": "Qwen",
    "deepseek-": "deepseek-ai",
    "tinystories-": "roneneldan",
    "tiny-stories-": "roneneldan",
    "gpt-oss-": "openai",
}
# Model types by what a model's name holds, the first that fits.
_FAMILIES = (
    (r"gpt-?2(?![\d.])", "gpt2"),
    (r"pythia|gpt-neox", "gpt_neox"),
    (r"gemma-3", "gemma3_text"),
    (r"gemma-2-", "gemma2"),
    (r"gemma", "gemma"),
    (r"llama|vicuna|smollm2?-", "llama"),
    (r"mixtral", "mixtral"),
    (r"mistral", "mistral"),
    (r"qwen3\.5.*-a\d+b", "qwen3_5_moe_text"),
    (r"qwen3\.5", "qwen3_5_text"),
    (r"qwen3.*-a\d+b", "qwen3_moe"),
    (r"qwen3", "qwen3"),
    (r"qwen", "qwen2"),
    (r"gpt-oss", "gpt_oss"),
    (r"phi-[12]", "phi"),
    (r"phi-", "phi3"),
    (r"olmo-2", "olmo2"),
    (r"opt-", "opt"),
    (r"gpt-j", "gptj"),
)
# What TransformerLens calls a place.
_LENS_NAME = re.compile(r"(?:\w+\.)*hook_\w+")
# Places that only some projects name, in portable names.
_SYNONYMS = {r"blocks\.(\d+)\.attn\.hook_z_concat": "attn_z", r"blocks\.(\d+)\.hook_z": "attn_z"}


def base_model_id(name: str | None) -> str | None:
    """The Hub id of a language model that is called as TransformerLens calls it: `"gpt2-small"`, `"gemma-2-2b"`.

    Example:
        >>> from hfsae.interop.foreign_names import base_model_id
        >>> base_model_id("pythia-70m-deduped")
        'EleutherAI/pythia-70m-deduped'
    """
    if not name or "/" in name:
        return name or None
    if (known := _HUB_IDS.get(name.lower())) is not None:
        return known
    organisation = next((org for start, org in _ORGANISATIONS.items() if name.lower().startswith(start)), None)
    return f"{organisation}/{name}" if organisation else name


def canonical(place: str | None, base_model: str | None) -> str | None:
    """The canonical name of a place, or the name itself where the model's family is not known or lacks it.

    Args:
        place: A portable, TransformerLens or canonical name, or the path of a module, which means its output.
        base_model: Hub id of the language model.

    Example:
        >>> from hfsae.interop.foreign_names import canonical
        >>> canonical("blocks.8.hook_resid_pre", "openai-community/gpt2")
        'transformer.h.8.input'
    """
    if not place:
        return None
    for pattern, role in _SYNONYMS.items():
        place = re.sub(f"^{pattern}$", rf"{role}.\1", place)
    skeleton = _skeleton_for(base_model, place)
    if skeleton is None:
        return place
    for name in (place, f"{place}.output"):
        try:
            return str(resolve_hook_point(skeleton, name))
        except HookPointError:
            continue
    return place


def transformer_lens(place: str | None, base_model: str | None) -> str | None:
    """The TransformerLens name of a place, or None where there is none or the model's family is not known."""
    if place is None or _LENS_NAME.fullmatch(place):
        return place
    skeleton = _skeleton_for(base_model, place)
    if skeleton is None:
        return None
    try:
        return transformer_lens_name(skeleton, place)
    except HookPointError:
        return None


def transformer_lens_names(
    config: SAEConfig, hook_name: str | None = None, hook_name_out: str | None = None
) -> tuple[str | None, str | None]:
    """Where an SAE reads and where a transcoder writes, in TransformerLens' names; None where the config says nothing.

    Args:
        config: An SAE's config.
        hook_name: The first name, where it is known already.
        hook_name_out: The second.

    Raises:
        ValueError: If a place has no TransformerLens name, or the language model is not known well enough to tell; of
            a crosscoder.
            Under another name SAELens would run the model without the SAE and say nothing.
    """
    if len(config.input_widths) > 1:
        raise ValueError("a crosscoder has several places, of which that has no room: take one, sae.source(name).")
    target = config.target_hook_point if config.is_transcoder else None
    portable = (config.training or {}).get("portable_name")
    found = []
    for argument, given, place, recorded in (
        ("hook_name", hook_name, config.hook_point, portable),
        ("hook_name_out", hook_name_out, target, None),
    ):
        name = given or transformer_lens(place, config.base_model) or _of_portable(recorded, place)
        if name is None and place is not None:
            model = config.base_model or "a model without a name"
            raise ValueError(
                f"it is not known what TransformerLens calls {place} of {model}: pass {argument}=..., such as "
                "'blocks.8.hook_resid_post'."
            )
        found.append(name)
    return found[0], found[1]


def _of_portable(name: str | None, place: str | None) -> str | None:
    """The TransformerLens name of a place whose portable name was recorded in training, if that is still its own."""
    if not isinstance(name, str) or place is None or layer_of(place) != layer_of(f".{name}"):
        return None
    return portable_to_transformer_lens(name)


def module_path(place: str | None, base_model: str | None) -> str | None:
    """The path of a place's module inside the base model, without its head: `"layers.3.mlp"`, for outputs only."""
    place = canonical(place, base_model)
    if place is None:
        return None
    try:
        point = HookPoint.parse(place)
    except HookPointError:
        return None
    skeleton = _skeleton_for(base_model, place)
    prefix = f"{skeleton.base_model_prefix}." if skeleton is not None else ""  # type: ignore[union-attr]
    return point.path.removeprefix(prefix)


def layer_of(place: str | None) -> int | None:
    """The layer that a place's name holds.

    Example:
        >>> from hfsae.interop.foreign_names import layer_of
        >>> layer_of("model.layers.12.mlp.output")
        12
    """
    found = re.search(r"\.(\d+)(?:\.|$)", place or "")
    return int(found[1]) if found else None


def _skeleton_for(base_model: str | None, place: str) -> nn.Module | None:
    """A model without weights that has its modules where the base model has them; None if neither is known."""
    if base_model and (config := _own_config(base_model)) is not None:
        return _skeleton_of(config.to_json_string(use_diff=False), type(config))
    name = (base_model or "").split("/")[-1].lower()
    family = next((family for pattern, family in _FAMILIES if re.search(pattern, name)), None)
    return _skeleton(family, (layer_of(place) or 0) + 1) if family else None


def _own_config(base_model: str) -> PreTrainedConfig | None:
    """The decoder's config, of a model in a folder or in the Hub's cache; the Hub itself is not asked."""
    try:
        config = AutoConfig.from_pretrained(base_model, local_files_only=True, trust_remote_code=False)
        return config.get_text_config()
    except Exception:  # whatever a stranger's config does, it then says nothing of places
        return None


@lru_cache(maxsize=16)
def _skeleton_of(config: str, kind: type[PreTrainedConfig]) -> nn.Module | None:
    """A model of a config, given as JSON so that equal ones are made once; None if there is no such class."""
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(kind.from_dict(json.loads(config)))
    except Exception:  # no causal LM, or a config that cannot be
        return None


@lru_cache(maxsize=64)
def _skeleton(family: str, layers: int) -> nn.Module:
    """A model of a family with as many layers and no weights."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, num_hidden_layers=layers))
