"""What is sent to a server on this machine, against the collection itself."""

import json

import pytest

from hfsae.analysis import TokenTexts
from hfsae.label_file import Label
from hfsae.meaning import EndpointError, upload_neuronpedia
from hfsae.meaning.neuronpedia_upload import NEURONPEDIA_KEY
from tests.analysis.tiny import setting
from tests.meaning.chat_server import hang_up, refuse, serving
from tests.meaning.tiny import collection

NAMES = {"model_id": "tiny", "layer": 1, "source_set": "res-40"}


def upload(server, **options):
    given = {**NAMES, "url": server.url, "batch_size": 16, "retries": 1, **options}
    return upload_neuronpedia(collection(), setting().tokenizer, **given)


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv(NEURONPEDIA_KEY, "secret-key")


def test_every_feature_is_sent_once_with_examples_effects_and_labels():
    told = []
    with serving(lambda _: "ok") as server:
        labels = {3: Label("a word", "some/model", "digest"), 5: "by a person"}
        assert upload(server, labels=labels, after_each=told.append) == 40
    assert told == [16, 32, 40] and len(server.requests) == 3
    sent = [feature for request in server.requests for feature in request["body"]["features"]]
    assert [feature["index"] for feature in sent] == list(range(40))
    parts = TokenTexts(setting().tokenizer)
    for row, feature in zip(sent, collection(), strict=True):
        examples = [*feature.top, *feature.sample]
        assert row["density"] == feature.density
        assert [one["values"] for one in row["activations"]] == [list(example.activations) for example in examples]
        assert [one["tokens"] for one in row["activations"]] == [parts(example.token_ids) for example in examples]
        assert [one["value"] for one in row["topLogits"]] == [effect.effect for effect in feature.promoted]
        banded = row["activations"][len(feature.top) :]
        for one, example in zip(banded, feature.sample, strict=True):
            assert one["quantileMin"] <= example.activation <= one["quantileMax"]
            assert 0 < one["quantileFraction"] <= 1
    explained = {row["index"]: row["explanations"] for row in sent if row["explanations"]}
    assert explained == {
        3: [{"text": "a word", "methodName": None, "modelName": "some/model"}],
        5: [{"text": "by a person", "methodName": None, "modelName": None}],
    }
    for request in server.requests:
        assert request["path"] == "/v1/feature/upload-batch" and request["headers"]["X-Api-Key"] == "secret-key"
        assert (request["body"]["modelId"], request["body"]["source"]) == ("tiny", "1-res-40")
        assert "secret-key" not in json.dumps(request["body"])


def test_a_failure_says_where_to_go_on_and_never_the_key(monkeypatch):
    monkeypatch.setattr("hfsae.meaning.posting._FIRST_WAIT", 0.01)
    with serving(lambda _: "ok") as server:
        server.breaks_after = 1
        with pytest.raises(EndpointError, match=r"16 features were sent; first=16 goes on") as failure:
            upload(server)
        server.breaks_after = None
        assert "secret-key" not in str(failure.value)
        before = len(server.requests)
        assert upload(server, first=16) == 24
        sent = [row["index"] for request in server.requests[before:] for row in request["body"]["features"]]
        assert sent == list(range(16, 40))
        server.faults = [hang_up]
        assert upload(server, first=32) == 8
        server.faults = [refuse(401, "secret-key is wrong")]
        with pytest.raises(EndpointError, match="Only who made the set") as failure:
            upload(server)
        assert "secret-key" not in str(failure.value)


def test_what_cannot_be_is_refused_before_anything_is_sent(monkeypatch):
    with serving(lambda _: "ok") as server:
        for options, message in (
            ({"batch_size": 129}, "expected 1 to 128"),
            ({"batch_size": 0}, "expected 1 to 128"),
            ({"first": 40}, "rows 0 to 39"),
        ):
            with pytest.raises(ValueError, match=message):
                upload(server, **options)
        monkeypatch.delenv(NEURONPEDIA_KEY)
        with pytest.raises(ValueError, match="there is no key"):
            upload(server)
    assert not server.requests
