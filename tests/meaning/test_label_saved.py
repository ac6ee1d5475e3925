"""`hfsae label` and what it leaves beside the weights, killed in the middle too."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest

from hfsae.cli import main
from hfsae.dashboard import make_dashboard
from hfsae.identity import weights_sha256
from hfsae.label_file import Label, read_label_records, write_labels
from hfsae.saved.kept_features import SavedFeatures
from tests.analysis.tiny import setting
from tests.dashboard.tiny import index_of, saved_sae
from tests.meaning.chat_server import asked, serving


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    """An SAE with its features beside it."""
    place = saved_sae(tmp_path_factory.mktemp("place"))
    opened = SavedFeatures(place / "sae", dataset=str(place / "text.jsonl"), split="train", disable_tqdm=True)
    opened.collection  # noqa: B018  collects
    return place


@pytest.fixture
def place(collected):
    yield collected
    for name in ("labels.json", "labels.answers.jsonl", "dashboard.html"):
        (collected / "sae" / name).unlink(missing_ok=True)


def answer(messages):
    kind, examples = asked(messages)
    return "[EXPLANATION]: a <word>" if kind == "explain" else str([1] * len(examples))


def command(place, server, *more):
    text = ["--dataset", str(place / "text.jsonl"), "--split", "train"]
    asking = ["--endpoint", server.url, "--model", "scripted", "--at_once", "2", "--retries", "0", "--n_scored", "3"]
    return ["label", str(place / "sae"), *text, *asking, *more]


def labels(place):
    return read_label_records(place / "sae" / "labels.json", weights_sha256(setting().sae))


def test_labels_lie_beside_the_weights_and_those_of_people_stay(place, capsys, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key")
    write_labels(place / "sae" / "labels.json", {3: "mine"}, weights_sha256(setting().sae))
    with serving(answer) as server:
        assert main(command(place, server, "--features", "3", "5", "7")) == 0
    out = capsys.readouterr().out
    assert "2 features: at most" in out and "fuzzing_random: 0.500 on average" in out and "2 labels" in out
    found = labels(place)
    assert found[3] == Label("mine") and found[5].text == "a <word>" and found[5].model == "scripted"
    assert {score.accuracy for score in found[5].scores.values()} == {0.5}
    files = "".join(path.read_text(errors="replace") for path in (place / "sae").glob("*.json*"))
    assert "secret-key" not in files + out and not (place / "sae" / "labels.answers.jsonl").exists()


def test_the_dashboard_and_the_terminal_show_them(place, capsys):
    with serving(answer) as server:
        main(command(place, server, "--features", "5"))
    index = index_of(make_dashboard(place / "sae"))
    assert index["labels"] == {"5": "a <word>"} and index["explained"]["5"]["model"] == "scripted"
    assert index["explained"]["5"]["scores"]["fuzzing_random"]["accuracy"] == 0.5
    capsys.readouterr()
    assert main(["features", str(place / "sae"), "--text", "w1 w2 w3", "--features", "5"]) == 0
    assert capsys.readouterr().out.startswith("feature 5 (a <word>):")


def test_the_cost_alone_asks_nothing(place, capsys):
    with serving(answer) as server:
        assert main(command(place, server, "--estimate")) == 0
        assert not server.requests
    assert "tokens to read" in capsys.readouterr().out and not (place / "sae" / "labels.json").exists()


@pytest.mark.slow
def test_a_command_that_was_killed_goes_on(place, tmp_path):
    with serving(answer) as server:
        main(command(place, server, "--output", str(tmp_path / "whole.json"), "--max_features", "6"))
        whole = len(server.requests)
    with serving(answer, delay=0.05) as server:
        line = [sys.executable, "-m", "hfsae.cli", *command(place, server, "--max_features", "6")]
        killed = subprocess.Popen(line, env=os.environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            until = time.monotonic() + 120
            while len(server.requests) < whole // 2 and time.monotonic() < until:
                time.sleep(0.02)
        finally:
            killed.send_signal(signal.SIGKILL)
            killed.wait()
        first = len(server.requests)
        assert whole // 2 <= first < whole
        server.delay = 0
        assert main(command(place, server, "--max_features", "6")) == 0
        # Asked twice are at most those two whose answers were under way.
        assert whole <= len(server.requests) <= whole + 2
    of_one_run = read_label_records(tmp_path / "whole.json")
    assert labels(place) == of_one_run and len(of_one_run) == 6


def test_what_is_labelled_is_not_asked_again_unless_that_is_meant(place, capsys):
    with serving(answer) as server:
        main(command(place, server, "--features", "5"))
        first = len(server.requests)
        assert main(command(place, server, "--features", "5")) == 0
        assert "all of these features have a label" in capsys.readouterr().out and len(server.requests) == first
        more = ["--features", "5", "7", "--n_simulated"]
        assert main(command(place, server, *more, "1")) == 1 and len(server.requests) == first
        assert main(command(place, server, *more, "2", "--estimate")) == 0
        said = "1 of 2 of these features have a label, 1 of them without a simulation score: --write"
        assert said in capsys.readouterr().out
        main(command(place, server, "--features", "5", "--write"))
        assert len(server.requests) == 2 * first


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--features", "40"], "feature 40|expected indices"),
        (["--model_kwargs", "{}", "--dtype", "bfloat16"], "for a model that runs here"),
        (["--prompts", "nowhere"], "there is no prompt in nowhere"),
        (["--features", "5", "5"], "feature 5 is named twice"),
        (["--max_features", "0"], "max_features is 0: expected 1 or more"),
        (["--max_features", "-1"], "max_features is -1: expected 1 or more"),
    ],
)
def test_a_mistake_is_one_line(place, capsys, more, message):
    with serving(answer) as server:
        assert main(command(place, server, *more)) == 1
        assert not server.requests
    assert re.search(message, capsys.readouterr().err.splitlines()[-1])


def test_a_server_that_is_down_is_one_line(place, capsys):
    with serving(answer) as server:
        line = command(place, server)
    assert main(line) == 1
    assert "did not answer after 1 tries" in capsys.readouterr().err.splitlines()[-1]
