"""The page of a graph: what it holds, and what it does in headless Chromium, opened as a user opens it."""

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from hfsae import Graph, trace
from tests.circuits.tiny import IDS, model_of, transcoders
from tests.dashboard.tiny import ATTACK, HOSTILE, collection, tokenizer

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@cache
def graph() -> Graph:
    """A graph whose tokens and labels are as hostile as text from strangers can be."""
    made = trace(model_of("llama"), transcoders("llama"), IDS, max_features=20, disable_tqdm=True)
    made.validate(3)
    made.explain_attention(1, 1, n=6)
    labelled = [
        replace(node, label=HOSTILE[row % len(HOSTILE)]) if node.kind in ("logit", "embedding") else node
        for row, node in enumerate(made.nodes)
    ]
    return replace(made, nodes=labelled, prompt=ATTACK, tokens=list(HOSTILE[: len(IDS)]), notes=[ATTACK])


def written(folder: Path, **options: Any) -> Path:
    feature = next(node for node in graph().nodes if node.kind == "feature" and node.source == "mlp.0")
    labels = {"mlp.0": {feature.feature: ATTACK}}
    return graph().write_page(folder / "graph.html", labels=labels, **options)


def content_of(page: Path) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="content">(.*?)</script>', page.read_text("utf-8"), re.S)
    assert found
    return json.loads(found[1])


def test_the_page_holds_the_graph(tmp_path: Path):
    content = content_of(written(tmp_path))
    own = graph()
    assert [node["name"] for node in content["nodes"]] == [node.name for node in own.nodes if own_has(own, node.name)]
    for target, source, weight in content["edges"][::20]:
        names = content["nodes"][target]["name"], content["nodes"][source]["name"]
        assert weight == pytest.approx(float(own.edges[own.index(names[0]), own.index(names[1])]), rel=1e-3)
    assert content["figures"]["features"] == 20 and content["figures"]["active"] == own.n_active
    assert content["validation"]["strongest"]["n"] == 3 and content["prompt"] == ATTACK


def own_has(own: Graph, name: str) -> bool:
    row = own.index(name)
    return own.nodes[row].kind in ("embedding", "logit") or float(own.influence[row]) > 0


def test_few_nodes_are_those_with_most_influence_and_few_edges_the_largest(tmp_path: Path):
    content = content_of(written(tmp_path, max_nodes=4, max_edges=2))
    inner = [node for node in content["nodes"] if node["kind"] in ("feature", "error")]
    own = graph()
    best = sorted(
        (float(own.influence[own.index(n)]) for n in own.nodes if n.kind in ("feature", "error")), reverse=True
    )
    assert sorted((node["influence"] for node in inner), reverse=True) == pytest.approx(best[:4], rel=1e-3)
    rows = [own.index(node["name"]) for node in content["nodes"]]
    sizes = own.edges[rows][:, rows].abs()
    for target, source, _ in content["edges"]:
        size = sizes[target, source]
        assert size >= sizes[target].topk(2).values[-1] or size >= sizes[:, source].topk(2).values[-1]
    assert len(content["edges"]) < int((sizes > 0).sum())


def test_examples_come_from_a_collection(tmp_path: Path):
    own = collection()
    content = content_of(written(tmp_path, collections={"mlp.1": own}, tokenizer=tokenizer()))
    features = {node["feature"] for node in content["nodes"] if node["source"] == "mlp.1"}
    assert set(content["features"]) == {f"mlp.1/{feature}" for feature in features & set(own.features.tolist())}
    name, shown = next((name, shown) for name, shown in content["features"].items() if shown["top"])
    example = own.of(int(name.partition("/")[2])).top[0]
    assert shown["top"][0]["activations"] == pytest.approx(example.activations, rel=1e-3)
    with pytest.raises(ValueError, match="tokenizer"):
        written(tmp_path, collections={"mlp.1": own})
    with pytest.raises(ValueError, match=r"ends in \.html"):
        graph().write_page(tmp_path / "graph.htm")


def unknown() -> Graph:
    """A graph of which two figures are no numbers."""
    return replace(graph(), exactness=replace(graph().exactness, features=float("nan"), logits=float("inf")))


def test_a_figure_that_is_no_number_is_no_zero(tmp_path: Path):
    figures = content_of(unknown().write_page(tmp_path / "graph.html"))["figures"]
    assert figures["error_features"] is None and figures["error_logits"] is None
    assert figures["replacement"] == pytest.approx(graph().replacement_score, rel=1e-3)


def test_nothing_of_the_data_can_become_markup(tmp_path: Path):
    page = written(tmp_path).read_text("utf-8")
    assert page.count("</script>") == 2 and "window.hacked=1</script>" not in page
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy and "default-src &#39;none&#39;" in policy[1] and "unsafe" not in policy[1]


def test_no_script_writes_html_and_nothing_of_the_page_is_elsewhere():
    for asset in (files("hfsae.circuits") / "assets").iterdir():
        code = asset.read_text(encoding="utf-8")
        assert set(re.findall(r"\w+://[^\s\"')]+", code)) <= {"http://www.w3.org/2000/svg"}, asset.name
        if asset.name.endswith(".js"):
            unsafe = ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "</")
            assert not [word for word in unsafe if word in code], asset.name


