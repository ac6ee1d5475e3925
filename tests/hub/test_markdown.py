"""Escaping: whatever a value holds, it is shown as it is and means nothing."""

import ast
import html
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfsae.hub.markdown import code, duration, figure, hub_link, linked, python, text


def shown(markdown: str) -> str:
    """What a reader sees of escaped text."""
    return html.unescape(re.sub(r"\\([\\`*_\[\]|~$])", r"\1", markdown))


@given(st.text())
def test_text_is_shown_as_it_is_on_one_line(value: str):
    escaped = text(value)
    assert "\n" not in escaped and "\r" not in escaped
    printable = "".join(character if character.isprintable() else " " for character in value)
    assert shown(escaped).split() == printable.split()


@given(st.text(alphabet="ab|`*_<>[]\\$~&"))
def test_nothing_special_is_left_unescaped_in_text(value: str):
    assert not re.search(r"(?<!\\)(?:\\\\)*[|`*_\[\]~$]", text(value))
    assert "<" not in text(value) and not re.search(r"&(?!amp;|lt;)", text(value))


@given(st.text(alphabet="ab |`<>&\n!-"))
def test_code_holds_no_bar_and_closes_where_it_ends(value: str):
    escaped = code(value)
    if escaped.startswith("`"):
        assert escaped.count("`") == 2 and escaped.endswith("`") and not re.search(r"[|<&\n]", escaped)
    else:
        assert escaped.startswith("<code>") and escaped.endswith("</code>") and escaped.count("<") == 2


@given(st.text())
def test_a_python_literal_is_the_value_on_one_line(value: str):
    value = value.encode("utf-8", "ignore").decode()
    literal = python(value)
    assert ast.literal_eval(literal) == value and "\n" not in literal and "<" not in literal


def test_arxiv_numbers_and_models_become_links():
    assert (
        linked("Gao et al., arXiv:2406.04093.") == "Gao et al., [arXiv:2406.04093](https://arxiv.org/abs/2406.04093)."
    )
    assert hub_link("org/my_lm") == r"[org/my\_lm](https://huggingface.co/org/my_lm)"


@pytest.mark.parametrize(
    ("value", "written"), [(None, "–"), (0.951234, "0.9512"), (32.0, "32"), (12345.6, "12,346"), (-0.25, "-0.25")]
)
def test_figures_have_four_significant_digits(value: float | None, written: str):
    assert figure(value) == written


@pytest.mark.parametrize(("seconds", "written"), [(45.2, "45 s"), (754, "13 min"), (12240, "3.4 h")])
def test_durations_are_in_a_readable_unit(seconds: float, written: str):
    assert duration(seconds) == written
