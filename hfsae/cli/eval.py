"""`hfsae eval`: measures a saved SAE on held-out text."""

from pathlib import Path
from typing import Annotated, Any

from hfsae.cli.measuring_options import Folder, Measuring
from hfsae.command_line import option


def run(
    path: Folder,
    baselines: Annotated[bool, option("--baselines", "Measure the untrained SAE and PCA too.")] = False,
    json_file: Annotated[str | None, option("--json_file", "Write the figures into this file as well.")] = None,
    write: Annotated[
        bool | None,
        option(
            "--write/--no_write",
            "Make them the record (config.json, metrics.json, card), or leave that alone; by default they become the "
            "record on the recorded text, or where nothing was recorded.",
            show_default=False,
        ),
    ] = None,
    *,
    measuring: Measuring,
) -> int:
    """Measures, prints the table, and writes what replaces the record."""
    from hfsae.evaluation.saved_set import SET_FILE
    from hfsae.folders import can_be_file
    from hfsae.saving import write_json

    if json_file:
        can_be_file(json_file)
    options = measuring.keywords()
    is_set = (Path(path) / SET_FILE).is_file()
    if is_set and baselines:
        raise ValueError("--baselines is for one SAE: transcoders, of which sets are made, have none.")
    measured = _measure_set(path, write, options) if is_set else _measure(path, write, options, baselines)
    if json_file:
        write_json(Path(json_file), measured)
        print(f"wrote {json_file}")
    return 0


def _measure(path: str, write: bool | None, options: dict[str, Any], baselines: bool) -> dict[str, Any]:
    from hfsae.evaluation.report import report
    from hfsae.hub.card import write_card
    from hfsae.saved.measuring_again import measure_saved

    metrics, written = measure_saved(path, write=write, baselines=baselines, **options)
    print(report(metrics))
    if written:
        write_card(path)
        print(f"wrote {Path(path) / 'metrics.json'} and {Path(path) / 'README.md'}")
    else:
        _stays(path)
    return metrics


def _measure_set(path: str, write: bool | None, options: dict[str, Any]) -> dict[str, Any]:
    """Each SAE of a set, and the model with all of them in place."""
    from hfsae.evaluation.report import report, report_together
    from hfsae.evaluation.saved_set import SET_FILE
    from hfsae.hub.card import write_card
    from hfsae.hub.listing import write_listing_beside
    from hfsae.hub.set_plot import draw_set
    from hfsae.hub.zoo import list_saes
    from hfsae.saved.sets import measure_set_again, the_set, write_set

    found = the_set(path)
    saes = found.load()
    again = measure_set_again(found.record, saes, path, **options)
    for name, metrics in again.metrics.items():
        print(report(metrics, title=name))
    print(report_together(again.together))
    if again.same_text if write is None else write:
        write_set(path, saes, again)
        for name, sae in saes.items():
            write_card(Path(path) / name, sae)
        draw_set(Path(path))
        write_listing_beside(Path(path), list_saes(path))
        print(f"wrote {Path(path) / SET_FILE}, {Path(path) / 'README.md'} and the record and the card of each SAE")
    else:
        _stays(path)
    return {"saes": again.metrics, "together": again.together}


def _stays(path: str) -> None:
    print(f"the record in {path} stays as it is: --write replaces it by these figures")
