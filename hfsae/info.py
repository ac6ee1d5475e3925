"""What a saved or published SAE is, from its config alone: no weights are fetched."""

from typing import Any

from hfsae.architectures import architecture_name
from hfsae.configuration import SAEConfig
from hfsae.loading import load_config

_HEADLINE = ("l0", "explained_variance", "loss_recovered", "dead_fraction")


def describe(source: str, **hub: Any) -> str:
    """A few lines that say what an SAE is.

    Args:
        source: Folder or Hub repository.
        **hub: `subfolder`, `revision`, `token`, `cache_dir`; `allow_pickle` for SAEs of other projects, whose weights
            are fetched as well.

    Raises:
        ValueError: If it is not an SAE.
    """
    return "\n".join(f"{label:<14}{value}" for label, value in _facts(load_config(source, fetch_weights=True, **hub)))


def _facts(config: SAEConfig) -> list[tuple[str, str]]:
    revision = f" @ {config.base_model_revision[:12]}" if config.base_model_revision else ""
    adapter = f" with the adapter {config.base_model_adapter}" if config.base_model_adapter else ""
    facts = [
        ("architecture", architecture_name(config)),
        ("features", f"{config.n_features:,} ({config.expansion_factor:g}x of d_in = {config.d_in})"),
        ("reads", f"{config.hook_point or 'not recorded'}"),
        ("of", f"{config.base_model or 'not recorded'}{revision}{adapter}"),
    ]
    if config.is_transcoder:
        facts.append(("writes", f"{config.target_hook_point} (d_out = {config.d_out})"))
    training, metrics = config.training or {}, config.metrics or {}
    if "n_tokens" in training:
        text = training.get("dataset") or "text that was given as an object"
        facts.append(("trained on", f"{training['n_tokens']:,} tokens of {text}"))
    measured = [f"{name} {metrics[name]:.4g}" for name in _HEADLINE if metrics.get(name) is not None]
    facts.append(("measured", ", ".join(measured) or "not yet: `hfsae eval`"))
    return facts
