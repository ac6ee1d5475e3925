"""The page about a run: complete, closed against what stands in its values, and in need of nothing outside."""

import re
from html.parser import HTMLParser
from pathlib import Path

from hfsae import TopKSAEConfig
from hfsae.hub.html_report import ShownFeature, ShownToken, write_report
from hfsae.hub.plots import feature_density
from tests.hub.samples import metrics

VOID = {"meta", "img", "br"}


class Checked(HTMLParser):
    """Notes what a page refers to, and fails where an element is not closed."""

    def __init__(self, page: str):
        super().__init__()
        self.open, self.references, self.text, self.tags = [], [], "", set()
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.references += [value for name, value in attrs if name in ("src", "href", "srcset")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def page_of(folder: Path, *features: ShownFeature, **changes) -> Checked:
    fields = {"d_in": 8, "n_features": 32, "k": 4, "hook_point": "transformer.h.1.output", "metrics": metrics()}
    path = write_report(folder, TopKSAEConfig(**{**fields, **changes}), features)
    return Checked(path.read_text(encoding="utf-8"))


def test_figures_stand_beside_their_ranges_and_pictures_are_inside(tmp_path):
    feature_density(metrics()["density"], tmp_path / "feature_density.png")
    page = page_of(tmp_path)
    assert "explained variance" in page.text and "> 0.95" in page.text and "transformer.h.1.output" in page.text
    assert len(page.references) == 1 and page.references[0].startswith("data:image/png;base64,")
    raw = (tmp_path / "report.html").read_text()
    assert "script" not in page.tags and not re.search(r"url\(|@import|https?://", raw)


def test_features_are_shown_with_tokens_shaded_by_activation(tmp_path):
    tokens = [ShownToken(" quiet", 0.0, 0.0), ShownToken(" loud", 3.5, 1.0)]
    page = page_of(tmp_path, ShownFeature(7, 0.01, 3.5, [" x"], [tokens]))
    raw = (tmp_path / "report.html").read_text()
    assert "feature 7" in page.text and "<span> quiet</span>" in raw and 'title="3.5"> loud</span>' in raw


def test_nothing_in_a_value_can_become_markup(tmp_path):
    hostile = '</td><script>alert("1")</script>'
    feature = ShownFeature(1, 0.1, 1.0, [hostile], [[ShownToken(hostile, 1.0, 1.0)]])
    page = page_of(tmp_path, feature, base_model=hostile, training={"dataset": hostile, "arguments": {"x": hostile}})
    assert "script" not in page.tags and page.text.count("alert") >= 4


def test_an_sae_of_which_nothing_is_known_has_a_page_too(tmp_path):
    page = page_of(tmp_path, metrics=None, hook_point=None)
    assert "topk SAE, 32 features" in page.text and "Measured" not in page.text
