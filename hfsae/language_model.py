"""Language models by name: which class loads them, their adapter, their tokenizer, and how an SAE's config tells it.

Training and `load_base_model` go through the same functions, so that an SAE is used with the model it was trained on.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import hf_hub_download, try_to_load_from_cache
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.utils.hub import cached_file
from transformers.utils.peft_utils import find_adapter_config_file

from hfsae.configuration import LANGUAGE_MODEL, SAEConfig
from hfsae.connection import commit_in_cache
from hfsae.folders import in_full
from hfsae.hooks import SideBySide
from hfsae.model_classes import model_class
from hfsae.model_kwargs import recorded, trusted
from hfsae.progress import quietly
from hfsae.sae_folders import must_be_local

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Arguments of `from_pretrained` that loading a config and a tokenizer also takes.
_OF_FILES = ("cache_dir", "local_files_only", "subfolder", "trust_remote_code", "code_revision", "gguf_file", "token")
_ADAPTER_CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class Origin:
    """Where a language model comes from.

    Args:
        name: Hub id, or the absolute path of a folder.
        revision: Commit sha on the Hub.
        adapter: Hub id or folder of the PEFT adapter that is put on it.
        adapter_revision: Commit sha of the adapter.
        kwargs: What `from_pretrained` is given.
    """

    name: str
    revision: str | None = None
    adapter: str | None = None
    adapter_revision: str | None = None
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def given(self) -> tuple[str, str | None]:
        """What a user names, and its commit: the adapter where there is one."""
        return (self.name, self.revision) if self.adapter is None else (self.adapter, self.adapter_revision)


def record(origin: Origin | None, config: SAEConfig) -> None:
    """Writes into an SAE's config where its language model comes from; None for one that has no place of its own."""
    for name, value in _recorded(origin).items():
        setattr(config, name, value)


def record_sources(origins: Sequence[Origin | None], config: SAEConfig) -> None:
    """Writes into a crosscoder's config where the language model of each source comes from."""
    record(origins[0], config)
    config.source_models = [_recorded(origin) for origin in origins]  # type: ignore[attr-defined]


def _recorded(origin: Origin | None) -> dict[str, Any]:
    found = origin or Origin("")
    kwargs = recorded(found.kwargs) or None
    values = (found.name or None, found.revision, found.adapter, found.adapter_revision, kwargs)
    return dict(zip(LANGUAGE_MODEL, values, strict=True))


def find(name: str, revision: str | None = None, kwargs: Mapping[str, Any] | None = None) -> Origin:
    """Finds out what a name stands for: a model, an adapter with its base model, or a GGUF file.

    Commits are resolved once, so that weights, tokenizer and record are of one commit even while a branch moves on.

    Args:
        name: Hub id or folder.
        revision: Branch, tag or commit.
        kwargs: For `from_pretrained`.

    Raises:
        ValueError: If an adapter names no base model, a folder holds several GGUF files, or the name is that of one.
    """
    kwargs = dict(kwargs or {})
    if name.endswith(".gguf") and os.path.isfile(name):
        folder, file = os.path.split(name)
        wanted = f"model_kwargs={{'gguf_file': {file!r}}}"
        raise ValueError(f"{name} is a file: give its folder {folder or '.'!r}, and {wanted}.")
    if "gguf_file" not in kwargs and (file := _only_gguf_file(name)) is not None:
        kwargs["gguf_file"] = file
    adapter_config = _adapter_config(name, revision)
    if adapter_config is None:
        file = "/".join(filter(None, [kwargs.get("subfolder"), kwargs.get("gguf_file", "config.json")]))
        return Origin(as_recorded(name), commit_of(name, revision, file) or revision, kwargs=kwargs)
    about = json.loads(Path(adapter_config).read_text())
    if not (base := about.get("base_model_name_or_path")):
        raise ValueError(f"the adapter {name} does not say which language model it belongs to ({_ADAPTER_CONFIG}).")
    base_revision = about.get("revision")
    return Origin(
        as_recorded(base),
        commit_of(base, base_revision) or base_revision,
        as_recorded(name),
        commit_of(name, revision, _ADAPTER_CONFIG) or revision,
        kwargs,
    )


