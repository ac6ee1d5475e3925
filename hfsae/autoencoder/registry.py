"""Which architectures there are. Registering one makes `SAE.from_pretrained`, `AutoModel` and training know it.

Those of other installed packages (entry points `hfsae.architectures`) are imported when they are asked for.
"""

from typing import TypeVar

from transformers import AutoConfig, AutoModel

from hfsae import guests
from hfsae.autoencoder.model import SparseAutoencoder
from hfsae.configuration import MODEL_TYPE_PREFIX, SAEConfig
from hfsae.suggestions import did_you_mean

SomeSAE = TypeVar("SomeSAE", bound=SparseAutoencoder)

_REGISTERED: dict[str, type[SparseAutoencoder]] = {}


def register(sae_class: type[SomeSAE]) -> type[SomeSAE]:
    """Makes `SAE.from_pretrained`, `AutoConfig`, `AutoModel`, training and the command line know an architecture.

    Args:
        sae_class: A subclass of `SAE` whose `config_class.model_type` is `"hfsae_<name>"`.

    Returns:
        The class, so that `@register` can stand above it.

    Raises:
        ValueError: If the model type does not start with `hfsae_`.
    """
    config_class = sae_class.config_class
    if not config_class.model_type.startswith(MODEL_TYPE_PREFIX):
        raise ValueError(f"model_type must be '{MODEL_TYPE_PREFIX}<name>', got {config_class.model_type!r}.")
    AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    AutoModel.register(config_class, sae_class, exist_ok=True)
    _REGISTERED[architecture_name(config_class)] = sae_class
    return sae_class


def architecture_name(config: SAEConfig | type[SAEConfig]) -> str:
    """`"topk"` for a `TopKSAEConfig`, class or object."""
    return config.model_type.removeprefix(MODEL_TYPE_PREFIX)


def architectures() -> dict[str, type[SparseAutoencoder]]:
    """Every architecture by name: the registered ones, and what other installed packages offer."""
    for sae_class in guests.load_guests(guests.ARCHITECTURES).values():
        register(sae_class)
    return dict(_REGISTERED)


def architecture_names() -> list[str]:
    """The names of `architectures()`, without an import of what other packages offer."""
    return sorted({*_REGISTERED, *guests.names(guests.ARCHITECTURES)})


def class_of(architecture: str) -> type[SparseAutoencoder]:
    """The class of an architecture.

    Raises:
        ValueError: If there is no such architecture; names those there are.
        hfsae.guests.BrokenGuestError: If an installed package offers it, but cannot be imported.
    """
    if architecture not in _REGISTERED:
        guest = guests.load_guest(guests.ARCHITECTURES, architecture)
        if guest is not None:
            register(guest)
    if architecture not in _REGISTERED:
        known = architecture_names()
        hint = did_you_mean(architecture, known)
        raise ValueError(f"unknown architecture {architecture!r}; there are {', '.join(known)}.{hint}")
    return _REGISTERED[architecture]


def config_class_of(architecture: str) -> type[SAEConfig]:
    """The config class of an architecture; raises as `class_of`."""
    return class_of(architecture).config_class
