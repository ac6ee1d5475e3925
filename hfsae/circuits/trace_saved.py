"""`trace_saved`: the graph of a prompt from saved or published SAEs, with what lies beside their weights."""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hfsae.analysis import FeatureCollection
from hfsae.circuits.clamping import FEWEST
from hfsae.circuits.graph import Graph
from hfsae.circuits.tracing import trace
from hfsae.folders import can_be_file
from hfsae.hub.card import DASHBOARD_FILE, is_dashboard_of
from hfsae.identity import Identity
from hfsae.label_file import LABELS_FILE, read_labels
from hfsae.language_model import rename_base_model
from hfsae.loading import holds_config
from hfsae.modeling import SAE
from hfsae.saved.many import load_saes
from hfsae.saving import files_at_once

logger = logging.getLogger(__name__)

ALONE = "sae"
"""What an SAE is called that lies in the folder itself."""


class Beside(NamedTuple):
    """What lies beside the weights of SAEs, by the SAE's name, and fits them."""

    collections: dict[str, FeatureCollection]
    labels: dict[str, dict[int, str]]
    dashboards: dict[str, Path]


def trace_saved(
    source: str | os.PathLike,
    prompt: str,
    output: str | Path,
    *,
    json_output: str | Path | None = None,
    graph_output: str | Path | None = None,
    model: str | None = None,
    subfolder: str = "",
    revision: str | None = None,
    allow_pickle: bool = False,
    supernodes: str | Path | None = None,
    attention: Sequence[tuple[int, int]] = (),
    validate: int = 0,
    **options: Any,
) -> Graph:
    """Traces a prompt with the SAEs of a folder or a Hub repository, and writes what was asked for.

    Args:
        source: A run with a transcoder set, a folder with one SAE or with many, or a Hub repository.
        prompt: The text.
        output: The page, a file that ends in `.html`.
        json_output: A file for the pruned graph in circuit-tracer's schema; None writes none.
        graph_output: A file for the whole graph, which `Graph.load` reads; None writes none.
        model: The language model; None loads the one that the SAEs' configs name.
        subfolder: Folder in it, of one SAE or of many.
        revision: Branch, tag or commit of the repository.
        allow_pickle: Whether weights of other projects may be pickles.
        supernodes: A file with pins and groups as the page gives them, which are put back; None puts none.
        attention: Layers and heads of which is explained why they look where they look most from the last token.
        validate: How many of the strongest features are taken away one by one, to hold the graph against the model.
            0 takes none away, and a graph of fewer than six features is not held against it.
        **options: As `trace` takes them.

    Returns:
        The graph.

    Raises:
        ValueError: As `trace`; if the page's name does not end in `.html`, or the model lacks a head of `attention`.
            Likewise if two files are one, or `validate` is 1, 2 or negative.
            Likewise if `supernodes` holds something else or nodes that the graph lacks.
        FileExistsError: If a folder has the name of a file to be written.
        OSError: If the SAEs or the language model are not there.
    """
    if Path(output).suffix != ".html":
        raise ValueError(f"the page of a graph is one file: its name ends in .html, got {output}.")
    places = [Path(place) for place in (output, json_output, graph_output) if place is not None]
    for place in places:
        can_be_file(place)
    if len({place.resolve() for place in places}) < len(places):
        raise ValueError(f"{' and '.join(map(str, places))} are not all different files: give each its own name.")
    if validate < 0 or 0 < validate < FEWEST:
        raise ValueError(f"validate is {validate}: expected 0, or {FEWEST} features or more to take away.")
    picked = None if supernodes is None else _picked(Path(supernodes))
    hub = {name: value for name, value in {"revision": revision, "allow_pickle": allow_pickle}.items() if value}
    saes = {name or ALONE: sae for name, sae in _loaded(source, subfolder, hub).items()}
    if model is not None:
        for sae in saes.values():
            rename_base_model(sae.config, model)
    first = next(iter(saes.values()))
    language_model, tokenizer = first.load_base_model(), first.load_tokenizer()
    _refuse_unknown_heads(language_model.config.get_text_config(decoder=True), attention)
    graph = trace(language_model, saes, prompt, tokenizer=tokenizer, **options)
    if validate and int(graph.is_kind("feature").sum()) >= 2 * FEWEST:
        graph.validate(validate)
    for layer, head in attention:
        graph.explain_attention(layer, head)
    if picked is not None:
        graph.pin(*picked["pinned"])
        for name, members in picked["supernodes"].items():
            graph.group(name, *members)
    found = beside(Path(source) / subfolder, saes)
    dashboards = {name: _link(page, Path(output)) for name, page in found.dashboards.items()}
    graph.write_page(
        output,
        collections=found.collections,
        labels=found.labels,
        dashboards=dashboards,
        tokenizer=tokenizer,
    )
    if json_output is not None:
        path = Path(json_output)
        with files_at_once(path.parent) as folder:
            (folder / path.name).write_text(json.dumps(graph.prune().to_json(slug=path.stem)), encoding="utf-8")
    if graph_output is not None:
        graph.save(graph_output)
    return graph


