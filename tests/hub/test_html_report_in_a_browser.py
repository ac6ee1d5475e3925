"""The page about a run, opened from the disk in headless Chromium."""

import io
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.data.tiny import language_model
from tests.training.tiny import text, trainer

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path"),
]


# The least contrast of a text with what lies behind it, of all texts; what is half transparent is laid over the page.
CONTRAST = """() => {
  const parse = colour => colour.match(/[\\d.]+/g).map(Number);
  const over = (top, below) => top.slice(0, 3).map((c, i) => c * (top[3] ?? 1) + below[i] * (1 - (top[3] ?? 1)));
  const light = rgb => rgb.map(c => (c /= 255) <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
  const page = parse(getComputedStyle(document.body).backgroundColor);
  const own = one => [...one.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
  return Math.min(...[...document.body.querySelectorAll("*")].filter(own).map(one => {
    const back = over(parse(getComputedStyle(one).backgroundColor), page);
    const pair = [light(parse(getComputedStyle(one).color).slice(0, 3)), light(back)].sort((a, b) => b - a);
    return (pair[0] + .05) / (pair[1] + .05);
  }));
}"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    inputs = {"model": language_model(), "train_dataset": text(2000)}
    trainer(folder, steps=10, eval_tokens=300, html_report=True, inputs=inputs).train()
    return folder / "report.html"


def test_the_page_of_a_run_is_whole_and_asks_for_nothing(report):
    errors, requests = [], []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_context(offline=True).new_page()
        page.on("console", lambda message: errors.append(message.text))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda made: requests.append(made.url))
        page.goto(report.as_uri())
        widths = page.eval_on_selector_all("img", "all => all.map(image => image.naturalWidth)")
        headings = page.locator("h2").all_text_contents()
        assert headings[:4] == ["Measured", "Training", "How often features fire", "Examples of features"]
        assert len(widths) == 2 and min(widths) > 300
        assert page.locator("[style*='background: rgba']").first.is_visible()
        browser.close()
    assert errors == []
    assert [url for url in requests if not url.startswith(("file://", "data:"))] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1280])
def test_the_page_fits_and_can_be_read_in_both_schemes(report, scheme, width):
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        size: Any = {"width": width, "height": 900}
        page = browser.new_context(offline=True, color_scheme=scheme, viewport=size).new_page()
        page.goto(report.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.evaluate(
            "[...document.querySelectorAll('.wide')].every(one => one.scrollWidth <= one.clientWidth)"
        )
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert background == {"light": "rgb(255, 255, 255)", "dark": "rgb(26, 26, 26)"}[scheme]
        assert page.evaluate(CONTRAST) >= 4.5  # what WCAG asks of text
        white = Image.open(io.BytesIO(page.locator("img").first.screenshot())).convert("RGB").getpixel((2, 2))
        assert f"rgb{white}" == background  # a picture has the colour of the page behind it
        browser.close()
