"""`hfsae serve` as a user has it: the command, the embedded language model, and headless Chromium."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

sync_api = pytest.importorskip("playwright.sync_api")
expect = sync_api.expect

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path")]
PATIENCE = 60_000


def serve(folder: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "hfsae_cli", "serve", str(folder), "--port", "0", "--max_tokens", "4000", *options]


@pytest.fixture(scope="module")
def address(trained_folder, tmp_path_factory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("served") / "sae"
    command = serve(shutil.copytree(trained_folder, folder))
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        found = next(filter(None, (re.search(r"http://127.0.0.1:\d+/", line) for line in process.stdout)))
        yield found[0]
        # The command ends well even while the model is at work.
        waiting = HTTPConnection(found[0].split("/")[2], timeout=60)
        question = json.dumps({"text": "def f(", "strengths": {"sae": {"3": 1}}, "new_tokens": 100})
        waiting.request("POST", "/generate", question, {"Content-Type": "application/json"})
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        assert "ended" in process.stdout.read() and process.wait(60) == 0


@pytest.fixture(scope="module")
def address_of_a_set(trained_set, tmp_path_factory) -> Iterator[str]:
    folder = shutil.copytree(trained_set, tmp_path_factory.mktemp("served") / "set")
    command = serve(folder, "--traced_tokens", "12", "--traced_features", "40")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        yield next(filter(None, (re.search(r"http://127.0.0.1:\d+/", line) for line in process.stdout)))[0]
        process.send_signal(signal.SIGINT)
        assert "ended" in process.stdout.read() and process.wait(60) == 0


@pytest.fixture
def page(address) -> Iterator[Any]:
    yield from opened_at(address)


@pytest.fixture
def page_of_a_set(address_of_a_set) -> Iterator[Any]:
    yield from opened_at(address_of_a_set)


def opened_at(address: str) -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        opened, errors, requests = browser.new_page(), [], []
        opened.set_default_timeout(PATIENCE)
        opened.on("pageerror", lambda error: errors.append(error))
        opened.on("request", lambda made: requests.append(made.url))
        opened.goto(address)
        yield opened
        assert errors == [] and [url for url in requests if not url.startswith((address, "data:"))] == []
        assert opened.evaluate("window.hacked") is None
        browser.close()


def test_one_types_sees_features_and_steers(page):
    page.fill("#text", "def main(self):\n    return self.")
    page.click("#read")
    rows = page.locator("#features li")
    expect(rows.first).to_be_visible(timeout=PATIENCE)
    assert "def main" in page.inner_text("#tokens").replace("·", " ")
    assert page.locator("#tokens .shaded").count() > 0
    rows.nth(1).locator(".show").click()
    expect(rows.nth(1)).to_have_class("current")

    page.click("#generate")
    expect(page.locator("#plain")).not_to_be_empty(timeout=PATIENCE)
    plain = page.inner_text("#plain")
    assert page.inner_text("#steered") == plain
    rows.first.locator(".steer").click()
    page.locator("#sliders input").fill("8")
    page.click("#generate")
    expect(page.locator("#steered")).not_to_have_text(plain, timeout=PATIENCE)
    assert page.inner_text("#plain") == plain
    page.locator("#sliders button").click()
    expect(page.locator("#sliders li")).to_have_count(0)


def test_a_text_is_traced_and_its_graph_opens(page_of_a_set):
    page, context = page_of_a_set, page_of_a_set.context
    expect(page.locator("#no-trace")).to_be_hidden()
    page.fill("#text", "def main(self): <i>")
    page.click("#trace")
    link = page.locator("#graphs a")
    expect(link).to_have_text("def main(self): <i>", timeout=PATIENCE)
    expect(page.locator("#graphs li")).to_contain_text("40 of")
    elsewhere: list[str] = []
    context.on("request", lambda made: elsewhere.append(made.url))
    with context.expect_page() as opening:
        link.click()
    graph = opening.value
    graph.wait_for_load_state()
    assert graph.title() == "def main(self): <i>" and graph.locator("#grid button").count() > 40
    graph.locator("#grid button").last.click()
    expect(graph.locator("#panel")).not_to_be_empty()
    assert [url for url in elsewhere if not url.startswith(("data:", page.url))] == []
    graph.close()
    page.fill("#text", "word " * 30)
    page.click("#trace")
    expect(page.locator("#wrong")).to_contain_text("12 are allowed", timeout=PATIENCE)


def test_each_sae_of_a_set_is_seen_and_steered(page_of_a_set):
    page = page_of_a_set
    page.fill("#text", "def main(self):\n    return self.")
    page.click("#read")
    expect(page.locator("#features li").first).to_be_visible(timeout=PATIENCE)
    expect(page.locator("#about")).to_contain_text("h.2.mlp")
    page.locator("#features .steer").first.click()
    # Another SAE is read as soon as it is chosen.
    with page.expect_response("**/read") as answered:
        page.select_option("#sae", "mlp_in.3")
    told = answered.value.json()
    expect(page.locator("body")).not_to_have_attribute("aria-busy", "true")
    shown = [int(row.get_attribute("data-feature")) for row in page.locator("#features li").all()]
    assert told["sae"] == "mlp_in.3" and {*shown} <= {feature for one in told["features"] for feature in one}
    expect(page.locator("#about")).to_contain_text("h.3.mlp")
    page.locator("#features .steer").first.click()
    assert [" of mlp_in.2" in text for text in page.locator("#sliders li").all_inner_texts()] == [True, False]
    for slider in page.locator("#sliders input").all():
        slider.fill("8")
    with page.expect_request("**/generate") as asked:
        page.click("#generate")
    assert asked.value.post_data_json["strengths"].keys() == {"mlp_in.2", "mlp_in.3"}
    expect(page.locator("#steered")).not_to_be_empty(timeout=PATIENCE)


def test_hostile_text_stays_text_and_what_is_refused_is_shown(page):
    page.fill("#text", "<img src=x onerror=window.hacked=1><script>window.hacked=1</script>")
    page.click("#read")
    expect(page.locator("#features li").first).to_be_visible(timeout=PATIENCE)
    assert page.locator("#tokens img, #tokens script").count() == 0
    page.fill("#text", "word " * 400)
    page.click("#read")
    expect(page.locator("#wrong")).to_contain_text("are allowed", timeout=PATIENCE)
    page.fill("#number", "99999")
    page.evaluate("document.querySelector('#add').noValidate = true")
    page.click("#add button")
    expect(page.locator("#wrong")).to_contain_text("no such feature")


def test_a_page_of_another_origin_gets_nothing(page, address):
    stranger = page.context.browser.new_page()
    stranger.goto("data:text/html,<p>another")
    options = "{method: 'POST', headers: {'Content-Type': 'application/json'}, body: '{}'}"
    asked = f"fetch('{address}read', {options}).then(() => 'answered', () => 'refused')"
    assert stranger.evaluate(asked) == "refused"
    stranger.close()
