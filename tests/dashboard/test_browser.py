"""The page in headless Chromium, opened from the disk as a user opens it."""

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from hfsae.analysis import FeatureCollection, feature_map
from hfsae.dashboard import read_labels, read_prompts, write_dashboard
from hfsae.dashboard.page_contents import Compared, Comparison, InSource, Matches, MeasuredFigure
from hfsae.identity import Identity, settings_of
from hfsae.label_file import Label, Score, read_label_records
from tests.dashboard.tiny import ATTACK, HOSTILE, collection, hostile, tokenizer

sync_api = pytest.importorskip("playwright.sync_api")
expect = sync_api.expect
expect.set_options(timeout=20_000)

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path"),
]

WITHOUT_FILE_ACCESS = "delete window.showSaveFilePicker"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


# Labels of a language model, whose name is hostile too.
SCORED = {"detection_random": Score(0.75, 0.5, 0.875, 9, 9), "fuzzing_neighbouring": Score(0.5, 0.25, 0.75, 9, 9)}
SIMULATED = {"simulation": Score(-0.07, -0.15, -0.001, 2, 2)}
WRITTEN = {5: Label("zebra", ATTACK, "0" * 64, SCORED), 6: Label("zulu", "org/chat", "0" * 64, SIMULATED)}


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> Path:
    """The same hostile dashboard as a file and as a folder."""
    place = tmp_path_factory.mktemp("pages")
    prompts = read_prompts(*hostile(), [" ".join(HOSTILE), "w1 w2 w3 w1"])
    layout = feature_map(hostile().sae, collection().features[collection().densities > 0])
    shown: dict[str, Any] = {"title": ATTACK, "labels": {3: ATTACK, **WRITTEN}, "prompts": prompts, "layout": layout}
    (place / "report.html").write_text("<h1>the report</h1>")
    measured = [MeasuredFigure("L0", 32.0, "10 – 100"), MeasuredFigure("Loss recovered", float("nan"))]
    shown |= {"measured": measured, "links": {ATTACK: place / "report.html"}}
    pairs = {feature: (39 - feature, 0.5) for feature in range(1, 40)}
    shown["matches"] = [Matches(ATTACK, place / "other.html", pairs, 0.2), Matches("alone", None, {0: (4, 0.9)}, 0.2)]
    write_dashboard(collection(), tokenizer(), place / "other.html")
    write_dashboard(collection(), tokenizer(), place / "one.html", **shown)
    write_dashboard(collection(), tokenizer(), place / "folder", **shown)
    return place


@pytest.fixture(params=["one.html", "folder/index.html"])
def page(request, browser, pages) -> Iterator[Any]:
    """The page, watched: no error, no request that leaves the folder, nothing hostile that ran."""
    context = browser.new_context()
    context.add_init_script(WITHOUT_FILE_ACCESS)
    opened, errors, requests = context.new_page(), [], []
    opened.set_default_timeout(20_000)
    opened.on("pageerror", lambda error: errors.append(error))
    opened.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    opened.on("request", lambda made: requests.append(made.url))
    opened.goto((pages / request.param).as_uri())
    opened.wait_for_selector("h1")
    yield opened
    own = (pages.as_uri(), "data:", "blob:")
    assert errors == [] and [url for url in requests if not url.startswith(own)] == []
    assert opened.evaluate("window.hacked") is None
    context.close()


def rows(page) -> list[str]:
    """The numbers of the features in view."""
    return [
        row.removeprefix("option-") for row in page.eval_on_selector_all(".row", "rows => rows.map(row => row.id)")
    ]


def heading(page) -> str:
    return page.text_content("h1")


def arrives(page, feature: int | str) -> None:
    """Waits until a feature's page is there: its address comes first, the list and the page when its data are read."""
    expect(page).to_have_url(re.compile(f"#feature/{feature}$"))
    expect(page.locator(f"#option-{feature}")).to_have_attribute("aria-selected", "true")
    expect(page.locator("h1")).to_have_text({3: ATTACK, 5: "zebra", 6: "zulu"}.get(int(feature), f"Feature {feature}"))