def _adapter_config(name: str, revision: str | None) -> str | None:
    """The file that says what an adapter is made for; None of a whole model."""
    if os.path.isfile(os.path.join(name, "config.json")):
        return None  # a model with an adapter beside it: transformers puts that on
    try:
        return find_adapter_config_file(name, revision=revision)
    except OSError:
        return None  # a name that cannot be: the model's own loading says so


def is_quantised(origin: Origin) -> bool:
    """Whether a language model's stored weights are quantised, so that nobody needs to ask for that."""
    try:
        return getattr(origin_config(origin), "quantization_config", None) is not None
    except (OSError, ValueError):
        return False


def _only_gguf_file(name: str) -> str | None:
    """The GGUF file of a folder that holds no other model."""
    if not os.path.isdir(name) or os.path.isfile(os.path.join(name, "config.json")):
        return None
    files = sorted(path.name for path in Path(name).glob("*.gguf"))
    if len(files) > 1:
        raise ValueError(
            f"the folder {name} holds {len(files)} GGUF files: choose one with model_kwargs={{'gguf_file': "
            f"{files[0]!r}}}."
        )
    return files[0] if files else None


def origin_of(config: SAEConfig, source: str | None = None) -> Origin:
    """Where the language model of an SAE comes from.

    Args:
        config: The SAE's config.
        source: Of a crosscoder over several models, whose; None for the first one.

    Raises:
        ValueError: If the config names none or has no such source, or asks for what is not safe to repeat.
    """
    said = config.language_model_of(source)
    if (name := said["base_model"]) is None:
        raise ValueError(
            "this SAE's config names no base model (base_model is None: the model is not on the Hub). Name one with "
            "--base_model on the command line; in Python load it with AutoModelForCausalLM.from_pretrained(...), and "
            "run sae.attach(model)."
        )
    kwargs = trusted(said["base_model_kwargs"] or {})
    revision, adapter = said["base_model_revision"], said["base_model_adapter"]
    if adapter is None:
        return Origin(name, revision, kwargs=kwargs)
    return Origin(name, revision, adapter, said["base_model_adapter_revision"], kwargs)


def rename_base_model(config: SAEConfig, name: str) -> None:
    """Lets an SAE's config name another language model, adapter or GGUF file: `--model` of the command line.

    Of a crosscoder over several models, `name` holds that of each source, with commas between.

    Raises:
        ValueError: If there are not as many as sources.
    """
    if not config.models_by_source:
        record(find(name), config)
        return
    names = [one.strip() for one in name.split(",")]
    if len(names) != len(config.models_by_source):
        sources = ", ".join(config.models_by_source)
        raise ValueError(f"this crosscoder reads a language model for each of {sources}; name as many, with commas.")
    record_sources([find(one) for one in names], config)


def load_base_model(config: SAEConfig, source: str | None = None, **kwargs: Any) -> PreTrainedModel:
    """The language model that an SAE reads, at the commit it was trained on, in evaluation mode.

    Published configs name a Hub id. That of a local run may name a folder. It is found wherever the SAE is loaded, as
    long as it is where it was, or was moved together with the SAE. What the run gave to `from_pretrained` and changes
    activations (`quantization_config`, `attn_implementation`, `gguf_file`) is given again.

    Args:
        config: An SAE's config.
        source: Of a crosscoder over several models, whose to load; None loads them all.
        **kwargs: For `from_pretrained`: `dtype`, `device_map`, `revision` for another commit, ...

    Returns:
        The model; where the config names an adapter, a `PeftModel` around it; of several models a `SideBySide`.

    Raises:
        ValueError: If the config names no base model, has no such source, or asks for what is not safe to repeat.
        FileNotFoundError: If it names a folder that is gone.
        ImportError: If it names an adapter and PEFT is not installed.
        OSError: If the Hub has no such model, or cannot be reached.
    """
    if source is None and config.models_by_source:
        origins = {name: origin_of(config, name) for name in config.models_by_source}
        return SideBySide({name: load(origin, **kwargs) for name, origin in origins.items()}).eval()
    return load(origin_of(config, source), **kwargs)


