"""Graphs of tiny real models, against a linear model that is written out by hand and differentiated as a whole."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from hfsae import SAE, TopKCrosscoderSAEConfig, trace
from hfsae.circuits import Graph, Node, edges, influence, tracing
from hfsae.circuits.tracing import why_untraceable
from hfsae.hooks import HookPointError
from tests.circuits.by_hand import ByHand, CrossLayerByHand, StreamByHand
from tests.circuits.tiny import FAMILIES, IDS, cross_layer, model_of, sae_at, stream_saes, transcoders
from tests.data.tiny import pythia_like
from tests.hooks.families import build
from tests.hooks.witness import count_hooks


def traced(family: str, saes: dict[str, SAE], **options) -> Graph:
    return trace(model_of(family), saes, IDS, disable_tqdm=True, **options)


def layer_of_place(node: Node) -> int:
    assert node.layer is not None
    return node.layer


KINDS = {"feature": 0, "error": 1, "embedding": 2}


def compare_with_jacobian(graph: Graph, hand: ByHand, features_per_layer: int = 24, k: int = 3) -> None:
    """Every edge of a graph of all features, beside the derivative of the model that is written out by hand."""
    with torch.no_grad():
        features, logits = hand.jacobian()
    layers = len(features)

    def part(node: Node) -> int:
        """Which of the layers; of errors at the end of blocks those behind the errors of MLPs."""
        at_end = node.kind == "error" and str(node.source).endswith("output") and "mlp" not in str(node.source)
        return layer_of_place(node) + (layers if at_end else 0)

    def edge(target: Node, source: Node) -> Tensor:
        of = (logits if target.kind == "logit" else features[layer_of_place(target)])[KINDS[source.kind]]
        of = of if source.kind == "embedding" else of[part(source)]
        if target.kind == "logit":
            of = of[target.token] - of.mean(0)
        else:
            of = of[target.position, target.feature % features_per_layer]
        if source.kind == "feature":
            return of[source.position, source.feature % features_per_layer]
        return of[source.position]

    targets = [row for row, node in enumerate(graph.nodes) if node.kind in ("feature", "logit")]
    sources = [row for row, node in enumerate(graph.nodes) if node.kind != "logit"]
    expected = torch.tensor([[float(edge(graph.nodes[t], graph.nodes[s])) for s in sources] for t in targets])
    found = graph.edges[targets][:, sources].float()
    assert len(targets) == 2 * 5 * k + 4
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert (expected.abs() > 1e-3).float().mean() > 0.1


@pytest.mark.parametrize("skip", [False, True], ids=["plain", "skip"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_every_edge_is_the_derivative_of_a_model_that_is_written_out_by_hand(family: str, skip: bool):
    saes = transcoders(family, skip=skip)
    graph = traced(family, saes, max_logits=4, min_probability=1.0)
    compare_with_jacobian(graph, ByHand(family, model_of(family), list(saes.values()), IDS))


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_so_is_every_edge_of_a_cross_layer_transcoder(family: str, tied: bool):
    sae = cross_layer(family, tied_decoder=tied, skip=tied)
    graph = traced(family, {"clt": sae}, max_logits=4, min_probability=1.0)
    compare_with_jacobian(graph, CrossLayerByHand(family, model_of(family), [sae], IDS))
    own = {node.feature for node in graph.nodes if node.kind == "feature"}
    assert max(own) >= 24 and {node.source for node in graph.nodes if node.kind == "feature"} == {"clt"}


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_so_is_every_edge_of_saes_of_the_stream(family: str):
    saes = stream_saes(family)
    graph = traced(family, saes, max_logits=4, min_probability=1.0)
    compare_with_jacobian(graph, StreamByHand(family, model_of(family), list(saes.values()), IDS))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_edges_into_a_node_and_what_biases_add_are_its_value(family: str):
    saes = transcoders(family, skip=True) | {
        "attention.1": sae_at(family, "attn_out.1", seed=7),
        "stream.0": sae_at(family, "resid_post.0", seed=8, input_transform="layer_norm"),
    }
    graph = traced(family, saes)
    rows = graph.is_kind("feature", "logit")
    values = torch.tensor([node.value for node in graph.nodes], dtype=torch.float64)
    sums = graph.edges.sum(1) + graph.constants + graph.left_out
    torch.testing.assert_close(sums[rows], values[rows], rtol=1e-8, atol=1e-8)
    assert graph.exactness.features < 1e-8 and graph.exactness.targets < 1e-8 and graph.exactness.logits < 1e-4
    assert not graph.left_out.any() and not graph.edges[~rows].any()
    own = model_of(family)(IDS[None]).logits[0, -1]
    for node in graph.nodes[-2:]:
        assert node.value == pytest.approx(float((own[node.token] - own.mean()).detach()), abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_in_float32_sums_hold_to_a_thousandth(family: str):
    saes = {name: sae.float() for name, sae in transcoders(family).items()}
    graph = trace(build(family), saes, IDS, disable_tqdm=True)
    assert graph.edges.dtype == torch.float32
    assert graph.exactness.features < 1e-3 and graph.exactness.targets < 1e-3 and graph.exactness.logits < 1e-4


def test_saes_of_the_stream_are_linked_by_attention_and_stream_and_mlps_are_error():
    graph = traced("llama", stream_saes("llama"))
    assert any("MLPs of layers 0, 1" in note for note in graph.notes)
    errors = {node.source for node in graph.nodes if node.kind == "error"}
    assert errors == {f"model.layers.{layer}.{place}" for layer in (0, 1) for place in ("output", "mlp.output")}
    late = [row for row, node in enumerate(graph.nodes) if node.source == "stream.1" and node.kind == "feature"]
    early = [row for row, node in enumerate(graph.nodes) if node.source == "stream.0" and node.kind == "feature"]
    assert graph.edges[late][:, early].abs().max() > 1e-3 and graph.exactness.features < 1e-8


def test_fewer_features_are_those_with_most_influence_and_the_rest_is_counted():
    whole = traced("gpt2", transcoders("gpt2"))
    part = traced("gpt2", transcoders("gpt2"), max_features=6, batch_size=2)
    assert int(part.is_kind("feature").sum()) == 6 and part.n_active == int(whole.is_kind("feature").sum())
    names = [node.name for node in part.nodes]
    rows = [whole.index(name) for name in names]
    torch.testing.assert_close(part.edges, whole.edges[rows][:, rows])
    rest = whole.edges.sum(1)[rows] - part.edges.sum(1)
    torch.testing.assert_close(part.left_out, rest)
    direct = torch.where(whole.is_kind("feature"), whole.edges[whole.is_kind("logit")].abs().sum(0), 0.0)
    assert whole.nodes[int(direct.argmax())].name in names


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_the_batch_size_changes_nothing(batch_size: int):
    expected = traced("llama", transcoders("llama"))
    torch.testing.assert_close(traced("llama", transcoders("llama"), batch_size=batch_size).edges, expected.edges)


@pytest.mark.parametrize("max_features", [9, 1000])
def test_edges_in_a_file_are_those_in_memory_and_the_file_is_gone(tmp_path: Path, monkeypatch, max_features: int):
    monkeypatch.setattr(influence, "ROWS_AT_ONCE", 4)
    monkeypatch.setattr(edges, "ROWS_AT_ONCE", 4)
    saes, seen = transcoders("llama") | stream_saes("llama"), []
    expected = traced("llama", saes, max_features=max_features, batch_size=3)
    square = tracing._square

    def looking(rows, *sizes):
        (file,) = tmp_path.glob("*/edges")
        seen.append(file.stat().st_size)
        assert seen[-1] == rows.traced.numel() * rows.traced.element_size()
        return square(rows, *sizes)

    monkeypatch.setattr(tracing, "_square", looking)
    found = traced("llama", saes, max_features=max_features, batch_size=3, offload=tmp_path)
    assert found.nodes == expected.nodes and found.exactness == expected.exactness and len(seen) == 1
    assert torch.equal(found.edges, expected.edges) and torch.equal(found.left_out, expected.left_out)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="is no folder"):
        traced("llama", saes, offload=tmp_path / "nowhere")


def test_targets_are_chosen_or_contrasted():
    saes = transcoders("llama")
    logits = model_of("llama")(IDS[None]).logits[0, -1]
    chosen = traced("llama", saes, targets=[5, 9])
    assert [node.token for node in chosen.nodes if node.kind == "logit"] == [5, 9]
    contrast = traced("llama", saes, contrast=(5, 9))
    (node,) = (node for node in contrast.nodes if node.kind == "logit")
    assert node.value == pytest.approx(float((logits[5] - logits[9]).detach()), abs=1e-5) and node.probability == 1
    torch.testing.assert_close(contrast.edges[-1][:-1], (chosen.edges[-2] - chosen.edges[-1])[:-2])
    few = traced("llama", saes, max_logits=3, min_probability=1.0)
    best = logits.topk(3).indices.tolist()
    assert [node.token for node in few.nodes if node.kind == "logit"] == best


def test_the_model_is_left_as_it_was():
    model = model_of("gpt2")
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    attention, hooks = model.config._attn_implementation, count_hooks(model)
    try:
        traced("gpt2", transcoders("gpt2"))
        with pytest.raises(ValueError, match="512"):
            traced("gpt2", transcoders("gpt2"), targets=[512])
        assert model.training and all(module.training for module in model.modules())
    finally:
        model.eval()
    assert model.config._attn_implementation == attention and count_hooks(model) == hooks
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_model_is_left_as_it_was_when_something_fails_in_the_middle(monkeypatch: pytest.MonkeyPatch):
    model = model_of("llama")
    attention, hooks = model.config._attn_implementation, count_hooks(model)
    head = model.get_output_embeddings()
    calls = iter(range(100))

    def fails(x: Tensor) -> Tensor:
        if next(calls) == 2:
            raise RuntimeError("in the middle")
        return torch.nn.functional.linear(x, head.weight)

    monkeypatch.setattr(head, "forward", fails)
    with pytest.raises(RuntimeError, match="in the middle"):
        traced("llama", transcoders("llama"))
    assert model.config._attn_implementation == attention and count_hooks(model) == hooks


# -- bad input --------------------------------------------------------------------------------------------------------
def test_a_model_in_half_precision_is_traced_in_float32_and_that_is_said():
    model = model_of("llama", torch.bfloat16)
    graph = trace(model, transcoders("llama"), IDS, disable_tqdm=True)
    assert any("bfloat16" in note and "float32" in note for note in graph.notes)
    assert graph.edges.dtype == torch.float32 and graph.exactness.features < 1e-3
    assert model.dtype == torch.bfloat16


@pytest.mark.parametrize("family, why", [("mamba", "no mlp_in"), ("bloom", "attention interface")])
def test_a_family_that_cannot_be_made_linear_is_refused_with_the_reason(family: str, why: str):
    saes = {"mlp.0": sae_at(family, "mlp_in.0", "mlp_out.0")}
    with pytest.raises((ValueError, HookPointError), match=why):
        trace(model_of(family), saes, IDS, disable_tqdm=True)


def test_what_the_blocks_do_besides_is_found_out_and_refused():
    saes = {"mlp.1": sae_at("gemma4", "mlp_in.1", "mlp_out.1")}
    with pytest.raises(ValueError, match="not linear between its MLPs"):
        traced("gemma4", saes)


def test_transcoders_that_leave_a_layer_out_are_traced_and_that_is_said():
    saes = transcoders("llama")
    del saes["mlp.0"]
    graph = traced("llama", saes)
    assert "No SAE writes what the MLPs of layers 0 write" in graph.notes[0]
    assert {node.layer for node in graph.nodes if node.kind == "error"} == {0, 1}
    assert graph.exactness.features < 1e-8


def test_saes_without_names_are_refused_in_a_sentence():
    (sae, *others) = transcoders("llama").values()
    for saes in ([sae, *others], sae, (sae,)):
        with pytest.raises(TypeError, match=r"SAEs are given by name, such as .* or load_saes\(folder\); got"):
            traced("llama", saes)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="'text' is a str, no SAE"):
        traced("llama", {"text": "runs/set"})  # type: ignore[dict-item]


def test_kinds_that_no_circuit_is_made_of_are_refused():
    config = TopKCrosscoderSAEConfig(
        source_names=["0", "1"],
        source_widths=[16, 16],
        n_features=48,
        k=3,
        hook_point="resid_post.0+resid_post.1",
    )
    with pytest.raises(ValueError, match="'both' is a crosscoder"):
        traced("llama", {"both": SAE.from_config(config)})
    sae = cross_layer("llama")
    with pytest.raises(TypeError, match="A cross-layer transcoder is given whole"):
        traced("llama", sae.by_layer())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'mlp.0' and 'clt/mlp_in.0' write at"):
        traced("llama", {"mlp.0": transcoders("llama")["mlp.0"], "clt": sae})


def test_kinds_that_go_together_are_traced_together():
    """A cross-layer transcoder of MLPs, SAEs of what attention writes, and of the stream, in one graph."""
    saes = {"clt": cross_layer("llama", skip=True), "attention.1": sae_at("llama", "attn_out.1", seed=7)}
    graph = traced("llama", saes | stream_saes("llama"))
    assert {node.source for node in graph.nodes if node.kind == "feature"} == {*saes, *stream_saes("llama")}
    assert graph.exactness.features < 1e-8 and graph.exactness.targets < 1e-8 and graph.notes == []


def test_saes_of_another_model_are_refused_or_told():
    with pytest.raises(HookPointError, match="SAE 'deep'"):
        traced("llama", {"deep": sae_at("llama", "mlp_in.7", "mlp_out.7")})
    with pytest.raises(ValueError, match="SAE 'clt/mlp_in.0': the activations of Qwen3ForCausalLM"):
        trace(model_of("qwen3"), {"clt": _wider(cross_layer("llama"))}, IDS, disable_tqdm=True)
    saes = transcoders("llama")
    model = copy.deepcopy(model_of("llama"))
    model.config._name_or_path = model.name_or_path = "models/mine"
    saes["mlp.0"].config.base_model = "org/another"
    try:
        graph = trace(model, saes, IDS, disable_tqdm=True)
        assert any("'mlp.0' was trained on org/another; this model is models/mine" in note for note in graph.notes)
        model.config._name_or_path = model.name_or_path = "/elsewhere/another"
        assert trace(model, saes, IDS, disable_tqdm=True).notes == []
    finally:
        saes["mlp.0"].config.base_model = None


def _wider(sae: SAE) -> SAE:
    config = copy.deepcopy(sae.config)
    config.source_widths, config.d_in, config.d_out = [40, 40], 80, 80
    return SAE.from_config(config).double()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_tied_embeddings_are_explained_as_any_others(family: str):
    """What reads the stream at its end is then the matrix that wrote it at its start."""
    model = copy.deepcopy(model_of(family))
    model.config.tie_word_embeddings = True
    model.tie_weights()
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    saes = transcoders(family)
    graph = trace(model, saes, IDS, disable_tqdm=True, max_logits=4, min_probability=1.0)
    compare_with_jacobian(graph, ByHand(family, model, list(saes.values()), IDS))
    half = trace(copy.deepcopy(model).bfloat16(), saes, IDS, disable_tqdm=True)
    assert half.exactness.targets < 1e-3 and half.exactness.logits < 0.05 and "bfloat16" in half.notes[0]


@pytest.mark.parametrize(("place", "dtype"), [("lm_head", torch.float32), ("model.layers.1", torch.bfloat16)])
def test_offloaded_weights_are_used_or_refused(tmp_path, place, dtype):
    """Blocks come from the disk when they run; the LM head is read apart, and a copy in float32 has no disk."""
    model_of("llama").save_pretrained(tmp_path / "model")
    parts = ["model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head", "model.layers.0", "model.layers.1"]

    def graph(away: str, dtype: torch.dtype) -> Graph:
        places = {part: "disk" if part == away else "cpu" for part in parts}
        told = {"device_map": places, "offload_folder": str(tmp_path / away)}
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=dtype, **told).eval()
        return trace(model, transcoders("llama"), IDS, disable_tqdm=True)

    with pytest.raises(ValueError, match="lie on the disk"):
        graph(place, dtype)
    expected = graph("", torch.float32)
    torch.testing.assert_close(graph("model.layers.1", torch.float32).edges, expected.edges)


@pytest.mark.parametrize("around", [lambda: torch.device("meta"), torch.autograd.detect_anomaly])
@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_what_torch_is_told_elsewhere_changes_no_graph(around):
    saes = transcoders("llama")
    expected = traced("llama", saes)
    with around():
        found = traced("llama", saes)
        said = repr(found)
    assert said == repr(expected) and torch.equal(found.edges, expected.edges)


def test_bad_input_is_refused():
    saes = transcoders("llama")
    with pytest.raises(ValueError, match="no SAE"):
        traced("llama", {})
    with pytest.raises(ValueError, match="33 tokens, but the model reads 32"):
        trace(model_of("llama"), saes, [5] * 33, disable_tqdm=True)
    with pytest.raises(ValueError, match="has 1 token"):
        trace(model_of("llama"), saes, [5], disable_tqdm=True)
    with pytest.raises(ValueError, match="has no token"):
        trace(model_of("llama"), saes, [], disable_tqdm=True)
    with pytest.raises(ValueError, match=r"\(2, 3\) of torch.int64: a circuit is of one prompt"):
        trace(model_of("llama"), saes, torch.tensor([[5, 6, 7], [8, 9, 10]]), disable_tqdm=True)
    with pytest.raises(ValueError, match="of torch.float32: a circuit is of one prompt"):
        trace(model_of("llama"), saes, torch.tensor([5.0, 6.0]), disable_tqdm=True)
    with pytest.raises(ValueError, match="token id 999"):
        trace(model_of("llama"), saes, [5, 999], disable_tqdm=True)
    with pytest.raises(ValueError, match="8 dimensions|d_in"):
        traced(
            "llama",
            {"narrow": SAE.from_config(type(saes["mlp.0"].config)(d_in=8, n_features=16, k=2, hook_point="mlp_in.0"))},
        )
    with pytest.raises(ValueError, match="inside of an MLP"):
        traced(
            "llama",
            {"act": SAE.from_config(type(saes["mlp.0"].config)(d_in=24, n_features=16, k=2, hook_point="mlp_act.0"))},
        )
    with pytest.raises(ValueError, match="outside of the blocks"):
        traced("llama", {"embed": sae_at("llama", "embed")})
    with pytest.raises(ValueError, match="write at"):
        traced("llama", saes | {"twice": sae_at("llama", "mlp_in.0", "mlp_out.0", seed=5)})
    with pytest.raises(ValueError, match="expected two tokens"):
        traced("llama", saes, contrast=(5, 6, 7))
    with pytest.raises(ValueError, match="the target True is no token"):
        traced("llama", saes, targets=[True])
    with pytest.raises(ValueError, match="the same token twice"):
        traced("llama", saes, contrast=(5, 5))
    with pytest.raises(ValueError, match="targets and contrast"):
        traced("llama", saes, contrast=(5, 6), targets=[7])
    with pytest.raises(ValueError, match="1 or more"):
        traced("llama", saes, max_features=0)


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
def test_a_graph_is_the_same_where_gradients_are_off(around):
    saes = transcoders("llama")
    outside = traced("llama", saes)
    with around():
        ids = IDS.clone()  # in inference mode a tensor that cannot be differentiated past
        inside = trace(model_of("llama"), saes, ids, disable_tqdm=True)
        explained = inside.explain_attention(1, 0)
        effects = inside.intervene({inside.strongest(1)[0]: 0.0}).effects
    assert torch.equal(inside.edges, outside.edges)
    assert explained == outside.explain_attention(1, 0)
    assert effects == outside.intervene({outside.strongest(1)[0]: 0.0}).effects


def test_what_would_round_or_cannot_be_differentiated_is_refused():
    saes = transcoders("llama")
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(ValueError, match="torch.autocast rounds"):
        traced("llama", saes)
    with torch.inference_mode():
        made_inside = copy.deepcopy(model_of("llama"))
    with pytest.raises(ValueError, match="weights of the LlamaForCausalLM were made inside of torch.inference_mode"):
        trace(made_inside, saes, IDS, disable_tqdm=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_can_be_traced_has_no_reason_against(family):
    assert why_untraceable(model_of(family), transcoders(family), pythia_like()) is None


def test_a_cpu_without_memory_is_a_reason(monkeypatch):
    monkeypatch.setattr("hfsae.circuits.tracing.LocalReplacement", lambda *_: torch.empty(2**55))
    assert "memory is too small" in (why_untraceable(model_of("llama"), transcoders("llama"), pythia_like()) or "")


def test_a_reason_is_that_of_trace(monkeypatch):
    twice = {name: sae_at("llama", "resid_post.0") for name in ("a", "b")}
    why = why_untraceable(model_of("llama"), twice, pythia_like())
    with pytest.raises(ValueError) as refused:
        trace(model_of("llama"), twice, IDS)
    assert why == str(refused.value)
    assert why_untraceable(model_of("llama"), {"guest": object()}, pythia_like()) == (  # type: ignore[dict-item]
        "'guest' is a object, no SAE."
    )

    def no_memory(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("hfsae.circuits.tracing.LocalReplacement", no_memory)
    assert "memory is too small" in (why_untraceable(model_of("llama"), transcoders("llama"), pythia_like()) or "")