def test_hostile_text_is_shown_as_text(page):
    assert heading(page) == page.title() == ATTACK
    page.fill("#search", "3")
    page.click("#option-3")
    page.wait_for_selector(".example")
    assert heading(page) == ATTACK
    shown = "".join(page.eval_on_selector_all(".example .text", "all => all.map(one => one.textContent)"))
    assert sum(word in shown for word in HOSTILE[:3]) >= 1 and page.locator("img, main svg script").count() == 0
    for feature in (7, 12, 21):
        page.evaluate(f"location.hash = 'feature/{feature}'")
        expect(page.locator("h1")).to_have_text(f"Feature {feature}")


def test_the_overview_counts_measures_and_leads_to_what_lies_beside(page):
    never = int((collection().densities == 0).sum())
    facts = page.text_content(".facts-row >> nth=0")
    assert f"Living{40 - never}" in facts and f"Never fire{never}" in facts
    assert page.text_content(".facts-row >> nth=1") == "L032healthy 10 – 100Loss recoverednot known"
    link = page.locator(".beside a")
    assert link.text_content() == ATTACK
    link.click()
    expect(page.locator("h1")).to_have_text("the report")


def test_the_page_of_a_comparison_begins_with_what_one_source_has_and_counts_every_class(browser, tmp_path):
    sources = [InSource("base", 0.1), InSource("tuned", 1.0)]
    kinds = {11: "tuned-only", 7: "tuned-only by scaling, shared"}
    features = {feature: Compared(kinds.get(feature, "shared"), sources) for feature in range(40)}
    counts = [{"shared": shared, "tuned-only": 800 - shared} for shared in (799, 798, 797)]
    compared = Comparison({"base": None, "tuned": None}, *counts, features)
    write_dashboard(collection(), tokenizer(), tmp_path / "diff.html", comparison=compared)
    opened = browser.new_page()
    opened.goto((tmp_path / "diff.html").as_uri())
    opened.wait_for_selector("h1")
    assert opened.input_value("#order") == "class" and rows(opened)[:2] == ["11", "7"]
    for feature, kind in kinds.items():
        told = opened.locator(f"#option-{feature} .facts span").last
        assert told.text_content() == kind and told.evaluate("one => one.scrollWidth <= one.clientWidth")
    cells = opened.eval_on_selector_all(".sources tbody tr", "all => all.map(row => row.innerText.split(/\\s+/))")
    assert cells == [["shared", "799", "798", "797"], ["tuned-only", "1", "2", "3"]]
    assert "Never fire" not in opened.text_content(".facts-row >> nth=0")
    opened.close()


def test_search_finds_by_number_label_and_token_and_the_order_can_be_chosen(page):
    assert page.text_content("#count") == "40 features"
    densities = collection().densities
    page.select_option("#order", "frequent")
    assert rows(page)[0] == str(int(densities.argmax()))
    page.select_option("#order", "maximum")
    assert rows(page)[0] == str(int(collection().statistics.maxima.argmax()))
    page.select_option("#order", "label")
    assert rows(page)[:2] == ["3", "5"]
    page.fill("#search", "ZEB")
    assert rows(page) == ["5"] and page.text_content("#count") == "1 of 40 features"
    page.fill("#search", "<img")
    texts = tokenizer()
    fires = {
        str(feature.index)
        for feature in collection()
        if any("<img" in texts.decode([example.token_ids[example.peak]]) for example in feature.top)
    }
    assert set(rows(page)) == fires and fires


def test_a_feature_shows_what_was_collected(page):
    feature = max(collection(), key=lambda feature: feature.tokens_firing)
    page.evaluate(f"location.hash = 'feature/{feature.index}'")
    page.wait_for_selector(".example")
    assert f"{feature.tokens_firing:,}of" in page.text_content(".facts-row")
    examples = page.locator("ol[aria-label='Strongest examples'] .example")
    assert examples.count() == len(feature.top)
    value = float(examples.nth(0).locator(".value").text_content())
    assert value == pytest.approx(feature.maximum, rel=5e-3)
    assert page.locator(".effects.promoted li").count() == len(feature.promoted)
    peak = examples.nth(0).locator(".peak")
    peak.hover()
    page.wait_for_selector("#hint b")
    assert float(page.text_content("#hint b")) == pytest.approx(feature.maximum, rel=5e-3)
    near = page.locator(".neighbours a").first
    target = near.get_attribute("href")
    near.click()
    expect(page).to_have_url(re.compile(f"{target}$"))
    expect(page.locator("h1")).to_be_focused()


