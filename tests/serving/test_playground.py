"""What the page's questions give, against features and steering written out; and what they may not ask for."""

import copy
import re
from functools import cache
from unittest.mock import patch

import pytest
import torch

from hfsae import SAE, CrosscoderSAEConfig, TopKSAEConfig, collect_features, steer, trace
from hfsae.hooks import SideBySide
from hfsae.host_memory import give_freed_memory_back
from hfsae.serving import Limits, Playground, ServedSAE
from hfsae.serving.questions import BusyError
from tests.analysis.tiny import CONTEXT, setting, texts
from tests.meaning.tiny import collection

LIMITS = Limits(
    prompt_tokens=10,
    new_tokens=8,
    features=2,
    strength=50.0,
    traced_tokens=6,
    traced_features=20,
    graphs=2,
    seconds=0.1,
)


def playground() -> Playground:
    sae, model, tokenizer = setting()
    return Playground({"sae": ServedSAE(sae, collection(), {5: "a label"})}, model, tokenizer, "tiny", LIMITS)


@cache
def transcoders() -> dict[str, ServedSAE]:
    """Of both MLPs, the second narrower."""
    _, model, tokenizer = setting()
    served = {}
    for layer, n_features in enumerate((24, 16)):
        torch.manual_seed(layer)
        places = {"hook_point": f"mlp_in.{layer}", "target_hook_point": f"mlp_out.{layer}"}
        config = TopKSAEConfig(d_in=16, n_features=n_features, k=4, context_length=CONTEXT, **places)
        sae = SAE.from_config(config).eval()
        found = collect_features(sae, model, tokenizer, texts(20), n_top=2, n_sample=2, disable_tqdm=True)
        served[f"mlp.{layer}"] = ServedSAE(
            sae, found, {feature: f"called {layer}.{feature}" for feature in range(n_features)}
        )
    return served


def playground_of_a_set() -> Playground:
    _, model, tokenizer = setting()
    return Playground(transcoders(), model, tokenizer, "set", LIMITS)


def test_a_text_has_the_features_that_the_sae_finds():
    sae, model, tokenizer = setting()
    found = playground().read("w1 w2 w3 w4")
    ids = torch.tensor([tokenizer("w1 w2 w3 w4")["input_ids"]])
    with torch.no_grad():
        dense = sae.encode(model(ids, output_hidden_states=True).hidden_states[2][0])
    assert "".join(found["tokens"]).split() == ["w1", "w2", "w3", "w4"] and found["kept"] == [False, True, True, True]
    for token in range(1, 4):
        expected = {int(i): float(dense[token, i]) for i in dense[token].nonzero()[:, 0]}
        assert found["features"][token] == sorted(expected, key=lambda i: -expected[i])
        assert found["activations"][token] == pytest.approx(sorted(expected.values(), reverse=True), rel=0.01)
    fired = {str(feature) for features in found["features"] for feature in features}
    assert found["known"].keys() == fired
    assert found["known"][min(fired)]["maximum"] == pytest.approx(collection().of(int(min(fired))).maximum, rel=0.01)


def test_a_continuation_is_that_of_generate():
    sae, model, tokenizer = setting()
    with patch("hfsae.serving.playground.give_freed_memory_back", wraps=give_freed_memory_back) as given_back:
        told = playground().generate("w1 w2", {"sae": {"5": 30, "7": 0}}, 8)
    assert given_back.call_count == 1
    inputs = sae.tokenize("w1 w2", tokenizer)
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    plain = model.generate(**inputs, **options)[0, 2:]
    with steer(model, sae, {5: 30.0}, maxima=collection()):
        steered = model.generate(**inputs, **options)[0, 2:]
    assert told["plain"].split() == tokenizer.decode(plain).split() != told["steered"].split()
    assert told["steered"].split() == tokenizer.decode(steered).split()
    assert playground().generate("w1 w2", {}, 8)["steered"] == told["plain"]


@pytest.mark.parametrize(
    ("text", "strengths", "new_tokens", "message"),
    [
        ("", {}, 5, "empty"),
        (None, {}, 5, "empty"),
        (["w1"], {}, 5, "empty"),
        ("w1 " * 11, {}, 5, "has 11 tokens: 10 are allowed"),
        ("w1 " * 1000, {}, 5, "too long"),
        ("w1", {}, 9, "expected 1 to 8"),
        ("w1", {}, True, "no whole number"),
        ("w1", {}, None, "no whole number"),
        ("w1", {"sae": {"1": 1, "2": 1, "3": 1}}, 5, "at most 2"),
        ("w1", [1], 5, "at most 2"),
        ("w1", {"sae": [1]}, 5, "at most 2"),
        ("w1", {"5": 1}, 5, "by SAE and feature"),
        ("w1", {"other": {"5": 1}}, 5, "no SAE 'other' here: expected one of sae"),
        ("w1", {"sae": {"40": 1}}, 5, "no feature '40'"),
        ("w1", {"sae": {"-1": 1}}, 5, "no feature '-1'"),
        ("w1", {"sae": {"9" * 50: 1}}, 5, "no feature"),
        ("w1", {"sae": {"5": float("nan")}}, 5, "no number"),
        ("w1", {"sae": {"5": "2"}}, 5, "no number"),
        ("w1", {"sae": {"5": 51}}, 5, "at most 50"),
    ],
)
def test_questions_have_limits(text, strengths, new_tokens, message):
    with pytest.raises(ValueError, match=message):
        playground().generate(text, strengths, new_tokens)