def load_tokenizer(config: SAEConfig, **kwargs: Any) -> "PreTrainedTokenizerBase":
    """The tokenizer of `load_base_model`, at the same commit; of several models as `tokenizer_of_all` says.

    Args:
        config: An SAE's config.
        **kwargs: For `AutoTokenizer.from_pretrained`.

    Raises:
        ValueError, FileNotFoundError, OSError: As `load_base_model`.
    """
    sources: list[str | None] = [*config.models_by_source] or [None]
    return tokenizer_of_all(tokenizer_of(origin_of(config, source), **kwargs) for source in sources)


def tokenizer_of_all(tokenizers: "Iterable[PreTrainedTokenizerBase]") -> "PreTrainedTokenizerBase":
    """Of equal tokenizers the first that can render conversations; where none can, the first.

    A base model has often no chat template, and what was made of it has one.
    """
    every = list(tokenizers)
    return next((one for one in every if getattr(one, "chat_template", None)), every[0])


def origin_config(origin: Origin) -> PreTrainedConfig:
    """The config of a language model.

    Raises:
        FileNotFoundError, OSError: As `load_base_model`.
    """
    return _from(origin, lambda name, options: AutoConfig.from_pretrained(name, **_files_of(options)))


def load(origin: Origin, **kwargs: Any) -> PreTrainedModel:
    """Loads a language model with its adapter, in evaluation mode.

    Args:
        origin: What to load.
        **kwargs: For `from_pretrained`; they win over those of the origin.

    Raises:
        FileNotFoundError, ImportError, OSError, ValueError: As `load_base_model`.
    """
    origin = replace(origin, kwargs={**origin.kwargs, **kwargs})
    with quietly():
        model = _from(origin, _load_base)
        if origin.adapter is not None:
            model = _with_adapter(model, origin)
    # So that `self_check` can tell it: newer versions of transformers no longer do.
    wanted, where = origin.kwargs.get("revision", origin.revision), origin.kwargs
    model.config._commit_hash = cached_commit(origin.name, where.get("subfolder"), wanted, where.get("cache_dir"))
    return model.eval()


def _load_base(name: str, options: dict[str, Any]) -> PreTrainedModel:
    config = options.get("config") or AutoConfig.from_pretrained(name, **_files_of(options))
    return model_class(config).from_pretrained(name, **options)


def tokenizer_of(origin: Origin, **kwargs: Any) -> "PreTrainedTokenizerBase":
    """The tokenizer of a language model: its adapter's own, where that has one.

    Args:
        origin: Where the model comes from.
        **kwargs: For `AutoTokenizer.from_pretrained`.

    Raises:
        FileNotFoundError, OSError: As `load_base_model`.
        ValueError: If there is none.
    """
    if origin.adapter is not None and _has_tokenizer(origin.adapter, origin.adapter_revision):
        origin = Origin(origin.adapter, origin.adapter_revision)
    origin = replace(origin, kwargs={**_files_of(origin.kwargs), **kwargs})
    tokenizer = _from(origin, lambda name, options: AutoTokenizer.from_pretrained(name, **options))
    if not _knows_words(tokenizer):
        raise ValueError(
            f"{origin.name} holds no tokenizer, and the one that transformers makes instead knows no word: save the "
            "model's own beside it, or pass tokenizer=."
        )
    return tokenizer


