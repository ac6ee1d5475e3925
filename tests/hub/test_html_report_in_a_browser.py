"""The page about a run, opened from the disk in headless Chromium."""

import shutil

import pytest

from tests.data.tiny import language_model
from tests.training.tiny import text, trainer

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path"),
]


def test_the_page_of_a_run_is_whole_and_asks_for_nothing(tmp_path):
    inputs = {"model": language_model(), "train_dataset": text(2000)}
    trainer(tmp_path, steps=10, eval_tokens=300, html_report=True, inputs=inputs).train()
    errors, requests = [], []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_context(offline=True).new_page()
        page.on("console", lambda message: errors.append(message.text))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda made: requests.append(made.url))
        page.goto((tmp_path / "report.html").as_uri())
        widths = page.eval_on_selector_all("img", "all => all.map(image => image.naturalWidth)")
        headings = page.locator("h2").all_text_contents()
        assert headings[:4] == ["Measured", "Training", "How often features fire", "Examples of features"]
        assert len(widths) == 2 and min(widths) > 300
        assert page.locator("[style*='background: rgba']").first.is_visible()
        assert not page.evaluate("document.documentElement.scrollWidth > innerWidth")
        browser.close()
    assert errors == []
    assert [url for url in requests if not url.startswith(("file://", "data:"))] == []
