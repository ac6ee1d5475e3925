"""No value breaks out of its place in a card: not out of its table, its line, its code, nor the generated block."""

import ast
import re
from typing import Any

import pytest
from huggingface_hub import ModelCard

from hfsae.hub import render_card
from hfsae.hub.card import BEGIN, END
from tests.hub.samples import config, metrics, snippet, training

HOSTILE = [
    "a | b\n| c | d |",
    "<script>alert(1)</script>",
    f"{END}\n\n# Taken over",
    "```\n# out of the fence",
    "`` ` ``",
    "[click](javascript:alert(1))",
    "---\nlicense: other\n---",
    '"\n: {a: b}\n- x',
    "{{ config }} {% include 'x' %}",
    "![x](https://example.org/p.png)",
    "\u202egnp.exe\u0000\x1b[31m",
    "!!python/object/apply:os.system ['true']",
]


@pytest.mark.parametrize("evil", HOSTILE)
def test_a_hostile_value_stays_in_its_place(evil: str):
    def fill(plain: Any) -> Any:
        return {key: fill(value) for key, value in plain.items()} if isinstance(plain, dict) else evil

    strings = {"dataset": evil, "split": evil, "hardware": evil, "portable_name": evil, "unknown": evil, evil: evil}
    hostile = config(
        base_model=evil,
        base_model_revision=evil,
        hook_point=evil,
        training=training(**strings, versions={evil: evil}, arguments={evil: evil, "dataset_name": evil}),
        metrics=metrics(
            protocol=fill(metrics()["protocol"]) | {evil: evil},
            notes={"kl": evil},
            kl=None,
            baselines={evil: {"l0": 1.0}},
        ),
    )
    card = render_card(hostile, subfolder=evil)
    plain = render_card(config(metrics=metrics(kl=None, notes={"kl": "?"})), subfolder="plain")
    assert card.text.count(BEGIN) == card.text.count(END) == 1 and card.text.endswith(f"{END}\n")
    assert headings(card.text)[1:] == headings(plain.text)[1:]  # the first holds the subfolder
    assert not re.search(r"<(?=[a-zA-Z/!?])(?!!-- hfsae:|/?code>)", outside_code(card.text))
    assert not re.search(r"(?<!\\)\]\((?!https://(huggingface\.co|arxiv\.org)/)", outside_code(card.text))
    assert {rows.count("|") for rows in unescaped_tables(card.text)} <= {3, 4, 6}
    assert ast.parse(snippet(card.text))
    again = ModelCard(str(card))
    assert again.data.to_dict() == card.data.to_dict() and again.data.license is None
    assert str(render_card(hostile, subfolder=evil, existing=again)) == str(card)


def outside_fences(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def outside_code(text: str) -> str:
    return re.sub(r"(?<!\\)`[^`\n]*`", "", outside_fences(text))


def headings(text: str) -> list[str]:
    return re.findall(r"^#+ .*$", outside_fences(text), re.MULTILINE)


def unescaped_tables(text: str) -> list[str]:
    return [line.replace("\\\\", "").replace("\\|", "") for line in text.splitlines() if line.startswith("|")]