def _knows_words(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether a tokenizer lists, or makes of text, more than special tokens and a mark of spaces.

    Where a model was saved without its tokenizer, transformers (5.23) makes one of the right class, and nothing more.
    """
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    special = {token.content for token in added if token.special} | set(tokenizer.all_special_tokens)
    if len(tokenizer.get_vocab().keys() - special) > 1:
        return True
    ids = tokenizer("some text", add_special_tokens=False)["input_ids"]  # one of bytes may list no vocabulary
    return len(set(ids) - set(tokenizer.all_special_ids)) > 1


def _files_of(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: options[name] for name in (*_OF_FILES, "revision") if name in options}


def _has_tokenizer(name: str, revision: str | None) -> bool:
    lenient = {f"_raise_exceptions_for_{trouble}": False for trouble in ("missing_entries", "connection_errors")}
    return cached_file(name, "tokenizer_config.json", revision=revision, **lenient) is not None


def _from(origin: Origin, load: Any) -> Any:
    """What `load(name, options)` makes of a model's files, with an error that says what was looked for."""
    options = dict(origin.kwargs)
    if origin.revision is not None:
        options.setdefault("revision", origin.revision)
    name = _there(origin.name, options.get("revision"))
    try:
        return load(name, options)
    except OSError as error:
        at = f" at {options['revision']}" if options.get("revision") else ""
        why, do = "there is no such folder here, and the Hub gave nothing", "Check the network and `hf auth login`"
        if os.path.isdir(name):
            why, do = "the folder lacks something", "Save the whole model there"
        raise OSError(
            f"the base model {name!r}{at} could not be loaded: {why} ({error}). {do}, or load the model yourself and "
            "run sae.attach(model)."
        ) from error


def _there(name: str, revision: str | None) -> str:
    """A name as `from_pretrained` takes it: of a folder where it lies, of the Hub an id that no folder here bears."""
    if must_be_local(name):
        if not os.path.isdir(name := os.path.expanduser(name)):
            raise FileNotFoundError(
                f"the language model is expected in the folder {name}, which is not there. Put it back, set "
                "sae.config.base_model, or load the model yourself and run sae.attach(model)."
            )
    elif revision is not None and os.path.isdir(name):
        raise ValueError(
            f"the language model {name} of the Hub (at {revision}) is meant, but the working directory holds a folder "
            f"of that name, which transformers would load. Go to another directory, or name the folder ./{name}."
        )
    return name


def _with_adapter(model: PreTrainedModel, origin: Origin) -> Any:
    try:
        from peft import PeftModel
    except ImportError as error:
        raise ImportError(f"{origin.adapter} is a PEFT adapter: pip install 'hfsae[peft]'.") from error
    assert origin.adapter is not None
    revision = origin.adapter_revision
    return PeftModel.from_pretrained(model, _there(origin.adapter, revision), revision=revision)


def as_recorded(name: str) -> str:
    """A model's name as SAEs record it: the absolute path of a folder that is here, or an id of the Hub as it is."""
    return in_full(name) if os.path.isdir(os.path.expanduser(name)) else name


def cached_commit(
    name: str, subfolder: str | None = None, revision: str | None = None, cache_dir: str | None = None
) -> str | None:
    """The commit of what was just loaded from the Hub, as the cache knows it; None for a local folder.

    Args:
        name: Hub id or folder.
        subfolder: Where in it the config lies.
        revision: Branch, tag or commit.
        cache_dir: Of the cache.
    """
    if os.path.isdir(name):
        return None
    file = "/".join(filter(None, [subfolder, "config.json"]))
    found = try_to_load_from_cache(name, file, cache_dir=cache_dir, revision=revision or None)
    return commit_in_cache(Path(found), file) if isinstance(found, str) else None


def commit_of(name: str, revision: str | None, file: str = "config.json") -> str | None:
    """The commit sha of a Hub model; from the cache where the Hub cannot be reached; None for a local folder.

    Args:
        name: Hub id or folder.
        revision: Branch, tag or commit.
        file: One of the model's files.
    """
    if os.path.isdir(name):
        return None
    try:
        path = Path(hf_hub_download(name, file, revision=revision))
    except (OSError, ValueError):
        return None  # the model's own loading says what is wrong, in full
    return commit_in_cache(path, file)
