"""Which architectures there are. Registering one makes `SAE.from_pretrained`, `AutoModel` and training know it."""

from transformers import AutoConfig, AutoModel

from hfsae.configuration import SAEConfig
from hfsae.modeling import SAE
from hfsae.suggestions import did_you_mean

_PREFIX = "hfsae_"
_REGISTERED: dict[str, type[SAE]] = {}


def register(sae_class: type[SAE]) -> type[SAE]:
    """Makes `SAE.from_pretrained`, `AutoConfig`, `AutoModel`, training and the command line know an architecture.

    Args:
        sae_class: A subclass of `SAE` whose `config_class.model_type` is `"hfsae_<name>"`.

    Returns:
        The class, so that `@register` can stand above it.

    Raises:
        ValueError: If the model type does not start with `hfsae_`.
    """
    config_class = sae_class.config_class
    if not config_class.model_type.startswith(_PREFIX):
        raise ValueError(f"model_type must be '{_PREFIX}<name>', got {config_class.model_type!r}.")
    AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    AutoModel.register(config_class, sae_class, exist_ok=True)
    _REGISTERED[architecture_name(config_class)] = sae_class
    return sae_class


def architecture_name(config: SAEConfig | type[SAEConfig]) -> str:
    """`"topk"` for a `TopKSAEConfig`, class or object."""
    return config.model_type.removeprefix(_PREFIX)


def architectures() -> dict[str, type[SAE]]:
    """Every registered architecture by name."""
    return dict(_REGISTERED)


def config_class_of(architecture: str) -> type[SAEConfig]:
    """The config class of an architecture.

    Raises:
        ValueError: If there is no such architecture; names those there are.
    """
    if architecture not in _REGISTERED:
        hint = did_you_mean(architecture, _REGISTERED)
        raise ValueError(f"unknown architecture {architecture!r}; there are {', '.join(sorted(_REGISTERED))}.{hint}")
    return _REGISTERED[architecture].config_class
