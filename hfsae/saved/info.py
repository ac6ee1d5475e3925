"""What a saved or published SAE is, from its config alone: no weights are fetched."""

from typing import Any

from hfsae.loading import load_config


def describe(source: str, **hub: Any) -> str:
    """A few lines that say what an SAE is.

    Args:
        source: Folder or Hub repository.
        **hub: `subfolder`, `revision`, `token`, `cache_dir`; `allow_pickle` for SAEs of other projects, whose weights
            are fetched as well.

    Raises:
        ValueError: If it is not an SAE.
    """
    summary = load_config(source, fetch_weights=True, **hub).summary()
    return "\n".join(f"{label:<14}{value}" for label, value in summary.items())