def test_a_feature_leads_to_its_partners_in_other_saes(page):
    page.evaluate("location.hash = 'feature/9'")
    expect(page.locator("h1")).to_have_text("Feature 9")
    rows_of = page.locator(".matches li")
    assert rows_of.all_text_contents() == [f"30{ATTACK}0.5", "aloneno partner"]
    page.evaluate("location.hash = 'feature/0'")
    expect(page.locator("h1")).to_have_text("Feature 0")
    assert (
        rows_of.all_text_contents() == [f"{ATTACK}no partner", "4alone0.9"] and page.locator(".matches a").count() == 0
    )
    page.evaluate("location.hash = 'feature/9'")
    page.click(".matches a")
    expect(page).to_have_url(re.compile(r"/other\.html#feature/30$"))
    expect(page.locator("h1")).to_have_text("Feature 30")


def test_everything_can_be_done_with_the_keyboard(page):
    page.keyboard.press("/")
    page.keyboard.type("w")
    page.keyboard.press("ArrowDown")
    page.wait_for_selector(".facts-row >> text=Fires on")
    first, second = rows(page)[:2]
    arrives(page, first)
    expect(page.locator("#list")).to_have_attribute("aria-activedescendant", f"option-{first}")
    page.keyboard.press("ArrowDown")
    arrives(page, second)
    page.keyboard.press("End")
    last = page.get_attribute("[role=option] >> nth=0", "aria-setsize")
    expect(page.locator("#list [aria-selected=true]")).to_have_attribute("aria-posinset", last)
    page.keyboard.press("Home")
    arrives(page, first)
    page.wait_for_selector(".example")

    page.focus(".example")
    for _ in range(2):
        page.keyboard.press("ArrowDown")
    expect(page.locator(".example").nth(2)).to_be_focused()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#said")).not_to_be_empty()
    expect(page.locator("#hint")).to_be_visible()
    page.keyboard.press("ArrowLeft")
    expect(page.locator(".example .current")).to_have_count(1)


def test_labels_are_edited_kept_and_saved(page, tmp_path):
    page.evaluate("location.hash = 'feature/7'")
    expect(page.locator("h1")).to_have_text("Feature 7")
    page.keyboard.press("e")
    page.keyboard.type("ends a sentence </script>")
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_have_text("ends a sentence </script>")
    expect(page.locator("#unsaved")).to_have_text("1 unsaved label")

    page.reload()
    expect(page.locator("h1")).to_have_text("ends a sentence </script>")
    page.keyboard.press("e")
    page.keyboard.type("discarded")
    page.keyboard.press("Escape")
    expect(page.locator("h1")).to_have_text("ends a sentence </script>")
    with page.expect_download() as download:
        page.click("#save")
    download.value.save_as(tmp_path / download.value.suggested_filename)
    labels = read_labels(tmp_path / "labels.json", *Identity.of(hostile().sae))
    assert json.loads((tmp_path / "labels.json").read_text())["settings"] == settings_of(hostile().sae.config)
    assert labels == {3: ATTACK, 5: "zebra", 6: "zulu", 7: "ends a sentence </script>"}
    expect(page.locator("#unsaved")).to_have_text("")


def test_a_label_that_a_model_wrote_says_so_until_a_person_changes_it(page, tmp_path):
    page.evaluate("location.hash = 'feature/5'")
    told = f"Written by {ATTACK}; detection against random text 0.75 (0.50 to 0.88); "
    expect(page.locator(".explained")).to_have_text(f"{told}fuzzing against neighbouring text 0.50 (0.25 to 0.75)")
    page.evaluate("location.hash = 'feature/6'")
    expect(page.locator("h1")).to_have_text("zulu")
    told = "Written by org/chat; simulation, a correlation −0.07 (−0.15 to 0.00)"
    expect(page.locator(".explained")).to_have_text(told)
    page.keyboard.press("e")
    page.keyboard.type("pony")
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_have_text("pony")
    expect(page.locator(".explained")).to_have_count(0)
    with page.expect_download() as download:
        page.click("#save")
    download.value.save_as(tmp_path / "labels.json")
    labels = read_label_records(tmp_path / "labels.json", collection().about.weights_sha256)
    assert labels == {3: Label(ATTACK), 5: WRITTEN[5], 6: Label("pony")}


