"""The language model of an SAE: loading the one that a config names, and its tokenizer."""

import os
from typing import TYPE_CHECKING, Any

from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from hfsae.configuration import SAEConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_base_model(config: SAEConfig, **kwargs: Any) -> PreTrainedModel:
    """The language model that an SAE reads, at the commit it was trained on, in evaluation mode.

    Published configs name a Hub id. That of a local run may name a folder (`examples/tiny_lm`), as long as it is
    there.

    Args:
        config: An SAE's config.
        **kwargs: For `AutoModelForCausalLM.from_pretrained`: `dtype`, `device_map`, `revision` for another commit, ...

    Raises:
        ValueError: If the config names no base model.
        FileNotFoundError: If it names a folder that is gone.
        OSError: If the Hub has no such model, or cannot be reached.
    """
    return _load(AutoModelForCausalLM, config, kwargs)


def load_tokenizer(config: SAEConfig, **kwargs: Any) -> "PreTrainedTokenizerBase":
    """The tokenizer of `load_base_model`, at the same commit.

    Args:
        config: An SAE's config.
        **kwargs: For `AutoTokenizer.from_pretrained`.

    Raises:
        ValueError, FileNotFoundError, OSError: As `load_base_model`.
    """
    return _load(AutoTokenizer, config, kwargs)


def _load(auto_class: Any, config: SAEConfig, kwargs: dict[str, Any]) -> Any:
    name = config.base_model
    if name is None:
        raise ValueError(
            "this SAE's config names no base model (base_model is None: the model is not on the Hub). Load the "
            "language model yourself, with AutoModelForCausalLM.from_pretrained(...), and run sae.attach(model)."
        )
    if _must_be_a_folder(name) and not os.path.isdir(name := os.path.expanduser(name)):
        raise FileNotFoundError(
            f"this SAE was trained on a language model in the folder {name}, which is not there. Put it back, set "
            "sae.config.base_model, or load the model yourself and run sae.attach(model)."
        )
    if config.base_model_revision is not None:
        kwargs.setdefault("revision", config.base_model_revision)
    try:
        return auto_class.from_pretrained(name, **kwargs)
    except OSError as error:
        at = f" at {kwargs['revision']}" if kwargs.get("revision") else ""
        raise OSError(
            f"the base model {name!r}{at} could not be loaded: there is no such folder here, and the Hub gave nothing "
            f"({error}). Check the network and `hf auth login`, or load the model yourself and run sae.attach(model)."
        ) from error


def _must_be_a_folder(name: str) -> bool:
    return os.path.isabs(name) or name.startswith((".", "~")) or name.count("/") > 1 or "\\" in name