def test_a_text_that_the_model_cannot_read_is_refused():
    """Beyond the context, or half of a letter, which JSON can hold: both were answered by "the terminal says why"."""
    sae, model, tokenizer = setting()
    longest = model.config.max_position_embeddings
    limits = Limits(prompt_tokens=1000, new_tokens=1000)
    asked = Playground({"sae": ServedSAE(sae, collection())}, model, tokenizer, limits=limits)
    with pytest.raises(ValueError, match=f"the prompt has {longest + 1} tokens, but the model reads {longest}"):
        asked.read("w1 " * (longest + 1))
    with pytest.raises(ValueError, match=f"3 new ones are more than the {longest} .*: ask for at most 2"):
        asked.generate("w1 " * (longest - 1), {}, 3)
    assert len(asked.generate("w1 " * (longest - 1), {}, 2)["plain"].split()) == 2
    for question in (asked.read, lambda text: asked.generate(text, {}, 3), asked.trace):
        with pytest.raises(ValueError, match="half of a letter"):
            question("w1 \ud800")


def test_each_sae_of_a_set_is_read_and_several_are_steered_at_once():
    _, model, tokenizer = setting()
    saes, asked = transcoders(), playground_of_a_set()
    for name, served in saes.items():
        told = asked.read("w1 w2 w3", name)
        assert told["sae"] == name and told["known"].keys() == {str(f) for one in told["features"] for f in one}
        alone = Playground({name: served}, model, tokenizer, limits=LIMITS).read("w1 w2 w3")
        assert alone == told
    assert asked.read("w1 w2 w3")["sae"] == "mlp.0"
    with pytest.raises(ValueError, match=re.escape("no SAE 'mlp.2' here: expected one of mlp.0, mlp.1")):
        asked.read("w1 w2", "mlp.2")
    with pytest.raises(ValueError, match="no feature '16': expected 0 to 15"):
        asked.generate("w1", {"mlp.0": {"16": 1}, "mlp.1": {"16": 1}}, 1)

    loud = {
        name: int(served.collection.features[served.collection.densities.argmax()]) for name, served in saes.items()
    }
    told = asked.generate("w1 w2", {name: {str(feature): 40} for name, feature in loud.items()}, 8)
    first, second = saes.values()
    inputs = first.sae.tokenize("w1 w2", tokenizer)
    with (
        steer(model, first.sae, {loud["mlp.0"]: 40.0}, maxima=first.collection),
        steer(model, second.sae, {loud["mlp.1"]: 40.0}, maxima=second.collection),
    ):
        steered = model.generate(**inputs, max_new_tokens=8, do_sample=False, pad_token_id=0)[0, 2:]
    assert told["steered"].split() == tokenizer.decode(steered).split() != told["plain"].split()


def test_a_text_is_traced_as_trace_does():
    _, model, tokenizer = setting()
    asked = playground_of_a_set()
    assert asked.no_trace is None and asked.about()["no_trace"] is None
    told = asked.trace("w1 w2 w3 w4")
    saes = {name: served.sae for name, served in transcoders().items()}
    graph = trace(model, saes, "w1 w2 w3 w4", tokenizer=tokenizer, max_features=20, disable_tqdm=True)
    assert told["replacement"] == pytest.approx(graph.replacement_score, rel=0.01)
    assert told["features"] == 20 < told["active"] == graph.n_active
    logits = [node for node in graph.nodes if node.kind == "logit"]
    assert [one["token"] for one in told["says"]] == [node.label for node in logits]
    page = (asked.graph(told["graph"]) or b"").decode()
    traced = {node.name for node in graph.nodes if node.kind == "feature"}
    assert "<title>w1 w2 w3 w4</title>" in page and len(traced) == 20 and all(f'"{name}"' in page for name in traced)
    assert all(f'called {node.source[4:]}.{node.feature}"' in page for node in graph.nodes if node.name in traced)


def test_the_newest_graphs_are_kept():
    asked = playground_of_a_set()
    numbers = [asked.trace(text)["graph"] for text in ("w1 w2", "w2 w3", "w3 w4")]
    assert asked.graph(numbers[0]) is None and asked.graph(99) is None
    assert [b"w2 w3" in (asked.graph(n) or b"") for n in numbers] == [False, True, False]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        (3, "empty"),
        ("w1 " * 7, "has 7 tokens: 6 are allowed"),
        ("w1 " * 999, "too long"),
        ("w1", "two"),
    ],
)
def test_what_is_traced_has_limits(text, message):
    with pytest.raises(ValueError, match=message):
        playground_of_a_set().trace(text)