# -- in a browser -----------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium on the path")
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def page(request, browser, tmp_path: Path) -> Iterator[Any]:
    """The page, watched: no error, no request, nothing hostile that ran."""
    file = written(tmp_path, collections={"mlp.1": collection()}, tokenizer=tokenizer())
    context = browser.new_context(**getattr(request, "param", {}))
    opened, errors, requests = context.new_page(), [], []
    opened.set_default_timeout(20_000)
    opened.on("pageerror", lambda error: errors.append(error))
    opened.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    opened.on("request", lambda made: requests.append(made.url))
    opened.goto(file.as_uri())
    opened.wait_for_selector("#panel h2")
    yield opened
    assert errors == [] and [url for url in requests if not url.startswith((file.as_uri(), "data:"))] == []
    assert opened.evaluate("window.hacked") is None
    context.close()


@pytest.mark.slow
def test_a_node_that_is_chosen_shows_what_makes_it_and_what_it_goes_into(page):
    assert page.text_content("h1") == ATTACK
    page.fill("#prune", "100")
    strongest = graph().strongest(1)[0]
    row = next(row for row, node in enumerate(content_nodes(page)) if node["name"] == strongest.name)
    page.click(f"#node-{row}")
    assert page.get_attribute(f"#node-{row}", "aria-pressed") == "true"
    inputs = page.locator("section", has=page.locator("h3", has_text="Made by"))
    (source, weight), *_ = graph().inputs(strongest)
    shown = inputs.locator(".value").first.text_content().replace("−", "-")
    assert float(shown) == pytest.approx(weight, rel=1e-2)
    assert page.locator("#lines path").count() > 0
    inputs.locator("button").first.click()
    assert page.evaluate("document.activeElement.tagName") == "H2"
    assert page.locator('.node[aria-pressed="true"]').count() == 1
    page.go_back()
    page.wait_for_selector(f'#node-{row}[aria-pressed="true"]')
    page.keyboard.press("Escape")
    assert "What the model says" in page.text_content("#panel h2")


def content_nodes(page) -> list[dict[str, Any]]:
    return json.loads(page.text_content("#content"))["nodes"]


@pytest.mark.slow
def test_a_difference_of_two_logits_is_shown_with_its_value_and_no_probability(browser, tmp_path: Path):
    made = trace(model_of("llama"), transcoders("llama"), IDS, contrast=(5, 9), max_features=20, disable_tqdm=True)
    logits = model_of("llama")(IDS[None]).logits[0, -1]
    opened = browser.new_page()
    opened.goto(made.write_page(tmp_path / "graph.html").as_uri())
    opened.wait_for_selector("#panel h2")
    told = opened.locator("section", has=opened.locator("h3", has_text="Explained difference"))
    shown = told.locator(".value").first.text_content().replace("−", "-")
    assert float(shown) == pytest.approx((logits[5] - logits[9]).item(), rel=1e-2)
    assert "says" not in told.text_content() and "It says" not in opened.text_content("#panel")
    assert "%" not in opened.text_content(".node.logit")
    assert "difference of logits" in opened.get_attribute(".node.logit", "aria-label")
    opened.click(".node.logit")
    panel = opened.text_content("#panel")
    assert "probability" not in panel and "a difference of two logits" in panel
    opened.close()


@pytest.mark.slow
def test_a_figure_that_is_no_number_is_said_to_be_unknown(browser, tmp_path: Path):
    opened, errors = browser.new_page(), []
    opened.on("pageerror", lambda error: errors.append(error))
    opened.goto(unknown().write_page(tmp_path / "graph.html").as_uri())
    opened.wait_for_selector("#panel h2")
    facts = opened.eval_on_selector_all("#panel dl > div", "pairs => pairs.map(pair => pair.textContent)")
    assert {"relative error of sumsnot known", "logits differ bynot known"} <= set(facts) and errors == []
    opened.close()


@pytest.mark.slow
def test_the_slider_hides_the_weak_and_pins_stay(page):
    counted = "all => all.filter(one => !one.hidden).length"
    page.fill("#prune", "100")
    whole = page.eval_on_selector_all(".node.feature", counted)
    weakest = max(
        range(len(content_nodes(page))),
        key=lambda row: content_nodes(page)[row]["share"] * (content_nodes(page)[row]["kind"] == "feature"),
    )
    page.click(f"#node-{weakest}")
    page.click("#pin")
    page.keyboard.press("Escape")
    page.fill("#prune", "10")
    few = page.eval_on_selector_all(".node.feature", counted)
    assert few < whole and page.is_visible(f"#node-{weakest}")
    assert page.eval_on_selector_all(".node.embedding", counted) == len(IDS)
    page.fill("#prune", "100")
    page.uncheck("#errors")
    assert page.eval_on_selector_all(".node.error", counted) == 0


