"""Why heads look where they do: scores of the models themselves, and terms of a model that is written out by hand."""

import copy
import json
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.func import jacrev

from hfsae import Graph, trace
from hfsae.circuits import AttentionTerms, Node
from tests.circuits.by_hand import ByHand
from tests.circuits.tiny import FAMILIES, IDS, cross_layer, model_of, stream_saes, transcoders


def graph_of(family: str, **options) -> Graph:
    return trace(model_of(family), transcoders(family, skip=True), IDS, disable_tqdm=True, **options)


def all_terms(graph: Graph, layer: int, head: int, **places) -> AttentionTerms:
    return graph.explain_attention(layer, head, n=1_000_000, **places)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_terms_are_together_the_score_of_the_model_itself(family: str):
    """Scores are told from the model's own probabilities: their logarithms differ as scores do."""
    eager = copy.deepcopy(model_of(family))
    eager.set_attn_implementation("eager")
    with torch.no_grad():
        own = eager(IDS[None], output_attentions=True).attentions[1][0, 1, 5].log()
    found = {key: all_terms(graph_of(family), 1, 1, query=5, key=key) for key in (2, 4)}
    for key, terms in found.items():
        assert terms.probability == pytest.approx(float(own[key].exp()), rel=1e-4)
        assert abs(terms.error) < 1e-8 and abs(terms.left_out) < 1e-8
        assert sum(term.value for term in terms.terms) == pytest.approx(terms.score, abs=1e-8)
    assert found[2].score - found[4].score == pytest.approx(float(own[2] - own[4]), rel=1e-4, abs=1e-6)
    assert abs(found[2].score - found[4].score) > 1e-3


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_term_is_the_product_of_derivatives_of_a_model_that_is_written_out_by_hand(family: str):
    graph, saes = graph_of(family), list(transcoders(family, skip=True).values())
    hand = ByHand(family, model_of(family), saes, IDS)
    with torch.no_grad():
        queries, keys = jacrev(partial(hand.queries_and_keys, 1), argnums=(0, 1, 2))(*hand.ones())
        whole_queries, whole_keys = hand.queries_and_keys(1, *hand.ones())
    width = whole_queries.shape[-1]

    def part(made, node: Node, position: int) -> torch.Tensor:
        of = made[{"feature": 0, "error": 1, "embedding": 2}[node.kind]]
        of = (of if node.kind == "embedding" else of[node.layer])[1, position]
        return of[:, node.position, node.feature] if node.kind == "feature" else of[:, node.position]

    found = all_terms(graph, 1, 1, query=4, key=3)
    values = {(term.query, term.key): term.value for term in found.terms}
    sources = [node for node in graph.nodes if node.kind != "logit"]
    compared = 0
    for one in sources:
        for other in sources:
            expected = float(part(queries, one, 4) @ part(keys, other, 3)) / width**0.5
            assert values.get((one.name, other.name), 0.0) == pytest.approx(expected, rel=1e-6, abs=1e-10)
            compared += abs(expected) > 1e-4
    assert compared > 20
    assert found.score == pytest.approx(float(whole_queries[1, 4] @ whole_keys[1, 3]) / width**0.5, rel=1e-6)
    assert any(term.query == "biases" for term in found.terms) or family == "llama"


@pytest.mark.parametrize("kind", ["cross_layer", "stream"])
def test_other_kinds_of_saes_are_complete_too(kind: str):
    saes = {"clt": cross_layer("gpt2", skip=True)} if kind == "cross_layer" else stream_saes("gpt2")
    graph = trace(model_of("gpt2"), saes, IDS, disable_tqdm=True, max_features=4)
    found = all_terms(graph, 1, 0, key=1)
    assert abs(found.error) < 1e-8 and abs(found.left_out) < 1e-8
    assert any("/" in term.query and "/" in term.key for term in found.terms)


def test_few_terms_are_the_largest_and_the_rest_is_summed():
    graph = graph_of("gpt2")
    whole, few = all_terms(graph, 1, 0), graph.explain_attention(1, 0, n=5)
    assert few.terms == whole.terms[:5]
    sizes = [abs(term.value) for term in whole.terms]
    assert sizes == sorted(sizes, reverse=True) and len(sizes) > 50
    assert few.left_out == pytest.approx(sum(term.value for term in whole.terms[5:]), abs=1e-9)
    assert "looks at" in str(few) and "all other terms" in str(few)


def test_heads_are_listed_by_how_surely_they_look(tmp_path: Path):
    graph = graph_of("llama")
    eager = copy.deepcopy(model_of("llama"))
    eager.set_attn_implementation("eager")
    with torch.no_grad():
        patterns = torch.stack(eager(IDS[None], output_attentions=True).attentions)[:, 0, :, 3]
    first, *others = graph.looks(3, n=100)
    assert first.probability == pytest.approx(float(patterns.max()), rel=1e-5)
    assert float(patterns[first.layer, first.head, first.key]) == pytest.approx(first.probability, rel=1e-5)
    assert len(others) + 1 == patterns.shape[0] * patterns.shape[1]
    found = graph.explain_attention(first.layer, first.head, query=3, n=4)
    assert found.key == first.key
    loaded = Graph.load(graph.save(tmp_path / "graph.safetensors"))
    assert loaded.attention == [found]
    written = json.loads(json.dumps(loaded.to_json()))["attention"]
    assert written[0]["terms"][0] == vars(found.terms[0]) and written[0]["score"] == found.score
    with pytest.raises(ValueError, match="graph.use"):
        loaded.looks()


def test_in_float32_the_sum_holds_to_a_thousandth():
    saes = {name: sae.float() for name, sae in copy.deepcopy(transcoders("llama")).items()}
    graph = trace(model_of("llama", torch.float32), saes, IDS, disable_tqdm=True)
    found = graph.explain_attention(1, 1, query=5, key=2)
    assert abs(found.error) < 1e-3 * abs(found.score)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"layer": 2, "head": 0}, "no layer 2: there are 0 to 1"),
        ({"layer": 0, "head": 4}, "no head 4 in layer 0"),
        ({"layer": 0, "head": 0, "query": 6}, "no token 6"),
        ({"layer": 0, "head": 0, "query": 2, "key": 3}, "cannot look from token 2 at token 3"),
    ],
)
def test_what_is_not_there_is_refused(asked: dict, message: str):
    with pytest.raises(ValueError, match=message):
        graph_of("llama").explain_attention(**asked)
