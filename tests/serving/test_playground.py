"""What the page's questions give, against features and steering written out; and what they may not ask for."""

from threading import Thread

import pytest
import torch

from hfsae import steer
from hfsae.serving import Limits, Playground
from hfsae.serving.playground import BusyError
from tests.analysis.tiny import setting
from tests.meaning.tiny import collection

LIMITS = Limits(prompt_tokens=10, new_tokens=8, features=2, strength=50.0, seconds=0.1)


def playground() -> Playground:
    return Playground(*setting(), collection(), {5: "a label"}, "tiny", LIMITS)


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
    told = playground().generate("w1 w2", {"5": 30, "7": 0}, 8)
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
        ("w1", {"1": 1, "2": 1, "3": 1}, 5, "at most 2"),
        ("w1", [1], 5, "at most 2"),
        ("w1", {"40": 1}, 5, "no feature '40'"),
        ("w1", {"-1": 1}, 5, "no feature '-1'"),
        ("w1", {"9" * 50: 1}, 5, "no feature"),
        ("w1", {"5": float("nan")}, 5, "no number"),
        ("w1", {"5": "2"}, 5, "no number"),
        ("w1", {"5": 51}, 5, "at most 50"),
    ],
)
def test_questions_have_limits(text, strengths, new_tokens, message):
    with pytest.raises(ValueError, match=message):
        playground().generate(text, strengths, new_tokens)


def test_the_end_waits_for_the_question_that_is_being_answered():
    ending, order = playground(), []

    def finish():
        ending.finish()
        order.append("finished")

    thread = Thread(target=finish)
    with ending._alone():
        thread.start()
        thread.join(0.2)
        order.append("answered")
    thread.join(10)
    assert order == ["answered", "finished"]
    with pytest.raises(BusyError):
        ending.read("w1 w2")


def test_one_question_at_a_time():
    busy = playground()
    with busy._alone(), pytest.raises(BusyError, match="still at work"):
        busy.read("w1 w2")
    assert busy.read("w1 w2")["tokens"]
