"""What came out of a sweep: a table as CSV, as JSON and for a terminal, the fronts, and the picture."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hfsae.arguments.training_arguments import SAETrainingArguments
from hfsae.autoencoder.registry import architecture_name
from hfsae.evaluation.metrics import names_by
from hfsae.evaluation.pareto import FRONT_METRICS, fronts
from hfsae.failures import warn_on_failure
from hfsae.saving import files_at_once, write_json
from hfsae.storage import read_json
from hfsae.training.output import TrainOutput

RESULTS_JSON, RESULTS_CSV, PARETO_PLOT = "results.json", "results.csv", "pareto.png"

_FIGURES = names_by("swept")


def result_rows(output: TrainOutput, arguments: Mapping[str, SAETrainingArguments]) -> list[dict[str, Any]]:
    """One row for each SAE, and for each smaller one inside of it: what it is and what was measured.

    Args:
        output: What training returned.
        arguments: The arguments of each SAE by name.
    """
    rows = []
    for name, config in output.configs.items():
        own = arguments[name]
        metrics = output.metrics.get(name, {})
        place = config.hook_point or own.hook_point
        row = {
            "name": name,
            "architecture": architecture_name(config),
            # Who writes elsewhere is compared with those alone who do the same.
            "hook_point": f"{place} to {config.target_hook_point}" if config.is_transcoder else place,
            "setting": _without_seed(name, own.seed),
            "n_features": config.n_features,
            "expansion_factor": config.expansion_factor,
            "sparsity": _asked_for(config, own),
            "learning_rate": own.learning_rate,
            "seed": own.seed,
            "part_of": None,
        }
        baselines = metrics.get("baselines", {})
        untrained = {"untrained_loss_recovered": baselines.get("untrained", {}).get("loss_recovered")}
        rows.append({**row, **_figures(metrics), **untrained, "n_tokens": metrics.get("n_tokens")})
        for part, figures in metrics.get("parts", {}).items():
            called = {"name": f"{name}, {part}", "setting": f"{row['setting']}, {part}", "part_of": name}
            width = figures["n_features"]
            size = {"n_features": width, "expansion_factor": width / config.d_in}
            rows.append({**row, **called, **size, **_figures(figures), "n_tokens": metrics.get("n_tokens")})
    return rows


def _figures(metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {name: metrics.get(name) for name in _FIGURES}


def _asked_for(config: Any, own: SAETrainingArguments) -> str:
    if hasattr(config, "k"):
        return f"k={config.k}"
    if own.sparsity_coefficient is not None:
        return f"lambda={own.sparsity_coefficient:g}"
    return f"target_l0={own.target_l0 if own.target_l0 is not None else own.k:g}"


def _without_seed(name: str, seed: int) -> str:
    return name.removesuffix(f"-seed{seed}")


def _whole(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The SAEs that were trained, without the smaller ones inside of them."""
    return [row for row in rows if row["part_of"] is None]


def results_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A sweep's results for a terminal, in the order of L0; `*` marks who is on the front by loss recovered."""
    front = {name for of_place in fronts(_whole(rows)).values() for name in of_place[FRONT_METRICS[0]]}
    columns = {
        "L0": ("l0", 2),
        "expl. var.": ("explained_variance", 3),
        "loss rec.": ("loss_recovered", 3),
        "CE incr.": ("ce_increase", 3),
        "dead": ("dead_fraction", 3),
    }
    wide = max(len(row["name"]) for row in rows)
    lines = [" ".join([f"{'':<{wide}}", *(f"{title:>10}" for title in columns)])]
    for row in sorted(rows, key=lambda row: (row["hook_point"], row["l0"] or 0)):
        figures = ["–" if row[name] is None else f"{row[name]:.{digits}f}" for name, digits in columns.values()]
        mark = [" *"] if row["name"] in front else []
        lines.append(" ".join([f"{row['name']:<{wide}}", *(f"{figure:>10}" for figure in figures), *mark]))
    if front:
        lines.append("* on the front: none at its place with as few active features recovers more of the loss")
    return "\n".join(lines)


def lost_of_sweep(folder: Path, names: Sequence[str]) -> list[str]:
    """The SAEs that a sweep's results tell of and a folder lacks; none where it holds no results.

    Args:
        folder: What a sweep wrote.
        names: The SAEs that it holds, each by its folder; a sweep in groups has those of a group in one.

    Raises:
        DamagedFileError: If the results cannot be read.
    """
    if not (folder / RESULTS_JSON).is_file():
        return []
    rows = read_json(folder / RESULTS_JSON).get("saes")
    told = [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else []
    whole = [str(row.get("name")) for row in told if row.get("part_of") is None]
    there = {name.rpartition("/")[2] for name in names}
    return [name for name in whole if name not in there]


def write_results(rows: list[dict[str, Any]], folder: Path) -> None:
    """Writes a sweep's table as CSV and JSON, and its picture where anything was measured; each appears whole.

    A picture that cannot be drawn costs the tables nothing.
    """
    whole = _whole(rows)
    write_json(folder / RESULTS_JSON, {"front": fronts(whole), "saes": rows})
    with files_at_once(folder) as beside:
        with (beside / RESULTS_CSV).open("w", newline="") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
            writer.writeheader()
            writer.writerows(rows)
    if any(row[metric] is not None for row in whole for metric in FRONT_METRICS):
        again = f'draw by hand: pareto_plot(json.load(open("{folder / RESULTS_JSON}"))["saes"], Path("{PARETO_PLOT}"))'
        with warn_on_failure(f"{folder / PARETO_PLOT} not drawn", again), files_at_once(folder) as beside:
            from hfsae.hub.pareto_plot import pareto_plot  # matplotlib takes a while to import

            pareto_plot(whole, beside / PARETO_PLOT)