def test_where_there_can_be_no_graph_it_is_said_why():
    _, model, tokenizer = setting()
    served = transcoders()["mlp.0"]
    twice = Playground({"a": served, "b": served}, model, tokenizer, limits=LIMITS)
    assert twice.no_trace and twice.about()["no_trace"] == twice.no_trace
    with pytest.raises(ValueError, match=re.escape(twice.no_trace)):
        twice.trace("w1 w2 w3")
    assert twice.read("w1 w2 w3", "b")["features"]


def test_where_there_can_be_no_steering_it_is_said_why_before_the_model_runs():
    _, model, tokenizer = setting()
    names = {"source_names": ["a", "b"], "source_widths": [16, 16], "hook_point": "resid_post.0+resid_post.1"}
    config = CrosscoderSAEConfig(n_features=24, k=4, context_length=CONTEXT, **names)
    crosscoder = SAE.from_config(config).eval()
    found = collect_features(crosscoder, model, tokenizer, texts(20), n_top=2, n_sample=2, disable_tqdm=True)
    saes = {"both": ServedSAE(crosscoder, found), **transcoders()}
    one = Playground(saes, model, tokenizer, limits=LIMITS)
    told = {name: said["no_steering"] for said in one.about()["saes"] for name in [said["name"]]}
    assert told["mlp.0"] is told["mlp.1"] is None and "a crosscoder reads several sources" in str(told["both"])
    assert one.read("w1 w2 w3", "both")["features"] and one.generate("w1 w2 w3", {"mlp.0": {"3": 5}}, 2)
    with patch.object(type(model), "generate", side_effect=AssertionError), pytest.raises(ValueError, match="sources"):
        one.generate("w1 w2 w3", {"both": {"3": 5}}, 2)


def test_models_side_by_side_continue_no_text():
    _, model, tokenizer = setting()
    names = {"source_names": ["base", "tuned"], "source_widths": [16, 16], "hook_point": "resid_post.1"}
    crosscoder = SAE.from_config(CrosscoderSAEConfig(n_features=24, k=4, context_length=CONTEXT, **names)).eval()
    models = SideBySide({"base": model, "tuned": copy.deepcopy(model)}).eval()
    found = collect_features(crosscoder, models, tokenizer, texts(20), n_top=2, n_sample=2, disable_tqdm=True)
    one = Playground({"diff": ServedSAE(crosscoder, found)}, models, tokenizer, limits=LIMITS)
    assert one.read("w1 w2 w3")["features"]
    for strengths in ({}, {"diff": {"3": 5}}):
        with pytest.raises(ValueError, match="models that stand side by side continue no text"):
            one.generate("w1 w2 w3", strengths, 2)


def test_a_model_in_half_precision_is_copied_when_a_trace_is_asked_for_and_no_earlier(monkeypatch):
    _, model, tokenizer = setting()
    half = copy.deepcopy(model).bfloat16()
    copies = []
    deepcopy = copy.deepcopy

    def noting(one, memo=None):
        copies.append(one)
        return deepcopy(one, memo)

    monkeypatch.setattr("hfsae.circuits.replacement.copy.deepcopy", noting)
    asked = Playground(transcoders(), half, tokenizer, limits=LIMITS)
    assert asked.about()["no_trace"] is None and asked.read("w1 w2 w3")["features"]
    assert not any(one is half for one in copies)
    told = asked.trace("w1 w2 w3")
    assert any("bfloat16" in note and "float32" in note for note in told["notes"])
    assert any(one is half for one in copies)
    served = transcoders()["mlp.0"]
    twice = Playground({"a": served, "b": served}, half, tokenizer, limits=LIMITS)
    assert twice.about()["no_trace"] is None
    with pytest.raises(ValueError, match="write at"):
        twice.trace("w1 w2 w3")


def test_nothing_is_said_of_graphs_before_one_is_asked_for(caplog):
    caplog.set_level("INFO", "hfsae")
    asked = playground()
    asked.about()
    assert asked.no_trace is None and not caplog.messages
    asked.trace("w1 w2 w3")
    assert "all of it is error" in caplog.text


def test_an_sae_of_the_stream_is_traced_alone():
    told = playground().trace("w1 w2 w3")
    assert playground().no_trace is None and told["notes"] and "all of it is error" in told["notes"][0]


def test_limits_and_an_empty_set_are_refused():
    _, model, tokenizer = setting()
    with pytest.raises(ValueError, match="traced_features is 0: expected 1 or more"):
        Limits(traced_features=0)
    with pytest.raises(ValueError, match="no SAE to serve"):
        Playground({}, model, tokenizer)


def test_one_question_at_a_time():
    busy = playground()
    with busy._questions.turn(), pytest.raises(BusyError, match="still at work"):
        busy.read("w1 w2")
    assert busy.read("w1 w2")["tokens"]
