"""Simulation scores: against correlations written out, a real model's probabilities, and a server that knows."""

import json
import random
from statistics import correlation

import pytest
import torch

from hfsae.analysis import TokenTexts
from hfsae.label_file import SIMULATION, read_label_records, write_labels
from hfsae.meaning import EndpointError, LocalChat, Prompts
from hfsae.meaning.simulation import (
    LocalSimulator,
    Piece,
    foretold_in,
    pieces_of,
    simulation_prompt,
    simulation_score,
    simulator_of,
)
from tests import models_on_disk
from tests.analysis.tiny import setting
from tests.meaning.chat_server import asked, serving
from tests.meaning.test_chat import TEMPLATE, save
from tests.meaning.test_labelling import knowing, label
from tests.meaning.tiny import collection, explained

PIECE = Piece(["def", " ma", "in", "\n", "    ", "", "\t"], [0.0, 2.0, 0.5, 0.0, 0.0, 1.0, 0.0])


def told(n_firing: int = 4, n_silent: int = 3) -> list[tuple[Piece, list[float] | None]]:
    drawn = random.Random(0)
    found = []
    for number in range(n_firing + n_silent):
        size = drawn.randint(3, 9)
        true = (
            [max(drawn.gauss(0, 2), 0.0) + (number == 0) for _ in range(size)] if number < n_firing else [0.0] * size
        )
        found.append((Piece(["x"] * size, true), [value + drawn.random() for value in true]))
    return found


def pooled(pairs) -> float:
    x = [value for _, numbers in pairs for value in numbers]
    return correlation(x, [value for piece, _ in pairs for value in piece.activations])


def test_the_score_is_the_correlation_over_all_tokens():
    pairs = told()
    score = simulation_score(pairs)[SIMULATION]
    assert score.accuracy == pytest.approx(pooled(pairs)) and 0.5 < score.accuracy < 1
    assert (score.positives, score.negatives, score.unanswered) == (4, 3, 0)
    half = [(piece._replace(activations=[7e3 * a for a in piece.activations]), x) for piece, x in pairs]
    assert simulation_score(half)[SIMULATION].accuracy == pytest.approx(score.accuracy)


def test_the_interval_is_a_bootstrap_over_pieces_of_each_kind():
    pairs, drawn = told(), random.Random(1)
    score = simulation_score(pairs)[SIMULATION]
    again = sorted(pooled(drawn.choices(pairs[:4], k=4) + drawn.choices(pairs[4:], k=3)) for _ in range(4000))
    assert score.low == pytest.approx(again[100], abs=0.03) and score.high == pytest.approx(again[3900], abs=0.03)


def test_pieces_without_numbers_are_counted_and_without_any_that_fires_there_is_no_score():
    pairs = told()
    without = [(piece, None if i in (1, 5) else numbers) for i, (piece, numbers) in enumerate(pairs)]
    score = simulation_score(without)[SIMULATION]
    assert (score.positives, score.negatives, score.unanswered) == (3, 2, 2)
    assert score.accuracy == pytest.approx(pooled([pair for pair in without if pair[1] is not None]))
    assert simulation_score([(piece, None) for piece, _ in pairs[:4]] + pairs[4:]) == {}
    assert simulation_score(pairs[:1] + pairs[4:]) == simulation_score(pairs[:5]) == simulation_score(pairs[:4]) == {}
    assert simulation_score(pairs[:2] + pairs[4:6])
    alike = simulation_score([(piece, [1.0] * len(numbers)) for piece, numbers in pairs])[SIMULATION]
    assert (alike.accuracy, alike.low, alike.high) == (0, 0, 0)


