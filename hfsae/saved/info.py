"""What a saved or published SAE is, or a set of them, from configs alone: no weights are fetched."""

from typing import Any

from hfsae.evaluation.report import SET_TITLES
from hfsae.loading import load_config
from hfsae.saved.sets import SavedSet

# What is said of a whole set, and of each of its SAEs.
_OF_THE_SET = ("loss_recovered", "ce_increase", "kl", "l0")
_OF_EACH = ("features", "reads", "writes", "measured")


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


def describe_set(found: SavedSet) -> str:
    """A few lines that say what a set is, and a few more on each of its SAEs.

    Args:
        found: What `find_set` found.

    Raises:
        OSError, ValueError: As `load_config`; FileNotFoundError if an SAE of the set is missing.
    """
    found.refuse_missing()
    of_each = {name: load_config(found.source, subfolder=name, **found.where).summary() for name in found.names}
    first = next(iter(of_each.values()))
    figures = {SET_TITLES.get(name, name): found.record.get(name) for name in _OF_THE_SET}
    measured = [f"{title} {value:.4g}" for title, value in figures.items() if isinstance(value, float | int)]
    architectures = ", ".join(dict.fromkeys(said["architecture"] for said in of_each.values()))
    whole = {
        "set of": f"{len(of_each)} SAEs: {architectures}",
        **{label: first[label] for label in ("of", "trained on") if label in first},
        "all in place": ", ".join(measured) or "not measured: `hfsae eval`",
    }
    lines = [f"{label:<14}{value}" for label, value in whole.items()]
    for name, said in of_each.items():
        lines += ["", name, *(f"  {label:<12}{said[label]}" for label in _OF_EACH if label in said)]
    return "\n".join(lines)