@pytest.fixture
def served(pages) -> Iterator[str]:
    """The folder on a web server, as a static Space has it; a file system there needs a secure origin."""
    handler = partial(QuietHandler, directory=pages / "folder")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/index.html"
        server.shutdown()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_labels_are_written_to_a_file_where_the_browser_may(browser, served, tmp_path):
    """The dialogue cannot be answered without a screen, so a file of the browser's own file system stands for it."""
    context = browser.new_context()
    file = "(await navigator.storage.getDirectory()).getFileHandle('labels.json', {create: true})"
    context.add_init_script(f"window.showSaveFilePicker = async () => {file}")
    page = context.new_page()
    page.goto(f"{served}#feature/9")
    expect(page.locator("h1")).to_have_text("Feature 9")
    page.keyboard.press("e")
    page.keyboard.type("a name")
    page.keyboard.press("Enter")
    page.click("#save")
    expect(page.locator("#said")).to_have_text("Labels saved")
    written = page.evaluate(f"async () => (await (await {file}).getFile()).text()")
    (tmp_path / "labels.json").write_text(written)
    assert read_labels(tmp_path / "labels.json", collection().about.weights_sha256)[9] == "a name"
    context.close()


def test_drafts_of_another_k_are_not_shown(browser, served, pages):
    """Of one place on the web two pages of the same weights, and one of an earlier version."""
    about = collection().about
    for name, settings in (("two", {**(about.settings or {}), "k": 2}), ("older", None)):
        other = FeatureCollection.from_tensors(replace(about, settings=settings), collection().tensors())
        write_dashboard(other, tokenizer(), pages / "folder" / f"{name}.html")
    context = browser.new_context()
    page = context.new_page()
    for name, shown in (("two", "Feature 9"), ("older", "Feature 9"), ("two", "two"), ("index", "older")):
        page.goto(f"{served.replace('index', name)}#feature/9")
        expect(page.locator("h1")).to_have_text(shown)
        if shown == "Feature 9":
            page.keyboard.press("e")
            page.keyboard.type(name)
            page.keyboard.press("Enter")
            expect(page.locator("h1")).to_have_text(name)
    context.close()


def test_the_prompt_page_says_which_features_fire_where(page):
    page.click("#pages >> text=Prompts")
    page.wait_for_selector(".ranking")
    (prompt, _) = read_prompts(*hostile(), [" ".join(HOSTILE), "w1 w2 w3 w1"])
    assert page.text_content(".prompt-text") == "".join(prompt["tokens"])
    page.click("#token-3")
    page.select_option("#ranking", "strongest")
    shown = page.eval_on_selector_all(".ranking .swatch", "all => all.map(one => Number(one.dataset.feature))")
    assert shown == prompt["features"][3]
    page.click(f".swatch[data-feature='{shown[0]}']")
    shaded = page.eval_on_selector_all(".prompt-text .shaded", "all => all.map(one => Number(one.id.slice(6)))")
    assert shaded == [token for token, features in enumerate(prompt["features"]) if shown[0] in features]
    assert page.get_attribute(f".swatch[data-feature='{shown[0]}']", "aria-pressed") == "true"


