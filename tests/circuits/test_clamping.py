"""Interventions: predictions against paths that are counted out, and the model against plain hooks on it."""

import copy

import pytest
import torch
from torch import Tensor

from hfsae import Graph, trace
from hfsae.circuits.clamping import predicted
from tests.circuits.by_hand import ByHand
from tests.circuits.tiny import FAMILIES, IDS, cross_layer, model_of, transcoders
from tests.hooks.families import build
from tests.hooks.witness import count_hooks, replaced


def graph_of(family: str, **options) -> Graph:
    return trace(model_of(family), transcoders(family, skip=True), IDS, disable_tqdm=True, **options)


def logits_of(graph: Graph, logits: Tensor) -> Tensor:
    tokens = [node.token for node in graph.nodes if node.kind == "logit"]
    return logits[tokens] - logits.mean()


@pytest.mark.parametrize("family", FAMILIES)
def test_with_all_else_held_the_model_does_what_the_edges_say(family: str):
    graph = graph_of(family)
    found = graph.intervene({node: factor for node, factor in zip(graph.strongest(3), (0.0, 2.0, -1.0), strict=True)})
    assert any(abs(effect.direct) > 1e-3 for effect in found.effects)
    for effect in found.effects:
        assert effect.constrained == pytest.approx(effect.direct, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_constrained_is_what_a_model_that_is_written_out_by_hand_does(family: str):
    graph, saes = graph_of(family), list(transcoders(family, skip=True).values())
    hand = ByHand(family, model_of(family), saes, IDS)
    node = graph.strongest(1)[0]
    scales, errors, embeddings = hand.ones()
    with torch.no_grad():
        before = hand.nodes(scales, errors, embeddings)[1]
        scales[node.layer][node.position, node.feature] = 0.0
        expected = logits_of(graph, hand.nodes(scales, errors, embeddings)[1] - before)
    found = graph.intervene({node: 0.0})
    torch.testing.assert_close(torch.tensor([e.constrained for e in found.effects], dtype=torch.float64), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_open_is_what_the_model_does_when_something_is_added_where_the_feature_writes(family: str):
    graph, saes = graph_of(family), transcoders(family, skip=True)
    node = graph.strongest(1)[0]
    direction = saes[node.source].feature_directions[node.feature].detach()
    place = graph.circuit.sources[node.source].writes[0]

    def add(y: Tensor) -> Tensor:
        changed = y.clone()
        changed[0, node.position] += 2 * node.value * direction
        return changed

    model = model_of(family)
    with torch.no_grad():
        clean = model(IDS[None]).logits[0, -1]
        with replaced(model, str(place), add):
            changed = model(IDS[None]).logits[0, -1]
    found = torch.tensor([effect.open for effect in graph.intervene({node: 3.0}).effects], dtype=torch.float64)
    torch.testing.assert_close(found, logits_of(graph, changed - clean), rtol=1e-4, atol=1e-5)
    assert found.abs().max() > 1e-3


def test_a_feature_of_a_cross_layer_transcoder_is_changed_wherever_it_writes():
    sae = cross_layer("llama", skip=True)
    graph = trace(model_of("llama"), {"clt": sae}, IDS, disable_tqdm=True)
    node = next(node for node in graph.strongest(100) if node.layer == 0)
    first, second = (sae.rows_between(0, target)[node.feature].detach() for target in (0, 1))
    scales = sae.output_scale.double()

    def adding(direction: Tensor):
        def add(y: Tensor) -> Tensor:
            changed = y.clone()
            changed[0, node.position] += 2 * node.value * direction
            return changed

        return add

    model = model_of("llama")
    with torch.no_grad():
        clean = model(IDS[None]).logits[0, -1]
        with (
            replaced(model, "model.layers.0.mlp.output", adding(first / scales[0])),
            replaced(model, "model.layers.1.mlp.output", adding(second / scales[1])),
        ):
            expected = logits_of(graph, model(IDS[None]).logits[0, -1] - clean)
    effects = graph.intervene({node: 3.0}).effects
    found = torch.tensor([effect.open for effect in effects], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert found.abs().max() > 1e-3
    late = next(node for node in graph.strongest(100) if node.layer == 1)
    for effect in graph.intervene({node: 0.0, late: 2.0}).effects:
        assert effect.constrained == pytest.approx(effect.direct, rel=1e-6, abs=1e-9)
    validation = graph.validate(3)
    assert graph.intervene({validation.others.nodes[0]: 0.0}).effects[0].open == pytest.approx(
        validation.others.measured[0][0], abs=1e-6
    )


def test_a_feature_that_is_clamped_stays_so_whatever_an_earlier_one_does_to_it():
    graph = graph_of("llama")
    early, late = (next(n for n in graph.strongest(100) if n.layer == layer and n.position == 2) for layer in (0, 1))
    both = graph.intervene({early: 0.0, late: 1.0})
    sae = transcoders("llama", skip=True)[late.source]
    seen = []

    def without_early(y: Tensor) -> Tensor:
        changed = y.clone()
        first = transcoders("llama", skip=True)[early.source]
        changed[0, early.position] -= early.value * first.feature_directions[early.feature].detach()
        return changed

    def hold_late(y: Tensor) -> Tensor:
        now = sae.encode(seen[-1][0, late.position])[late.feature]
        changed = y.clone()
        changed[0, late.position] += (late.value - now) * sae.feature_directions[late.feature].detach()
        return changed

    model = model_of("llama")
    with torch.no_grad():
        clean = model(IDS[None]).logits[0, -1]
        with (
            replaced(model, "model.layers.0.mlp.output", without_early),
            replaced(model, "model.layers.1.mlp.input", lambda x: seen.append(x) or x),
            replaced(model, "model.layers.1.mlp.output", hold_late),
        ):
            expected = logits_of(graph, model(IDS[None]).logits[0, -1] - clean)
    found = torch.tensor([effect.open for effect in both.effects], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_prediction_goes_along_all_paths_and_a_feature_falls_to_0_and_no_further():
    """Three features in a row and a logit: 0 -> 1 -> 2 -> logit, 0 -> logit, their values 2, 1 and 4."""
    graph = graph_of("llama", max_features=3, max_logits=1)
    edges = torch.zeros_like(graph.edges)
    edges[1, 0], edges[2, 1], edges[-1, 2], edges[-1, 0] = 0.5, 2.0, 3.0, 1.0
    graph.edges = edges
    graph.nodes[:3] = [
        type(node)(**{**vars(node), "value": value})
        for node, value in zip(graph.nodes[:3], (2.0, 1.0, 4.0), strict=True)
    ]
    changes = torch.full((3, len(graph.nodes)), torch.nan, dtype=edges.dtype)
    changes[0, 0], changes[1, 0], changes[2, 0] = -1.0, 1.0, -4.0
    changes[2, 1] = 1.0
    assert predicted(graph, changes)[:, 0].tolist() == [
        -1 - 3 * 2 / 4 * 0.5,  # a half of 1 goes, so a half of the 2 that it makes of 2's 4
        1 + 3 * 2 / 4 * 0.5,
        -4 + 3 * 2 / 4 * 1,  # 1 is clamped to the double, whatever becomes of 0
    ]
    changes[0, 0] = -4.0  # 1 would fall by 2, twice what it is
    assert predicted(graph, changes)[0, 0] == -4 - 3 * 2 / 4


def test_validation_compares_predicted_with_measured_changes_and_stays_on_the_graph(tmp_path):
    model = build("llama")
    graph = trace(model, {n: s.float() for n, s in transcoders("llama").items()}, IDS, disable_tqdm=True)
    hooks = count_hooks(model)
    found = graph.validate(5, batch_size=2)
    assert count_hooks(model) == hooks
    assert found.strongest.nodes == [node.name for node in graph.strongest(5)]
    assert not set(found.strongest.nodes) & set(found.others.nodes) and len(found.others.nodes) == 5
    for ablations in (found.strongest, found.others):
        for name, predictions, measurements in zip(
            ablations.nodes, ablations.predicted, ablations.measured, strict=True
        ):
            alone = graph.intervene({name: 0.0}).effects
            assert [effect.open for effect in alone] == pytest.approx(measurements, abs=1e-4)
            assert [effect.total for effect in alone] == pytest.approx(predictions, abs=1e-5)
        both = torch.tensor([ablations.predicted, ablations.measured]).flatten(1)
        assert ablations.correlation == pytest.approx(float(torch.corrcoef(both)[0, 1]), abs=1e-5)
        rows = [graph.index(name) for name in ablations.nodes]
        direct = -graph.edges[graph.is_kind("logit")][:, rows].T
        both = torch.stack([direct.flatten(), torch.tensor(ablations.measured).flatten()])
        assert ablations.direct_correlation == pytest.approx(float(torch.corrcoef(both)[0, 1]), abs=1e-5)
    assert Graph.load(graph.save(tmp_path / "graph.safetensors")).validation == found.to_dict()
    assert "correlate" in str(found) and "direct" in str(graph.intervene({graph.strongest(1)[0]: 0.0}))


def test_a_graph_from_a_disk_gets_its_model_back(tmp_path):
    graph = graph_of("gpt2")
    loaded = Graph.load(graph.save(tmp_path / "graph.safetensors"))
    again = loaded.use(model_of("gpt2"), transcoders("gpt2", skip=True))
    factors = {graph.strongest(1)[0]: 0.0}
    assert again.intervene(factors) == graph.intervene(factors)


def test_what_cannot_be_changed_is_refused():
    graph = graph_of("llama", max_features=4)
    with pytest.raises(ValueError, match="no feature"):
        graph.intervene({"embedding@0": 0.0})
    with pytest.raises(ValueError, match="no factor"):
        graph.intervene({})
    with pytest.raises(ValueError, match="3 features and as many others"):
        graph.validate(3)


def test_a_feature_that_is_held_at_its_value_passes_nothing_on():
    """A factor of 1 clamps as any other does: what an earlier feature makes of it does not go on."""
    graph = graph_of("llama")
    early, late = _one_after_another(graph)
    logits = graph.is_kind("logit")
    moved = {factor: graph.intervene({early: 0.0, late: factor}).effects for factor in (1.0, 1 + 1e-6)}
    for held, nearly in zip(moved[1.0], moved[1 + 1e-6], strict=True):
        assert held.total == pytest.approx(nearly.total, abs=1e-4)
        assert held.open == pytest.approx(nearly.open, abs=1e-4)
    let_go = graph.intervene({early: 0.0}).effects
    through = -graph.edges[late, early] / graph.nodes[late].value * graph.edges[logits][:, late]
    apart = torch.tensor([one.total - other.total for one, other in zip(let_go, moved[1.0], strict=True)])
    assert through.abs().max() > 1e-3 and apart.abs().max() > 1e-3


def _one_after_another(graph: Graph) -> tuple[int, int]:
    """Rows of two features of which the first makes much of the second, and that one of a logit."""
    rows = graph.is_kind("feature").nonzero()[:, 0]
    into_logits = graph.edges[graph.is_kind("logit")][:, rows].abs().amax(0)
    strength = graph.edges[rows][:, rows].abs() * into_logits[:, None]
    late, early = divmod(int(strength.argmax()), len(rows))
    return int(rows[early]), int(rows[late])


def test_a_graph_is_not_held_against_another_model_or_other_saes(tmp_path):
    saes, model = transcoders("llama", skip=True), model_of("llama")
    loaded = Graph.load(graph_of("llama").save(tmp_path / "graph.safetensors"))
    with pytest.raises(ValueError, match="other values"):
        loaded.use(model, _shuffled(saes))
    with pytest.raises(ValueError, match=r"'mlp.1' at layer 1, which is not among these"):
        loaded.use(model, {"mlp.0": saes["mlp.0"]})
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.get_output_embeddings().weight.mul_(1.5)  # features are as they were
    with pytest.raises(ValueError, match="logits other values"):
        loaded.use(other, saes)


def _shuffled(saes: dict) -> dict:
    """The same SAEs with features in another order."""
    found = copy.deepcopy(saes)
    for sae in found.values():
        with torch.no_grad():
            for weights in (sae.encoder.weight, sae.encoder.bias, sae.W_dec):
                weights.copy_(weights.flip(0).clone())
    return found


def test_factors_that_mean_nothing_are_refused():
    graph = graph_of("llama")
    node = graph.strongest(1)[0]
    with pytest.raises(ValueError, match="is nan: expected a finite number"):
        graph.intervene({node: float("nan")})
    with pytest.raises(ValueError, match="two factors"):
        graph.intervene({node: 0.0, node.name: 2.0})
    with pytest.raises(ValueError, match="batch_size is 0"):
        graph.validate(3, batch_size=0)
    with pytest.raises(ValueError, match="no nodes of kind 'features', but feature, error"):
        graph.strongest(1, kind="features")
