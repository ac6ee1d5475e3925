"""The page of a graph: one HTML file that opens offline and fetches nothing, made as the dashboard is."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from markupsafe import Markup
from torch import Tensor

from hfsae.analysis import FeatureCollection, TokenTexts
from hfsae.analysis.plain_values import Words, feature_content, significant
from hfsae.circuits.influence import cumulative_influence
from hfsae.saving import files_at_once
from hfsae.webpage import as_data, asset, render_html

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from hfsae.circuits.graph import Graph

# Joined in this order into one module; the first two are what all pages share.
_SHARED_SCRIPTS = ("elements.js", "tokens.js")
_SCRIPTS = ("graph_nodes.js", "graph_groups.js", "graph_attention.js", "graph_panel.js", "graph_main.js")
_HERE = "hfsae.circuits"

# Examples of a feature that the page shows.
_EXAMPLES = 6


def write_graph_page(
    graph: "Graph",
    output: str | Path,
    *,
    title: str | None = None,
    collections: Mapping[str, FeatureCollection] | None = None,
    labels: Mapping[str, Mapping[int, str]] | None = None,
    dashboards: Mapping[str, str] | None = None,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    max_nodes: int = 500,
    max_edges: int = 40,
) -> Path:
    """Writes a graph as one HTML file.

    Args:
        graph: The graph.
        output: The file, which ends in `.html`.
        title: What the page is called; None takes the prompt.
        collections: What was collected of each SAE's features, for examples.
        labels: What features are called, by SAE.
        dashboards: Where the dashboard of each SAE lies, as the page is to link to it.
        tokenizer: The model's, for the text of examples; needed with `collections`.
        max_nodes: Features and errors on the page, those with most influence.
        max_edges: Edges into a node, and out of it, that the page knows, the largest.

    Returns:
        The page's path.

    Raises:
        ValueError: If the file's name does not end in `.html`, or `collections` come without a tokenizer.

    Example:
        >>> graph.write_page("graph.html")  # doctest: +SKIP
        PosixPath('graph.html')
    """
    output = Path(output)
    if output.suffix != ".html":
        raise ValueError(f"the page of a graph is one file: its name ends in .html, got {output.name!r}.")
    if collections and tokenizer is None:
        raise ValueError("collections hold token ids: pass the tokenizer that reads them.")
    rows = _shown(graph, max_nodes)
    content = {
        "title": title or graph.prompt,
        "prompt": graph.prompt,
        "tokens": graph.tokens,
        "about": graph.about,
        "notes": graph.notes,
        "figures": _figures(graph, rows),
        "validation": graph.validation and _validation(graph.validation),
        "nodes": _nodes(graph, rows, labels or {}),
        "edges": _edges(graph.edges[rows][:, rows], max_edges),
        "dashboards": dict(dashboards or {}),
        "attention": [_attention(asdict(found)) for found in graph.attention],
        "pinned": graph.pinned,
        "supernodes": graph.supernodes,
        **_examples(graph, rows, collections or {}, tokenizer),
    }
    style = asset("style.css") + "\n" + asset("graph.css", _HERE)
    scripts = [*map(asset, _SHARED_SCRIPTS), *(asset(name, _HERE) for name in _SCRIPTS)]
    script = "\n".join(scripts)
    page = render_html(
        asset("graph.html", _HERE), style, script, title=content["title"], content=Markup(as_data(content))
    )
    with files_at_once(output.parent) as beside:
        (beside / output.name).write_text(page, encoding="utf-8", newline="\n")
    return output


def _shown(graph: "Graph", max_nodes: int) -> Tensor:
    """The rows on the page: the features and errors with most influence, all embeddings and logits, what is picked."""
    stays = graph.is_kind("embedding", "logit") | graph.is_picked
    scores = torch.where(stays, torch.inf, graph.influence)
    wanted = max(max_nodes, int(graph.is_picked.sum())) + int(graph.is_kind("embedding", "logit").sum())
    order = scores.argsort(descending=True, stable=True)[:wanted]
    return order[scores[order] > 0].sort().values


def _figures(graph: "Graph", rows: Tensor) -> dict[str, Any]:
    return {
        "replacement": significant(graph.replacement_score),
        "completeness": significant(graph.completeness_score),
        "error_features": significant(graph.exactness.features),
        "error_logits": significant(graph.exactness.logits),
        "active": graph.n_active,
        "features": int(graph.is_kind("feature").sum()),
        "shown": int(graph.is_kind("feature")[rows].sum()),
    }


def _validation(validation: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: {
            "n": len(found["nodes"]),
            "correlation": significant(found["correlation"]),
            "direct": significant(found["direct_correlation"]),
            "mean_change": significant(found["mean_change"]),
        }
        for name, found in validation.items()
    }


def _attention(found: dict[str, Any]) -> dict[str, Any]:
    terms = [term | {"value": significant(term["value"])} for term in found["terms"]]
    figures = {name: significant(found[name]) for name in ("probability", "score", "left_out", "error")}
    return found | figures | {"terms": terms}


def _nodes(graph: "Graph", rows: Tensor, labels: Mapping[str, Mapping[int, str]]) -> list[dict[str, Any]]:
    shares = cumulative_influence(graph.influence)
    nodes = []
    for row in rows.tolist():
        node = graph.nodes[row]
        label = node.label
        if node.kind == "feature" and node.source is not None and node.feature is not None:
            label = labels.get(node.source, {}).get(node.feature, label)
        nodes.append(
            {
                "kind": node.kind,
                "name": node.name,
                "position": node.position,
                "layer": node.layer,
                "source": node.source,
                "feature": node.feature,
                "label": label,
                "value": significant(node.value),
                "against": node.against,
                "probability": significant(node.probability),
                "influence": significant(float(graph.influence[row])),
                "share": significant(float(shares[row])),
                "constant": significant(float(graph.constants[row])),
                "left_out": significant(float(graph.left_out[row])),
            }
        )
    return nodes


def _edges(edges: Tensor, most: int) -> list[list[float | None]]:
    """The largest edges into every node, and out of every node, as (target, source, weight)."""
    kept = torch.zeros_like(edges, dtype=torch.bool)
    for axis in (0, 1):
        largest = edges.abs().topk(min(most, edges.shape[axis]), dim=axis).indices
        kept.scatter_(axis, largest, True)
    kept &= edges != 0
    return [[*place, significant(float(edges[tuple(place)]))] for place in kept.nonzero().tolist()]


def _examples(
    graph: "Graph",
    rows: Tensor,
    collections: Mapping[str, FeatureCollection],
    tokenizer: "PreTrainedTokenizerBase | None",
) -> dict[str, Any]:
    """What was collected of the features on the page, by `"mlp_in.2/17"`, and the texts of its tokens."""
    words, features = Words(), {}
    texts = TokenTexts(tokenizer) if tokenizer is not None else None
    for row in rows.tolist():
        node = graph.nodes[row]
        collection = collections.get(node.source or "")
        if node.kind != "feature" or collection is None or texts is None or node.feature is None:
            continue
        try:
            collected = collection.of(node.feature)
        except KeyError:  # of this feature nothing was collected
            continue
        content = feature_content(collected, texts, words)
        features[f"{node.source}/{node.feature}"] = {
            "maximum": significant(collected.maximum),
            "top": content["top"][:_EXAMPLES],
            "promoted": content["promoted"][:_EXAMPLES],
            "suppressed": content["suppressed"][:_EXAMPLES],
            "left_out_note": collection.left_out_note,
        }
    return {"features": features, "texts": words.texts}