@pytest.mark.parametrize(
    ("tokens", "answer", "found"),
    [
        ("abc", "a\t1\nb\t10\nc\t0", [1, 10, 0]),
        ("abc", "The list:\n\na 1\nb  2 \nc\t3\n```", [1, 2, 3]),
        ("abc", "Of the 3 tokens, in 2\n```text\na\t1\n b\t2\t\n\nc\t3\r\n```\nAll 3.", [1, 2, 3]),
        ("abc", "\"a\"\t1\n' b'\t2\n`c`\t3", [1, 2, 3]),
        ("5\n ", "5\t1\n\\n\t2\n␣\t0.5", [1, 2, 0.5]),
        ("a\u2028", "a\t1\n␣\t2", [1, 2]),
        ("ab", "Pattern number 7\na\t0\nb\t4", [0, 4]),
        ("ab", "Pattern number 7\na\t0\nb\n", None),
        ("ab", "<think> 5\n</think>\na\t0\n", None),
        ("ab", " 3\n 4\n", None),
        ("ab", "x\t3\ny\t4", None),
        ("ab", "b\t3\na\t4", None),
        ("ab", "a\t3\nx\t1\nb\t4", None),
        ("ab", "xa\t3\nb\t4", None),
        ("aaa", "a\t3\na\t4\na\t5\na\t6", None),
        ("abc", "a\t1\nb\t2", None),
        ("abc", "a\t1\nb\t2\nc\t3\nd\t4", None),
        ("abc", "d\t4\na\t1\nb\t2\nc\t3", None),
        ("abc", "a\t1\nb\t11\nc\t3", None),
        ("abc", "a\t1\nb\t-1\nc\t3", None),
        ("abc", "a\t1\nb\t٣\nc\t3", None),
        ("abc", "[1, 2, 3]", None),
        ("abc", "", None),
    ],
)
def test_what_numbers_an_answer_has(tokens, answer, found):
    assert foretold_in(answer, list(tokens), 10) == found


def test_the_example_of_the_prompt_is_no_answer_for_other_tokens():
    said = simulation_prompt("a word", PIECE, 10, Prompts.load())[0]["content"].partition("the answer is")[2].strip()
    months = ["it", " opened", " in", " early", " March", ",", " when"]
    assert foretold_in(said, months, 10) == [0, 0, 0, 1, 10, 0, 0]
    assert foretold_in(said, ["x"] * 7, 10) is None


def test_a_prompt_has_a_line_for_each_token_whatever_it_is():
    begun = simulation_prompt("a word", PIECE, 9, Prompts.load())[-1]
    assert begun["role"] == "assistant"
    lines = ["def", " ma", "in", "\\n", "␣␣␣␣", "…", "\\t"]
    assert begun["content"] == "\n".join(f"{line}\tunknown" for line in lines)
    other = Prompts(
        {**Prompts.load().sources, "simulation": "{% block system %}{% endblock %}{% block user %}?{% endblock %}"}
    )
    with pytest.raises(ValueError, match="simulation.jinja needs a block 'assistant'"):
        simulation_prompt("a word", PIECE, 9, other)


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> LocalChat:
    return LocalChat(str(save(tmp_path_factory.mktemp("chat"), TEMPLATE)), batch_size=2)


def test_numbers_of_a_model_that_runs_here_are_expected_values(local):
    simulator = simulator_of(local)
    assert simulator.tokens_a_line == 0 and simulator.most in (9, 10)
    pieces = [PIECE, Piece(["x"] * 3, [0.0] * 3), Piece([" y", "z"] * 8, [1.0] * 16)]
    conversations = [simulation_prompt("a word", piece, simulator.most, Prompts.load()) for piece in pieces]
    answers = dict(simulator.chat.answers(conversations, 0))
    encode = local.tokenizer.encode
    numbers = [encode(f"\t{value}")[-1] for value in range(simulator.most + 1)]
    for i, (piece, conversation) in enumerate(zip(pieces, conversations, strict=True)):
        expected, ids = [], []
        for part in local.rendered(conversation).split("\tunknown")[:-1]:
            ids += encode("unknown") if ids else []
            ids += encode(f"{part}\t")
            with torch.no_grad():
                logits = local.model(input_ids=torch.tensor([ids])).logits[0, -1]
            shares = logits.softmax(0)[numbers]
            expected.append(float((shares / shares.sum()) @ torch.arange(len(numbers)).float()))
        assert foretold_in(answers[i], piece.tokens, simulator.most) == pytest.approx(expected, abs=2e-4)
        assert simulator.chat.tokens_of(conversation) == len(ids)
    assert len({round(value, 2) for value in expected}) > 1


def test_a_prompt_that_does_not_fit_and_a_tokenizer_without_numbers_are_refused(tmp_path, monkeypatch):
    short = LocalChat(str(save(tmp_path, TEMPLATE, longest=64)))
    asked_of = simulation_prompt("a word", PIECE, 9, Prompts.load())
    with pytest.raises(ValueError, match="does not fit the context of .*64"):
        dict(LocalSimulator(short).answers([asked_of], 0))
    monkeypatch.setattr(short, "_tokenizer", models_on_disk.tokenizer())
    whole = type(short.tokenizer).encode

    def encode(self, text, **options):
        return [1, 2, 3] if text == "\t7" else whole(self, text, **options)

    monkeypatch.setattr(type(short.tokenizer), "encode", encode)
    with pytest.raises(ValueError, match="has no token for 7 behind a tab"):
        simulator_of(short)


