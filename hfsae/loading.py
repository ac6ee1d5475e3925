"""Strict loading of SAEs: the class the config names, every tensor accounted for, nothing unpickled."""

import os
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import transformers.utils.hub
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig, PreTrainedModel

from hfsae import guests
from hfsae.autoencoder.model import SparseAutoencoder
from hfsae.autoencoder.strict import (
    class_for,
    refuse_mismatch,
    refuse_offloaded,
    refuse_other_models,
    refuse_unusable,
)
from hfsae.configuration import MODEL_TYPE_PREFIX, SAEConfig
from hfsae.connection import cached_snapshot, failed, reachable, refusal
from hfsae.folders import found_again
from hfsae.progress import quietly
from hfsae.sae_folders import must_be_local, sae_folders
from hfsae.storage import DamagedFileError, check_sum, naming, read_header, read_json, sha256_of
from hfsae.suggestions import refuse_misspelled

_HUB_KEYS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")
_WEIGHT_KEYS = ("dtype", "torch_dtype", "quantization_config")
_PLACEMENT_KEYS = ("device_map", "max_memory", "offload_folder", "offload_buffers")
_OTHER_KEYS = (
    "config",
    "output_loading_info",
    "allow_pickle",
    "architecture",
    "attn_implementation",
    "use_safetensors",
)

# Where torch's own CPU allocator puts tensors.
_ALIGNMENT = 64

# Values in the weights of SAEs whose tensors of the wrong size are named: 1 GB in float32.
_LARGEST_NAMED = 2**28

_SHA256 = re.compile("[0-9a-f]{64}")


class UnknownArchitectureError(ValueError):
    """An SAE of an architecture that is not registered here."""


# Folders that an error message names, at most.
_MOST_FOLDERS = 20


@reachable()
def load_sae(
    source: str | os.PathLike,
    *args: Any,
    wanted: type[SparseAutoencoder] = SparseAutoencoder,
    config: SAEConfig | None = None,
    output_loading_info: bool = False,
    **kwargs: Any,
) -> Any:
    """Loads an SAE; `SAE.from_pretrained` of the class `wanted`, whose arguments these are."""
    if args:
        raise TypeError("SAE.from_pretrained takes keyword arguments only, besides the name or path.")
    if kwargs.get("use_safetensors") is False:
        raise ValueError("SAEs are read from safetensors only: pickled weights can run code when they are opened.")
    _refuse_misspelled(wanted, kwargs)
    allow_pickle = kwargs.pop("allow_pickle", False)
    if config is not None and not isinstance(config, PreTrainedConfig):
        raise TypeError(
            f"config= takes an SAEConfig, got {config!r}: load one with AutoConfig.from_pretrained, or give its "
            "fields by name."
        )
    if config is None:
        if not holds_config(source, kwargs):
            sae = _load_foreign(source, wanted, kwargs, allow_pickle)
            return (sae, {}) if output_loading_info else sae
        config, kwargs = _load_config(source, _at_one_commit(source, kwargs))
        if (commit := getattr(config, "_commit_hash", None)) is not None and not os.path.isdir(source):
            kwargs["revision"] = commit  # older transformers: see `_at_one_commit`
    elif both := sorted(kwargs.keys() & {option.name for option in fields(config)} - {*_WEIGHT_KEYS, *_OTHER_KEYS}):
        raise ValueError(f"{', '.join(both)} cannot be given beside config=, which says it already: set it there.")
    target: Any = class_for(config, wanted, source)
    _find_folders_again(config, source, kwargs.get("subfolder"))
    # What does not fit is let through here so that `refuse_mismatch` can name it, unless a config that claims to be
    # huge would have its claim allocated first.
    named = config.n_features * (config.d_in + config.d_out) <= _LARGEST_NAMED
    kwargs |= {"use_safetensors": True, "ignore_mismatched_sizes": named}
    inherited: Any = super(SparseAutoencoder, target)
    for path in _weights_files(source, kwargs) if os.path.isdir(source) else ():
        check_sum(path.parent, path.name)
    try:
        with quietly(), naming(f"the config of {source}", (AttributeError, KeyError, IndexError, OverflowError)):
            sae, info = inherited.from_pretrained(source, config=config, output_loading_info=True, **kwargs)
    except SafetensorError as error:
        raise _damaged(_weights_files(source, kwargs), error) from error
    except RuntimeError as error:
        if named or "ignore_mismatched_sizes" not in str(error):
            raise
        sizes = f"d_in={config.d_in}, n_features={config.n_features}"
        raise ValueError(f"The weights of {source} do not match its config: they are not those of {sizes}.") from error
    refuse_mismatch(source, info)
    for path in _weights_files(source, kwargs):
        _check_download(path)
    refuse_offloaded(source, sae)
    refuse_unusable(source, sae)
    _align(sae)
    return (sae, info) if output_loading_info else sae


