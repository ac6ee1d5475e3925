"""The page's structure, read by an HTML parser: what may run is ours, and nothing of the data is markup."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from importlib.resources import files

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfsae.dashboard.page import SCRIPTS, as_data, render_page
from tests.dashboard.tiny import ATTACK, HOSTILE

ASSETS = [*(files("hfsae.dashboard") / "assets").iterdir(), *(files("hfsae.webpage") / "assets").iterdir()]


class Elements(HTMLParser):
    """Lists the elements of a page, with the text that is directly inside of each."""

    def __init__(self, html: str):
        super().__init__()
        self._inside = False
        self.found: list[tuple[str, dict[str, str | None], str]] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs), ""))
        self._inside = True

    def handle_endtag(self, tag):
        self._inside = False

    def handle_data(self, data):
        if self._inside:
            tag, attributes, text = self.found[-1]
            self.found[-1] = (tag, attributes, text + data)

    def of(self, tag: str) -> list[tuple[dict[str, str | None], str]]:
        return [(attributes, text) for name, attributes, text in self.found if name == tag]


def hostile_page() -> Elements:
    return Elements(render_page(ATTACK, {"texts": HOSTILE, "title": ATTACK}, ["AAAA", "BBBB"]))


def test_hostile_text_adds_no_element():
    harmless = Elements(render_page("x", {"texts": [], "title": "x"}, ["AAAA", "BBBB"]))
    assert [name for name, _, _ in hostile_page().found] == [name for name, _, _ in harmless.found]
    assert "img" not in {name for name, _, _ in harmless.found}


def test_hostile_text_comes_back_as_it_was():
    scripts = {attributes.get("id"): text for attributes, text in hostile_page().of("script")}
    assert json.loads(scripts["index"]) == {"texts": list(HOSTILE), "title": ATTACK}
    assert (scripts["group-0"], scripts["group-1"]) == ("AAAA", "BBBB")
    assert hostile_page().of("title")[0][1] == ATTACK


@given(st.dictionaries(st.text(), st.text() | st.lists(st.text())))
def test_data_cannot_end_its_script_and_is_not_changed(content):
    written = as_data(content)
    assert "<" not in written and written.isascii() and json.loads(written) == content


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_finite_number_is_null_as_json_has_no_word_for_it(value):
    def unknown(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    content = {"a": [1.5, {"b": value}], "c": (value, "NaN", None, True, 3)}
    told = json.loads(as_data(content), parse_constant=unknown)
    assert told == {"a": [1.5, {"b": None}], "c": [None, "NaN", None, True, 3]}


@pytest.mark.parametrize("files_beside", [False, True])
def test_the_policy_allows_our_script_and_style_alone(files_beside):
    page = Elements(render_page("x", {}, [], files_beside))
    (policy,) = [a["content"] for a, _ in page.of("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    digests = {
        tag: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for tag in ("script", "style")
        for attributes, text in page.of(tag)
        if attributes.get("type") not in ("application/json", "text/plain")
    }
    assert rules["default-src"] == "'none'" and rules["img-src"] == "data:"
    assert rules["style-src"] == f"'sha256-{digests['style']}'"
    assert rules["script-src"] == f"'sha256-{digests['script']}'" + (" 'self'" if files_beside else "")


def test_nothing_of_the_page_is_elsewhere():
    for asset in ASSETS:
        addresses = set(re.findall(r"\w+://[^\s\"')]+", asset.read_text(encoding="utf-8")))
        assert addresses <= {"http://www.w3.org/2000/svg"}, asset.name  # a name space, which is not fetched


def test_all_scripts_are_in_the_page_and_none_writes_html():
    scripts = {asset.name: asset.read_text(encoding="utf-8") for asset in ASSETS if asset.name.endswith(".js")}
    assert set(SCRIPTS) == set(scripts)
    for name, code in scripts.items():
        for unsafe in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
            assert unsafe not in code, name
        assert "</" not in code
