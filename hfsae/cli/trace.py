"""`hfsae trace`: which features of a prompt make what the model says, on one page."""

from typing import Annotated

from hfsae.cli.measuring_options import OnHub, SAESource
from hfsae.command_line import option

# Logits that are printed; the page has all.
_SHOWN = 3

# What `Validation` holds, in its order.
_TAKEN_AWAY = ("the strongest features", "others of like activation")


def run(
    path: SAESource,
    prompt: Annotated[str, option("--prompt", "The text whose next token is explained.")],
    output: Annotated[str, option("--output", "The page, a file that ends in .html.")] = "graph.html",
    json: Annotated[
        str | None, option("--json", "A file for the pruned graph as circuit-tracer and Neuronpedia read it.")
    ] = None,
    graph: Annotated[str | None, option("--graph", "A file for the whole graph, which Graph.load reads.")] = None,
    target: Annotated[
        list[str] | None,
        option("--target", "A token to explain, instead of the most probable ones; may be repeated."),
    ] = None,
    against: Annotated[
        str | None, option("--against", "Explain the difference of the target's logit and this token's.")
    ] = None,
    max_features: Annotated[int, option("--max_features", "Features in the graph, those with most influence.")] = 2000,
    max_logits: Annotated[int, option("--max_logits", "Most probable tokens that are explained, at most.")] = 10,
    batch_size: Annotated[int, option("--batch_size", "Nodes in one backward pass; memory grows with it.")] = 64,
    offload: Annotated[
        str | None, option("--offload", "A folder for edges while they are traced, instead of memory.")
    ] = None,
    supernodes: Annotated[
        str | None, option("--supernodes", "A file with pins and groups, as the page gives them under Keep.")
    ] = None,
    attention: Annotated[
        list[str] | None,
        option("--attention", "Layer and head, such as 3.1: explain why it looks where it does; may be repeated."),
    ] = None,
    validate: Annotated[
        int, option("--validate", "Strong features to take away one by one, to hold the graph against the model.")
    ] = 20,
    model_name_or_path: Annotated[
        str | None,
        option(
            "--model_name_or_path",
            "Language model; by default the one that the SAEs' configs name. --model for short.",
        ),
    ] = None,
    *,
    on_hub: OnHub,
) -> int:
    """Traces, writes the page, and says what came out."""
    from hfsae.circuits.trace_saved import trace_saved

    tokens = target or []
    if against is not None and len(tokens) != 1:
        raise ValueError("--against compares one token with another: name the first with one --target.")
    found = trace_saved(
        path,
        prompt,
        output,
        json_output=json,
        graph_output=graph,
        model=model_name_or_path,
        supernodes=supernodes,
        attention=[_layer_and_head(said) for said in attention or []],
        validate=validate,
        max_features=max_features,
        max_logits=max_logits,
        batch_size=batch_size,
        offload=offload,
        targets=tokens or None if against is None else None,
        contrast=None if against is None else (tokens[0], against),
        **on_hub.keywords(),
    )
    logits = [node for node in found.nodes if node.kind == "logit"]
    for node in logits[:_SHOWN]:
        likely = f", probability {node.probability:.3f}" if node.against is None else ""
        print(f"{node.label!r}: {found.about['values']} {node.value:.3f}{likely}")
    print(
        f"{int(found.is_kind('feature').sum()):,} of {found.n_active:,} features; replacement score "
        f"{found.replacement_score:.3f}, completeness score {found.completeness_score:.3f}; sums are exact to "
        f"{max(found.exactness.features, found.exactness.targets):.1e}"
    )
    for explained in found.attention:
        print(explained)
        query, key = (f"@{at} is {found.tokens[at]!r}" for at in (explained.query, explained.key))
        print(f"{'':9}  {query}, {key}")
    if found.validation is not None:
        for name, part in zip(_TAKEN_AWAY, found.validation.values(), strict=True):
            print(
                f"{name} taken away: predicted and measured changes correlate by {part['correlation']:.3f}, "
                f"direct edges alone by {part['direct_correlation']:.3f}"
            )
    print(f"wrote {output}")
    return 0


def _layer_and_head(said: str) -> tuple[int, int]:
    layer, _, head = said.partition(".")
    if not (layer.isdecimal() and head.isdecimal()):
        raise ValueError(f"--attention {said}: name a layer and a head of it, such as 3.1.")
    return int(layer), int(head)