def _at_one_commit(source: str | os.PathLike, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments by which config and weights are of one commit: else somebody may push between the two.

    Of older versions of transformers the loaded config tells its commit instead.
    """
    resolve = getattr(transformers.utils.hub, "resolve_revision", None)
    if resolve is None or os.path.isdir(source):
        return kwargs
    where = {key: kwargs[key] for key in ("revision", "token", "cache_dir", "local_files_only") if key in kwargs}
    return {**kwargs, "revision": resolve(source, **where)}


def _refuse_misspelled(cls: type[PreTrainedModel], given: dict[str, Any]) -> None:
    """Raises for an argument that is none, before anything is fetched, where it is clear which one was meant.

    What nothing here resembles passes on to transformers, whose newer versions know more.
    """
    if "expansion_factor" in given:
        raise ValueError("expansion_factor cannot be overridden: the size of the saved weights says it.")
    known = {*_HUB_KEYS, *_WEIGHT_KEYS, *_PLACEMENT_KEYS, *_OTHER_KEYS, *_fields_of(SAEConfig)}
    refuse_misspelled(given, known, f"{cls.__name__}.from_pretrained")


def _fields_of(config_class: type[SAEConfig]) -> set[str]:
    """The fields of a config class and of all that derive from it, which include users' own."""
    own = {option.name for option in fields(config_class)}
    return own.union(*(_fields_of(derived) for derived in config_class.__subclasses__()))


@reachable()
def load_config(
    source: str | os.PathLike, *, fetch_weights: bool = False, allow_pickle: bool = False, **hub: Any
) -> SAEConfig:
    """The config of a saved or published SAE; its weights are not fetched.

    Args:
        source: Folder or Hub repository.
        fetch_weights: Whether SAEs of other projects are read too, which takes their weights: their configs do not
            say everything, where there are any.
        allow_pickle: Whether those weights may be pickles.
        **hub: `subfolder`, `revision`, `token`, `cache_dir`, `local_files_only`.

    Raises:
        ValueError: If it is not an SAE, or one of an architecture that only a newer hfsae knows.
        OSError: If there is nothing.
    """
    if fetch_weights and not holds_config(source, hub):
        return _load_foreign(source, SparseAutoencoder, hub, allow_pickle).config
    config = _load_config(source, hub)[0]
    _find_folders_again(config, source, hub.get("subfolder"))
    return config


def holds_config(source: str | os.PathLike, kwargs: dict[str, Any]) -> bool:
    """Whether a config of transformers' kind lies there, ours or another model's; other projects' SAEs have none.

    Raises:
        FileNotFoundError: If there is neither such a folder nor such a repository.
        OSError: If the repository cannot be looked into: no network, no access, no such revision.
    """
    name, hub = os.fspath(source), _sorted_out(kwargs)[0]
    if not os.path.exists(name):
        if must_be_local(name):
            raise FileNotFoundError(f"there is no folder {name} ({os.path.abspath(os.path.expanduser(name))}).")
        from hfsae.interop import catalogue

        if catalogue.located(name, hub.get("subfolder") or "")[0] != name:
            return False  # a release of the catalogue, which lists other projects' SAEs
    try:
        config, _ = PreTrainedConfig.get_config_dict(source, **hub)
    except OSError as error:
        _refuse_unless_foreign(name, hub, error)
        return False
    except (TypeError, AttributeError):  # transformers' for a JSON that is no object
        return False
    except RecursionError as error:
        raise ValueError(f"the config of {source} is nested too deeply.") from error
    return "model_type" in config


def _refuse_unless_foreign(name: str, hub: dict[str, Any], error: OSError) -> None:
    """Raises what is wrong with a place whose config could not be read, unless it just has none."""
    if os.path.exists(name):
        return
    cached = failed(error) or hub.get("local_files_only")
    if cached and cached_snapshot(name, hub.get("revision"), hub.get("cache_dir")) is not None:
        return
    if (refused := refusal(name, error)) is not None:
        raise refused from error
    if error.__cause__ is not None:
        raise error


def _load_foreign(source: str | os.PathLike, wanted: Any, kwargs: dict[str, Any], allow_pickle: bool = False) -> Any:
    """An SAE that another project saved."""
    from hfsae.interop.formats import UnknownFormatError, load_foreign

    hub, weights, rest = _sorted_out(kwargs)
    if weights.get("quantization_config") is not None:
        raise ValueError("quantisation is for SAEs in hfsae's own format: convert it first (hfsae convert).")
    rest.pop("use_safetensors", None)
    placement = {key: rest.pop(key, None) for key in _PLACEMENT_KEYS}
    try:
        return load_foreign(
            source,
            wanted,
            hub=hub,
            dtype=weights.get("dtype", weights.get("torch_dtype")),
            placement={key: value for key, value in placement.items() if value is not None},
            allow_pickle=allow_pickle,
            given=rest,
        )
    except (OSError, UnknownFormatError) as error:
        _name_the_folders(source, hub, error)
        raise


def _sorted_out(kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """How the Hub is asked, how weights are loaded, and config fields."""
    hub = {key: kwargs[key] for key in _HUB_KEYS if key in kwargs}
    weights = {key: kwargs[key] for key in _WEIGHT_KEYS if key in kwargs}
    return hub, weights, {key: value for key, value in kwargs.items() if key not in hub and key not in weights}


def _load_config(source: str | os.PathLike, kwargs: dict[str, Any]) -> tuple[SAEConfig, dict[str, Any]]:
    """The config, and the arguments that are left for the weights."""
    hub, weights, rest = _sorted_out(kwargs)
    # Else transformers would run a repository's code: its version 5.4 any, newer ones that of types not our own.
    rest["trust_remote_code"] = False
    try:
        with naming(f"the config of {source}"):
            try:
                loaded: Any = AutoConfig.from_pretrained(source, return_unused_kwargs=True, **hub, **rest)
            except ValueError:
                if not _bring_in_guest(source, hub):
                    raise
                loaded = AutoConfig.from_pretrained(source, return_unused_kwargs=True, **hub, **rest)
    except (OSError, ValueError) as error:
        _name_the_folders(source, hub, error)
        raise
    config, rest = loaded
    refuse_other_models(config, source)
    with naming(f"the config of {source}"):
        config.validate()  # overrides were set one by one: together they may contradict
    return config, {**hub, **weights, **rest}


def _bring_in_guest(source: str | os.PathLike, hub: dict[str, Any]) -> bool:
    """Imports the architecture of an SAE from the package that offers it; False where it is known already.

    Raises:
        UnknownArchitectureError: If no installed package offers it.
        hfsae.guests.BrokenGuestError: If the package that does cannot be imported.
    """
    stored, _ = PreTrainedConfig.get_config_dict(source, **hub)
    model_type, module = stored.get("model_type"), stored.get("defined_in")
    if not isinstance(model_type, str) or not f"{model_type}_".startswith(MODEL_TYPE_PREFIX):
        if "auto_map" in stored:  # transformers offers to run it
            raise ValueError(
                f"{source} holds a {model_type!r} model with code of its own, not a sparse autoencoder of hfsae. "
                "hfsae runs no code of a repository, not even with trust_remote_code: load it with transformers."
            )
        return False  # not one of ours
    if model_type in CONFIG_MAPPING:
        return False
    name = model_type.removeprefix(MODEL_TYPE_PREFIX)
    guests.load_guest(guests.ARCHITECTURES, name)
    if model_type in CONFIG_MAPPING:
        return True
    if not isinstance(module, str):
        raise UnknownArchitectureError(
            f"{source} holds an SAE of the architecture {name!r}, which this version of hfsae does not know. Upgrade "
            "hfsae."
        )
    raise UnknownArchitectureError(
        f"{source} holds an SAE of the architecture {name!r}, which is no part of hfsae: the Python module {module!r} "
        "defines it. Install the package that has it, or import the module first (--import on the command line)."
    )


def _find_folders_again(config: SAEConfig, source: str | os.PathLike, subfolder: str | None) -> None:
    """Lets a config whose SAE was moved on this machine name the folders that were moved with it."""
    before = (config.training or {}).get("folder")
    here = os.path.abspath(os.path.join(source, subfolder or ""))
    if not os.path.isdir(here):
        return
    if before is None and (run := _run_of_checkpoint(Path(here))) is not None:
        written_in, lies_in = run
    else:
        written_in, lies_in = before, here
    if written_in is None or written_in == lies_in:
        return
    places = ("base_model", "base_model_adapter", "source_models", "training", "metrics")
    for name in (name for name in places if hasattr(config, name)):
        setattr(config, name, found_again(getattr(config, name), written_in, lies_in))
    if before is not None:
        config.training = {**(config.training or {}), "folder": here}


def _run_of_checkpoint(folder: Path) -> tuple[Any, str] | None:
    """Of an SAE in a checkpoint, the folder of its run as it was written down, and where that is now; else None."""
    for saes in (folder, *folder.parents):
        record = saes.parent / "run.json"
        if saes.name == "saes" and record.is_file():
            try:
                return read_json(record).get("folder"), str(saes.parent.parent)
            except DamagedFileError:  # the weights may be whole all the same
                return None
    return None


def _name_the_folders(source: str | os.PathLike, hub: dict[str, Any], error: Exception) -> None:
    """Raises an error that says in which folders there are SAEs, where the one that was asked for has none."""
    if failed(error):
        return  # the same again would only take its time
    asked = (hub.get("subfolder") or "").strip("/")
    try:
        folders = sae_folders(source, hub.get("revision"), hub.get("token"))
    except Exception:  # no such repository, no network: the first error says it
        return
    if folders and asked not in folders:
        shown = ", ".join(repr(name) for name in folders[:_MOST_FOLDERS])
        more = f" and {len(folders) - _MOST_FOLDERS} more" if len(folders) > _MOST_FOLDERS else ""
        itself = f", or give the folder itself, {os.path.join(source, folders[0])}" if os.path.isdir(source) else ""
        raise OSError(
            f"{source} has no SAE {f'in {asked!r}' if asked else 'at its root'}. These folders have: {shown}{more}. "
            f"Name one: subfolder={folders[0]!r} in Python, --subfolder {folders[0]} on the command line{itself}."
        ) from error


def _weights_files(source: str | os.PathLike, kwargs: dict[str, Any]) -> list[Path]:
    """The weights of an SAE in our own format: those of a folder, or what was downloaded of a repository."""
    inside = kwargs.get("subfolder") or ""
    if Path(source).is_dir():
        return sorted((Path(source) / inside).glob("model*.safetensors"))
    name = f"{inside.strip('/')}/model.safetensors".lstrip("/")
    found = try_to_load_from_cache(str(source), name, kwargs.get("cache_dir"), kwargs.get("revision"))
    return [Path(found)] if isinstance(found, str) else []


def _check_download(path: Path) -> None:
    """Holds a download against its name in the cache: the client calls large files by their SHA-256."""
    blob = path.resolve().name
    if _SHA256.fullmatch(blob) and sha256_of(path) != blob:
        raise DamagedFileError(
            f"{path} is not what was published: its SHA-256 differs from that of its name. Remove it, and it is "
            "downloaded again."
        )


def _damaged(paths: list[Path], error: Exception) -> Exception:
    """What is wrong with the one of these files that cannot be read."""
    for path in paths:
        try:
            read_header(path)
        except DamagedFileError as found:
            return found
    return DamagedFileError(f"the weights are damaged: {error}")


def _align(sae: PreTrainedModel) -> None:
    """Copies tensors that lie askew in the mapped file, where a CPU's BLAS is slower and may round differently.

    A loaded SAE is to give the features of the saved one to the last bit.
    """
    for tensor in [*sae.parameters(), *sae.buffers()]:
        if tensor.device.type == "cpu" and tensor.data_ptr() % _ALIGNMENT:
            tensor.data = tensor.data.clone()
