"""Values of foreign configs, asked for by their kind."""

import pytest

from hfsae.interop.settings import Settings

SETTINGS = Settings(
    {
        "inf": float("inf"),
        "k": 32,
        "half": 0.5,
        "round": 4.0,
        "name": "a",
        "on": True,
        "list": [1, 2],
        "in": {"k": "x"},
        "no": None,
    },
    "cfg.json of here",
)


def test_values_of_the_right_kind_come_out():
    assert (SETTINGS.whole("k"), SETTINGS.whole("round"), SETTINGS.number("half")) == (32, 4, 0.5)
    assert (SETTINGS.text("name"), SETTINGS.flag("on"), SETTINGS.wholes("list")) == ("a", True, [1, 2])
    assert SETTINGS.section("in") == {"k": "x"} and SETTINGS.one_of("name", {"a": "ours"}, "b") == "ours"


@pytest.mark.parametrize("key", ["no", "absent"])
def test_null_and_absent_are_the_same(key: str):
    assert SETTINGS.whole(key) is None and SETTINGS.text(key) is None and SETTINGS.number(key) is None
    assert SETTINGS.flag(key) is False and SETTINGS.flag(key, True) is True and SETTINGS.wholes(key) is None
    assert SETTINGS.section(key) == {} and SETTINGS.one_of(key, {"a": "ours"}, "a") == "ours"
    with pytest.raises(ValueError, match=f"cfg.json of here lacks {key}"):
        SETTINGS.having("k", key)


@pytest.mark.parametrize(
    "ask, message",
    [
        (lambda s: s.whole("half"), "half = 0.5, expected a whole number"),
        (lambda s: s.whole("on"), "on = True, expected a whole number"),
        (lambda s: s.text("k"), "k = 32, expected a text"),
        (lambda s: s.number("name"), "name = 'a', expected a number"),
        (lambda s: s.number("inf"), "inf = inf, expected a finite number"),
        (lambda s: s.flag("k"), "k = 32, expected true or false"),
        (lambda s: s.section("list"), r"list = \[1, 2\], expected an object"),
        (lambda s: s.wholes("in"), "expected a list of whole numbers"),
        (lambda s: s.section("in").whole("k"), r"in\.k = 'x', expected a whole number"),
        (lambda s: s.one_of("list", {"a": "b"}, "a"), r"list = \[1, 2\], which has no counterpart here; known are a"),
    ],
)
def test_another_kind_is_an_error_that_names_file_key_and_value(ask, message: str):
    with pytest.raises(ValueError, match=f"cfg.json of here has .*{message}"):
        ask(SETTINGS)