def test_the_map_leads_to_features_by_pointer_and_by_keyboard(page):
    page.click("#pages >> text=Map")
    canvas = page.locator("#feature-map")
    expect(page.locator("h1")).to_have_text("Map")
    assert page.locator(".map-groups li").count() > 1
    drawn = """() => {
        const canvas = document.querySelector("#feature-map");
        const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
        return pixels.filter((value, i) => i % 4 === 3 && value > 0).length;
    }"""
    everything = page.wait_for_function(drawn).json_value()
    assert everything > 40
    page.click(".map-groups .swatch >> nth=0")
    expect(page.locator(".map-groups .swatch >> nth=0")).to_have_attribute("aria-pressed", "true")

    canvas.focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#said")).to_contain_text(re.compile(r"^Feature \d+, .*, group \d+$"))
    first = page.text_content("#said")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#said")).not_to_have_text(first)
    page.keyboard.press("+")
    expect(page.locator("#said")).to_have_text("Zoom 2")
    page.keyboard.press("-")
    chosen = page.locator(".map-told .number").text_content()
    page.keyboard.press("Enter")
    arrives(page, chosen)
    page.click("text=On the map")
    expect(page).to_have_url(re.compile(f"#map/{chosen}$"))
    expect(page.locator(".map-told .number")).to_have_text(chosen)

    # The feature that lies farthest to the right stands at the right edge.
    layout = feature_map(hostile().sae, collection().features[collection().densities > 0])
    farthest = layout.features[layout.places[:, 0].argmax()]
    low, high = layout.places[:, 1].min(), layout.places[:, 1].max()
    height = float((high - layout.places[layout.places[:, 0].argmax(), 1]) / (high - low))
    box = canvas.bounding_box()
    place = {"x": box["width"] - 15, "y": 15 + height * (box["height"] - 30)}
    canvas.hover(position=place)
    expect(page.locator("#hint b")).to_have_text(str(int(farthest)))
    canvas.click(position=place)
    arrives(page, int(farthest))


def test_the_map_fits_a_narrow_screen(browser, pages):
    context = browser.new_context(viewport={"width": 400, "height": 800}, color_scheme="dark")
    page = context.new_page()
    page.goto((pages / "one.html").as_uri() + "#map")
    expect(page.locator("#feature-map")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == 400
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_dark(browser, pages, scheme):
    """The contrast of text with what is behind it is at least 4.5 (WCAG 2.2, 1.4.3), on the deepest shade too."""
    context = browser.new_context(color_scheme=scheme)
    page = context.new_page()
    page.goto((pages / "one.html").as_uri())
    colours = page.evaluate(
        """() => {
            const style = getComputedStyle(document.documentElement);
            return Object.fromEntries(["ink", "muted", "accent", "ground", "surface", "heat", "accent-soft"].map(
                (name) => [name, style.getPropertyValue(`--${name}`).trim()]));
        }"""
    )
    pairs = [(text, behind) for text in ("ink", "muted", "accent") for behind in ("ground", "surface")]
    for text, behind in [*pairs, ("ink", "heat"), ("ink", "accent-soft"), ("accent", "accent-soft")]:
        assert contrast(colours[text], colours[behind]) >= 4.5, (text, behind)
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == rgb_text(colours["ground"])
    context.close()


def test_twelve_thousand_features_open_and_are_searched_at_once(browser, tmp_path):
    """The list holds the rows in view alone, and a search takes well under a second."""
    n = 12_288
    source = write_dashboard(collection(), tokenizer(), tmp_path / "small.html").read_text()
    found = re.search(r'id="index">(.*?)</script>', source, re.S)
    assert found
    index = json.loads(found[1])
    columns = index["features"]
    many = {name: [column[i % 40] for i in range(n)] for name, column in columns.items()} | {"index": list(range(n))}
    large = source.replace(found[1], json.dumps(index | {"features": many}).replace("<", "\\u003c"))
    (tmp_path / "large.html").write_text(large)
    page = browser.new_page()
    page.goto((tmp_path / "large.html").as_uri())
    page.wait_for_selector(".row")
    assert page.text_content("#count") == "12,288 features" and page.locator(".row").count() < 60
    assert page.get_attribute(".row >> nth=0", "aria-setsize") == str(n)
    took = page.evaluate(
        """() => {
            const search = document.getElementById("search"), start = performance.now();
            search.value = "12287";
            search.dispatchEvent(new Event("input"));
            return performance.now() - start;
        }"""
    )
    assert rows(page) == ["12287"] and took < 1000
    page.close()


def linear(colour: str) -> list[float]:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]


def contrast(one: str, other: str) -> float:
    """Of two colours, as WCAG 2.2 defines it."""
    light, dark = sorted(
        (sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear(colour), strict=True)) for colour in (one, other)),
        reverse=True,
    )
    return (light + 0.05) / (dark + 0.05)


def rgb_text(colour: str) -> str:
    return f"rgb({', '.join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))})"
