"""YAML changes where its values change; everything else stays byte for byte."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hfsae.hub.yaml_text import dump, patched

TEXT = """\
# about this card
license: mit   # chosen by the boss
thumbnail: 'https://example.org/a.png'
extra: {b: 1.50, a: [x, "y"]}
tags:
- sae
- "quoted"   # kept
model-index:
- name: Theirs
  results:
    - task: {type: text-generation}
      metrics:
        - type: mse
          value: 9.00   # by hand
        - type: absorption
          value: 7e-1
- name: Ours
  results: []
last: |
  several

  lines
end: yes
""".strip()


def changed(**values) -> str:
    return patched(TEXT, {**yaml.safe_load(TEXT), **values})


def test_the_same_values_are_the_same_bytes():
    assert changed() == TEXT


def test_one_value_changes_alone():
    assert changed(license="apache-2.0") == TEXT.replace("license: mit ", "license: apache-2.0 ")


def test_an_item_that_comes_and_one_that_goes_leave_the_others_as_they_are():
    theirs, _ = yaml.safe_load(TEXT)["model-index"]
    index = [{"name": "New", "results": [{"task": {"type": "x"}}]}, theirs]
    new = "- name: New\n  results:\n  - task:\n      type: x\n"
    begin, end = TEXT.index("- name: Theirs"), TEXT.index("- name: Ours")
    expected = TEXT[:begin] + new + TEXT[begin:end] + TEXT[TEXT.index("last:") :]
    assert changed(**{"model-index": index}) == expected


def test_a_change_deep_inside_leaves_what_is_beside_it():
    index = yaml.safe_load(TEXT)["model-index"]
    index[0]["results"][0]["metrics"][0]["value"] = 8.0
    assert changed(**{"model-index": index}) == TEXT.replace("9.00", "8.0")


def test_a_key_that_goes_and_one_that_comes():
    values = yaml.safe_load(TEXT)
    del values["extra"]
    text = patched(TEXT, {**values, "language": ["en"]})
    assert text == (TEXT.replace('extra: {b: 1.50, a: [x, "y"]}\n', "") + "\nlanguage:\n- en")


@pytest.mark.parametrize(
    "text", ["a: &x [1]\nb: *x", "{a: 1}", "a: 1\na: 2", "? a\n: 1", "a:\n  - - 1", "a: .nan", "a: |\n  b", ""]
)
def test_what_cannot_be_taken_apart_says_the_right_thing(text):
    values = {**(yaml.safe_load(text) or {}), "c": [{"d": None}, 1.5]}
    assert dump(yaml.safe_load(patched(text, values))) == dump(yaml.safe_load(dump(values)))


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)


mappings = st.dictionaries(st.text(max_size=5), plain, max_size=4)


@given(mappings, mappings)
def test_any_values_can_become_any_others(old, new):
    wanted = yaml.safe_load(dump(new))
    said = yaml.safe_load(patched(dump(old), wanted))
    # Keys keep their place, so their order is another; as text NaN is equal to itself.
    assert yaml.dump(said, sort_keys=True) == yaml.dump(wanted, sort_keys=True)
