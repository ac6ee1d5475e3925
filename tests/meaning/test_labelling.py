"""From features to scored labels, with a model behind a socket that knows the truth, lies, or talks nonsense."""

import itertools

import pytest
import torch

from hfsae import TopKSAE, label_features
from hfsae.meaning import EndpointChat, EndpointError
from tests.analysis.tiny import setting, texts
from tests.meaning.chat_server import asked, serving
from tests.meaning.tiny import collection, explained, held_out_texts

OPTIONS = {"n_shown": 8, "n_scored": 4, "shown_at_once": 3, "counterexample_tokens": 5000, "disable_tqdm": True}


def label(server, **options):
    chat = EndpointChat(server.url, "scripted", at_once=3, retries=0)
    given = {"collection": collection(), "features": explained(), **OPTIONS, **options}
    return label_features(*setting(), texts(60), chat, **given)


def knowing(right: bool = True):
    """A model that knows on which pieces features fire, and of fuzzing that all marked tokens are right."""

    def answer(messages):
        kind, examples = asked(messages)
        if kind == "explain":
            return f"[EXPLANATION]: {len(examples)} examples"
        if kind == "fuzzing":
            return str([1] * len(examples))
        return str([int((example in held_out_texts()) == right) for example in examples])

    return answer


def test_scores_are_those_of_the_answers():
    with serving(knowing()) as server:
        run = label(server)
    assert sorted(run.labels) == explained() and not run.nonsense and run.unanswered == 0
    for one in run.labels.values():
        assert one.text == "8 examples" and one.model == "scripted" and len(one.prompts or "") == 64
        assert one.scores["detection_random"].positives == 4
        assert {one.scores[f"fuzzing_{kind}"].accuracy for kind in ("random", "neighbouring")} == {0.5}
        # The same words may stand at a place where the feature fires and at one where it does not.
        assert one.scores["detection_random"].accuracy >= 0.75
    assert run.mean_scores()["detection_random"][0] > 0.9
    assert run.answers == len(server.requests)


def test_a_model_that_says_the_contrary_scores_what_the_other_one_misses():
    with serving(knowing()) as right, serving(knowing(right=False)) as wrong:
        told, contrary = label(right), label(wrong)
    for feature in explained():
        for name in ("detection_random", "detection_neighbouring"):
            sum_of = told.labels[feature].scores[name].accuracy + contrary.labels[feature].scores[name].accuracy
            assert sum_of == pytest.approx(1)


def test_nonsense_is_counted_and_not_stored():
    turns = itertools.count()  # of explanations alone: other requests come between them in any order

    def answer(messages):
        kind, examples = asked(messages)
        if kind == "explain":
            return "I cannot say." if next(turns) % 2 else "[EXPLANATION]: a word"
        return str([1] * len(examples)) if kind == "fuzzing" else "maybe"

    with serving(answer) as server:
        run = label(server)
    assert len(run.nonsense) + len(run.labels) == 5 and run.nonsense and run.labels
    for one in run.labels.values():
        assert set(one.scores) == {"fuzzing_random", "fuzzing_neighbouring"}
    detected = 4 + 4 + 4  # of each kind
    assert run.unanswered == detected * len(run.labels)


def test_a_run_that_broke_off_goes_on_and_ends_in_the_same_labels(tmp_path):
    with serving(knowing()) as server:
        whole = label(server)
    n_requests = len(server.requests)

    with serving(knowing()) as server:
        server.breaks_after = 20
        with pytest.raises(EndpointError, match="out of memory.*goes on from there"):
            label(server, journal=tmp_path / "answers.jsonl")
        server.breaks_after = None
        kept = len((tmp_path / "answers.jsonl").read_text().splitlines())
        server.requests.clear()
        again = label(server, journal=tmp_path / "answers.jsonl")
        assert 0 < len(server.requests) == n_requests - kept == again.answers
    assert again.labels == whole.labels and not (tmp_path / "answers.jsonl").exists()


def test_the_cost_is_told_before_anything_is_asked():
    told = []

    def before(cost):
        told.append((cost, len(server.requests)))

    with serving(knowing()) as server:
        label(server, before=before)
        ((cost, n_before),) = told
        assert n_before == 0 and cost.features == 5 and cost.requests == len(server.requests)
        sent = sum(len(m["content"]) for request in server.requests for m in request["body"]["messages"]) / 4
        assert cost.prompt_tokens == pytest.approx(sent, rel=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": [40]}, "expected indices from 0 to 39"),
        ({"n_shown": 1}, "expected at least 2, 0, 1"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_asked(options, message):
    with serving(knowing()) as server:
        with pytest.raises(ValueError, match=message):
            label(server, **options)
        assert not server.requests


def test_features_of_another_sae_and_those_that_never_fire_are_refused():
    sae, model, tokenizer = setting()
    chat = EndpointChat("http://127.0.0.1:9/v1", "m")
    for other, what in ((TopKSAE(sae.config), "weights"), (sae.with_k(2), "settings")):
        with pytest.raises(ValueError, match=f"collected of other {what}"):
            label_features(other, model, tokenizer, texts(60), chat, collection=collection())
    silent = collection().features[collection().statistics.tokens_firing[collection().features] == 0]
    if len(silent):
        with pytest.raises(ValueError, match="never fire"):
            label_features(sae, model, tokenizer, texts(60), chat, collection=collection(), features=silent[:1])
    firing = torch.tensor(explained())
    with serving(knowing()) as server:
        assert sorted(label(server, features=firing, n_scored=0).labels) == explained()
        assert len(server.requests) == 5