@pytest.mark.slow
def test_the_keyboard_reaches_every_node(page):
    page.fill("#prune", "100")
    assert page.locator('.node[tabindex="0"]').count() == 1
    page.locator('.node[tabindex="0"]').focus()
    row = "Array.from(document.activeElement.closest('table').rows).indexOf(document.activeElement.closest('tr'))"
    assert page.evaluate(row) == 0
    seen = [0]
    for _ in range(8):
        page.keyboard.press("ArrowDown")
        seen.append(page.evaluate(row))
    assert seen[-1] == page.evaluate("document.querySelectorAll('#grid tr').length") - 1 and seen == sorted(seen)
    before = page.evaluate("document.activeElement.id")
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("document.activeElement.id") != before
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.getAttribute('aria-pressed')") == "true"
    assert "token" in page.text_content("#said")
    assert all(page.eval_on_selector_all(".node", "all => all.map(one => one.getAttribute('aria-label').length > 5)"))


@pytest.mark.slow
@pytest.mark.parametrize("page", [{"viewport": {"width": 400, "height": 800}, "color_scheme": "dark"}], indirect=True)
def test_on_a_phone_in_the_dark_nothing_is_wider_than_the_screen(page):
    page.click(".node.logit >> nth=0")
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert max(map(int, re.findall(r"\d+", dark)[:3])) < 60


@pytest.mark.slow
def test_nodes_are_grouped_and_count_as_one(page, tmp_path: Path):
    page.fill("#prune", "100")
    own, name = graph(), f"{ATTACK} together"
    first, second = own.strongest(2)
    rows = {node["name"]: row for row, node in enumerate(content_nodes(page))}
    for node in (first, second):
        page.click(f"#node-{rows[node.name]}")
        page.click("#pin")
    page.click("#group-pins")
    assert page.evaluate("document.activeElement.id") == "group-name"
    page.fill("#group-name", name)
    page.keyboard.press("Enter")
    assert page.text_content("#panel h2") == name and page.evaluate("document.activeElement.tagName") == "H2"
    assert page.locator(".node.grouped").count() == 2 and page.locator('.node[aria-pressed="true"]').count() == 2
    assert name in page.get_attribute(f"#node-{rows[first.name]}", "aria-label")

    members = [own.index(first), own.index(second)]
    goes = own.edges[:, members].sum(1)
    goes[members] = 0
    strongest = own.nodes[int(goes.abs().argmax())]
    into = page.locator("section", has=page.locator("h3", has_text="Goes into")).locator("li").first
    shown = float(into.locator(".value").text_content().replace("−", "-"))
    assert shown == pytest.approx(float(goes[own.index(strongest)]), rel=1e-2)
    into.locator("button").click()
    made = page.locator("section", has=page.locator("h3", has_text="Made by"))
    assert made.locator(".named").all_text_contents().count(name) == 1

    page.click("#kept summary")
    kept = json.loads(page.input_value("#kept textarea"))
    names = [own.nodes[row].name for row in sorted(members)]
    assert kept == {"pinned": names, "supernodes": {name: names}}
    again = replace(graph(), pinned=[], supernodes={}).pin(*kept["pinned"])
    again.group(name, *kept["supernodes"][name])
    content = content_of(again.write_page(tmp_path / "graph.html"))
    assert content["supernodes"] == kept["supernodes"] and content["pinned"] == kept["pinned"]
    page.reload()
    page.wait_for_selector(".node.grouped")
    page.locator("#pins button", has_text=name).click()
    page.click("#apart")
    assert page.locator(".node.grouped").count() == 0 and "What the model says" in page.text_content("#panel h2")


@pytest.mark.slow
def test_a_group_is_made_and_left_by_keys_alone(page):
    page.fill("#prune", "100")
    page.locator('.node[tabindex="0"]').focus()
    for key in ("ArrowDown", "g"):
        page.keyboard.press(key)
    page.keyboard.type("mine")
    page.keyboard.press("Enter")
    assert "in group mine" in page.locator('.node[aria-pressed="true"]').get_attribute("aria-label")
    page.focus("#leave")
    page.keyboard.press("Enter")
    assert page.locator(".node.grouped").count() == 0
    assert "group" not in page.locator('.node[aria-pressed="true"]').get_attribute("aria-label")


@pytest.mark.slow
def test_a_term_of_attention_leads_to_its_nodes(page):
    (found,) = graph().attention
    section = page.locator("section.attention")
    assert section.locator("h3").text_content() == "Why head 1 of layer 1 looks there"
    values = [float(text.replace("−", "-")) for text in section.locator(".value").all_text_contents()]
    assert values == pytest.approx([term.value for term in found.terms], rel=1e-2)
    on_page = {node["name"] for node in content_nodes(page)}
    term = next(term for term in found.terms if term.query in on_page)
    row = section.locator("li").nth(found.terms.index(term))
    row.locator("button").first.click()
    pressed = page.locator('.node[aria-pressed="true"]').get_attribute("id")
    assert content_nodes(page)[int(pressed.removeprefix("node-"))]["name"] == term.query
