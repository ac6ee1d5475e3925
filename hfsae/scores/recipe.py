"""A recipe: all that a run was told, but for its seed. Stability, and the noise of seeds, are of one recipe."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from hfsae.autoencoder.registry import architecture_name
from hfsae.configuration import SAEConfig
from hfsae.hub.kinds import mapping

# What a config has beside settings: parts that stand in words of their own, and provenance.
_NO_SETTINGS = {
    *("base_model", "base_model_revision", "base_model_adapter", "base_model_adapter_revision", "n_features", "k"),
    *("hook_point", "target_hook_point", "training", "metrics", "defined_in", "model_type"),
}
# Names of models and adapters: folders move, so their last part tells.
_NAMES = ("base_model", "base_model_adapter")
# What the config, or a figure that the training recorded, says better: one size can be given in two ways.
_SAID_ELSEWHERE = {
    *("architecture", "architecture_options", "expansion_factor", "n_features", "k", "target_l0", "init_from"),
    *("model_name_or_path", "model_revision", "compare_model_name_or_path", "model_kwargs", "prepend_bos"),
    *("hook_point", "target_hook_point", "dataset_name", "training_tokens"),
}
_BATCH = {"train_batch_tokens", "gradient_accumulation_steps"}
# What changes nothing that is learned: seed, folders, what is saved, logged and measured, devices and processes.
_NO_MATTER = {
    *("seed", "output_dir", "overwrite_output_dir", "resume_from_checkpoint", "activation_cache", "disable_tqdm"),
    *("logging_steps", "save_steps", "save_minutes", "save_total_limit", "report_to", "html_report", "run_name"),
    *("metric_for_best_model", "greater_is_better", "push_to_hub", "eval_tokens"),
    *("eval_dataset_name", "eval_dataset_config", "eval_dataset_split", "prefetch_batches", "use_cpu"),
    *("hub_model_id", "hub_strategy", "hub_revision", "hub_private_repo", "model_device_map", "sae_placement"),
}


def recipe(config: SAEConfig) -> dict[str, str]:
    """What a run was told but for its seed, in words that can stand in a table; what is not recorded is not there.

    Args:
        config: The config of its SAE.

    Returns:
        By the name of a part, such as `"learning_rate"`, what it was, as `"learning_rate = 0.001"`.
    """
    found = {"architecture": architecture_name(config), **_place(config)}
    found["n_features"] = f"{config.n_features:,} features"
    if hasattr(config, "k"):
        found["k"] = f"k = {config.k}"
    return found | _training(config) | _settings(config) | _arguments(config)


def two_recipes(a: SAEConfig, b: SAEConfig) -> str | None:
    """In what two runs differ beside their seed, in words; None where nothing that both record says so.

    Place and model are left to `two_places`, which knows a place by several names.

    Args:
        a: The config of an SAE.
        b: That of another one.
    """
    first, second = recipe(a), recipe(b)
    unknown = {*_place(a), *_place(b)} | (_training(a).keys() ^ _training(b).keys())
    if not all("arguments" in mapping(config.training) for config in (a, b)):
        unknown |= (_arguments(a).keys() | _arguments(b).keys()) - _settings(a).keys() - _settings(b).keys()
    for name in {**first, **second}:
        if name not in unknown and first.get(name) != second.get(name):
            shown = [one.get(name) or f"{name} by default" for one in (first, second)]
            return f"they differ in more than their seed: {shown[0]} and {shown[1]}"
    return None


def _place(config: SAEConfig) -> dict[str, str]:
    """Where it reads and writes, and in which model."""
    found = {"place": f"{config.source_places} {config.target_places}"}
    for name in (*_NAMES, "base_model_revision", "base_model_adapter_revision"):
        if value := getattr(config, name):
            found[name] = Path(value).name
    return found


def _settings(config: SAEConfig) -> dict[str, str]:
    """Further fields of the architecture's config."""
    left_out = {*PreTrainedConfig().to_dict(), *_NO_SETTINGS}
    return _words({name: value for name, value in config.to_dict().items() if name not in left_out})


def _training(config: SAEConfig) -> dict[str, str]:
    """Figures that the training recorded."""
    training = mapping(config.training)
    found = {}
    if target := training.get("target_l0"):
        found["target_l0"] = f"L0 {_plain(target)}"
    if isinstance(tokens := training.get("n_tokens"), int):
        found["n_tokens"] = f"{tokens:,} tokens"
    if isinstance(batch := training.get("batch_tokens"), int):
        found["batch_tokens"] = f"batches of {batch:,}"
    if text := training.get("dataset_digest") or training.get("dataset"):
        found["text"] = str(text)
    if training:
        found["init_from"] = "trained on from an SAE" if training.get("init_from") else "trained from drawn weights"
    return found


def _arguments(config: SAEConfig) -> dict[str, str]:
    """The arguments of the training that differ from their defaults; only those are recorded."""
    training = mapping(config.training)
    left_out = _NO_MATTER | _SAID_ELSEWHERE | (_BATCH if "batch_tokens" in training else set())
    arguments = mapping(training.get("arguments"))
    return _words({name: value for name, value in arguments.items() if name not in left_out})


def _words(values: Mapping[str, Any]) -> dict[str, str]:
    return {name: f"{name} = {_plain(value)}" for name, value in values.items()}


def _plain(value: Any) -> Any:
    """A value as it is compared: 1.0 is 1, a tuple is a list, and a model goes by the last part of its name."""
    if isinstance(value, Mapping):
        return {
            str(name): Path(one).name if name in _NAMES and isinstance(one, str) else _plain(one)
            for name, one in sorted(value.items(), key=lambda item: str(item[0]))
        }
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