def foreknowing(nonsense: bool = False):
    """A model that knows every example's activations, or drops a line."""
    texts = TokenTexts(setting().tokenizer)
    known = {}
    for feature in explained():
        for example in collection().of(feature).sample:
            tokens = [token.strip() for token in texts(example.token_ids)]
            top = max(example.activations)
            known[tuple(tokens)] = [round(10 * value / top) for value in example.activations]

    def answer(messages):
        kind, tokens = asked(messages)
        if kind != "simulation":
            return knowing()(messages)
        numbers = known.get(tuple(token.strip() for token in tokens), [0] * len(tokens))
        lines = [f"{token}\t{number}" for token, number in zip(tokens, numbers, strict=True)]
        return "\n".join(lines[1:] if nonsense else lines)

    return answer


def test_a_model_that_knows_has_a_correlation_near_one():
    with serving(foreknowing()) as server:
        run = label(server, n_simulated=3)
        plain = label(server)
    for feature, one in run.labels.items():
        score = one.scores[SIMULATION]
        assert (score.positives, score.negatives, score.unanswered) == (3, 3, 0)
        assert score.accuracy > 0.8 and score.low <= score.accuracy <= score.high
        # The other scores are what they were.
        assert {name: value for name, value in one.scores.items() if name != SIMULATION} == plain.labels[
            feature
        ].scores
        assert one.prompts != plain.labels[feature].prompts
    assert run.mean_scores()[SIMULATION][0] > 0.8 and SIMULATION not in plain.mean_scores()


def test_nonsense_is_counted_and_no_score(tmp_path):
    with serving(foreknowing(nonsense=True)) as server:
        run = label(server, n_simulated=2, n_scored=0)
    assert len(run.labels) == 5 and run.unanswered == 5 * 4 and len(run.unsimulated) == 5
    assert all(not one.scores for one in run.labels.values())


def test_the_cost_is_told_and_a_run_that_broke_off_goes_on(tmp_path):
    costs = []
    with serving(foreknowing()) as server:
        whole = label(server, n_simulated=2, before=costs.append)
        assert costs[0].requests == len(server.requests) == whole.answers
        sent = sum(len(m["content"]) for request in server.requests for m in request["body"]["messages"])
        assert sent / 4 < costs[0].prompt_tokens < 1.3 * sent / 4  # a beginning of the answer is not sent
        simulations = [request for request in server.requests if asked(request["body"]["messages"])[0] == "simulation"]
        assert len(simulations) == 5 * 4
        server.requests.clear()
        server.breaks_after = 12
        with pytest.raises(EndpointError, match="goes on from there"):
            label(server, n_simulated=2, journal=tmp_path / "answers.jsonl")
        server.breaks_after = None
        kept = len((tmp_path / "answers.jsonl").read_text().splitlines())
        server.requests.clear()
        again = label(server, n_simulated=2, journal=tmp_path / "answers.jsonl")
        assert again.labels == whole.labels and len(server.requests) == whole.answers - kept == again.answers
    assert not (tmp_path / "answers.jsonl").exists()


def test_the_score_is_stored_and_read_back(tmp_path):
    with serving(foreknowing()) as server:
        run = label(server, n_simulated=2)
    write_labels(tmp_path / "labels.json", run.labels, "0" * 64)
    assert read_label_records(tmp_path / "labels.json") == run.labels
    stored = json.loads((tmp_path / "labels.json").read_text())["explained"]
    assert all(SIMULATION in one["scores"] for one in stored.values())


@pytest.mark.parametrize("number", [-1, 1])
def test_a_number_of_pieces_that_gives_no_score_is_refused(number):
    with serving(foreknowing()) as server:
        with pytest.raises(ValueError, match=f"n_simulated {number};.* 0 or at least 2"):
            label(server, n_simulated=number)
        assert not server.requests


def test_nothing_is_asked_of_a_feature_with_one_example_or_one_piece_of_other_text():
    texts, examples = TokenTexts(setting().tokenizer), collection().of(explained()[0]).sample
    assert pieces_of(examples[:1], [[1], [2]], texts) == pieces_of(examples[:2], [[1]], texts) == []
    assert len(pieces_of(examples[:2], [[1], [2]], texts)) == 4