def _loaded(source: str | os.PathLike, subfolder: str, hub: Mapping[str, Any]) -> dict[str, SAE]:
    """The SAEs of a source, or of a folder in it, by their names there."""
    if not subfolder or Path(source).is_dir():
        return load_saes(Path(source) / subfolder if subfolder else source, **hub)
    there = {"subfolder": subfolder, **hub}
    if holds_config(source, there):
        return {"": SAE.from_pretrained(source, **there)}
    inside = subfolder.strip("/") + "/"
    return {name.removeprefix(inside): sae for name, sae in load_saes(source, f"{inside}*", **hub).items()}


def _refuse_unknown_heads(config: Any, attention: Sequence[tuple[int, int]]) -> None:
    """Before minutes of work; what a layer alone has more or less of is found when it is explained."""
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    for layer, head in attention:
        if layer >= layers or head >= heads:
            raise ValueError(
                f"there is no head {head} of layer {layer}: layers go from 0 to {layers - 1}, their heads from 0 to "
                f"{heads - 1}."
            )


def _picked(path: Path) -> dict[str, Any]:
    """Pins and groups as the page of a graph gives them."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    pinned, groups = (content.get(key) if isinstance(content, dict) else None for key in ("pinned", "supernodes"))
    lists = [pinned, *(groups.values() if isinstance(groups, dict) else [None])]
    if not all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in lists):
        raise ValueError(
            f'{path} must hold {{"pinned": [names of nodes], "supernodes": {{name: [names of nodes]}}}}, as the page '
            "of a graph gives it."
        )
    return content


def beside(folder: Path, saes: Mapping[str, SAE]) -> Beside:
    """Features that were collected, labels and dashboards of SAEs on this machine.

    Args:
        folder: Where the SAEs lie; nothing is found of a Hub repository.
        saes: The SAEs by name, as `trace_saved` calls them.
    """
    found = Beside({}, {}, {})
    for name, sae in saes.items():
        place = folder if name == ALONE and not (folder / name).is_dir() else folder / name
        identity = Identity.of(sae)
        try:
            collection = FeatureCollection.load(place)
            unlike = identity.unlike(vars(collection.about))
            if unlike is None:
                found.collections[name] = collection
            else:
                logger.info("the features in %s are of %s: the page shows no examples of them", place, unlike)
        except FileNotFoundError:
            pass
        if (place / LABELS_FILE).is_file():
            found.labels[name] = read_labels(place / LABELS_FILE, *identity)
        if (place / DASHBOARD_FILE).is_file() and is_dashboard_of(place / DASHBOARD_FILE, sae):
            found.dashboards[name] = place / DASHBOARD_FILE
    return found


def _link(page: Path, output: Path) -> str:
    return Path(os.path.relpath(page.resolve(), output.resolve().parent)).as_posix()
