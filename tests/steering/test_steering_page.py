"""The page of a steering report: it says what the report says, and hostile text stays text."""

import itertools
from dataclasses import replace

import pytest

from hfsae.steering import (
    SteeringReport,
    StrengthEffect,
    UsableLimits,
    steering_plot,
    usable_words,
    write_steering_page,
)
from hfsae.steering.steering_page import _drawn
from tests.dashboard.tiny import ATTACK, tokenizer

EFFECTS = [
    StrengthEffect(-1.0, 0.05, 12.0, 0.1, 0.0, "less"),
    StrengthEffect(0.0, 0.1, 10.0, 0.0, 0.0, "plain"),
    StrengthEffect(1.0, 0.2, 11.0, 0.2, 0.05, ATTACK),
    StrengthEffect(9.0, 0.9, float("inf"), 9.0, 0.9, "much"),
]
REPORT = SteeringReport(17, 2.5, [1, 2], EFFECTS, UsableLimits(), 1234, 8, 40)


def test_the_page_shows_figures_and_samples_as_text(tmp_path):
    page = write_steering_page(REPORT, tmp_path / "p.html", tokenizer=tokenizer(), title=ATTACK, text="held out")
    said = page.read_text()
    assert (
        said.count("<script") == said.count('<script type="module"></script>') == 1
        and "&lt;script&gt;" in said
        and "script-src" in said
    )
    assert "Usable: 1 and -1." in said and "1,234 predictions of held out" in said and "∞" in said
    assert said.count('class="usable"') == 2 and "data:image/png;base64," in said


def test_the_page_says_what_the_continuations_continue(tmp_path):
    for prompt, said in ((None, False), (f"    def close(self):\n{ATTACK}", True)):
        page = write_steering_page(replace(REPORT, prompt=prompt), tmp_path / "p.html", tokenizer=tokenizer())
        assert ("Continuations of this text" in page.read_text()) is said
    assert "    def close(self):\n&lt;/script&gt;&lt;script&gt;" in page.read_text()


def test_the_same_figures_are_the_same_picture_and_others_are_another(tmp_path):
    other = replace(REPORT, effects=[*EFFECTS[:3], replace(EFFECTS[3], perplexity=80.0)])
    for name, report in (("a", REPORT), ("b", REPORT), ("c", other)):
        steering_plot(report, tmp_path / name)
    first, same, changed = ((tmp_path / name).read_bytes() for name in "abc")
    assert first == same != changed and first.startswith(b"\x89PNG")


@pytest.mark.parametrize("largest", [10.4, 12.0, 30.0, 90.0, 1e3, 1e6, 1e30])
def test_labels_of_the_axes_do_not_stand_on_one_another(largest):
    figure = _drawn(replace(REPORT, effects=[*EFFECTS[:3], replace(EFFECTS[3], perplexity=largest)]))
    figure.draw_without_rendering()
    for axes in figure.axes:
        low, high = axes.get_window_extent().y0, axes.get_window_extent().y1
        boxes = [label.get_window_extent() for label in axes.get_yticklabels(which="both") if label.get_text()]
        boxes = sorted((box for box in boxes if low - 1 <= (box.y0 + box.y1) / 2 <= high + 1), key=lambda box: box.y0)
        assert len(boxes) > 1
        assert all(below.y1 <= above.y0 for below, above in itertools.pairwise(boxes))


def test_words_for_ranges():
    assert usable_words(REPORT) == "usable: 1 and -1"
    assert usable_words(replace(REPORT, effects=EFFECTS[1:2])) == "no strength of the grid is usable"
