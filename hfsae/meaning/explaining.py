"""What a model is shown of a feature to explain it, and what counts as an explanation."""

import math
import re
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from hfsae.analysis import Example, Feature, TokenTexts
from hfsae.meaning.chat import Conversation
from hfsae.meaning.label_prompts import Prompts

THRESHOLD = 0.3
"""A token is marked where the feature's value is above this share of the example's largest, as in delphi."""

_STRENGTHS = 10
_MOST_STRENGTHS_SHOWN, _MOST_PROMOTED = 10, 8
_LONGEST = 300
_SAID = re.compile(r"\[EXPLANATION\]:[ \t]*(.*)")


def shown_and_held_out(feature: Feature, n_shown: int) -> tuple[list[Example], list[Example]]:
    """The examples that explain a feature, and others that the explanation is scored on.

    Half of those shown are the strongest; the others are every second of the sample, across its range. What is held
    out is the rest of the sample: a uniform sample of contexts, none of which was shown.

    Args:
        feature: The feature.
        n_shown: How many are shown, at most.
    """
    top = feature.top[: -(-n_shown // 2)]
    known = {(example.document, example.position) for example in top}
    others = [example for example in feature.sample if (example.document, example.position) not in known]
    across = spread(others[::2], n_shown - len(top))
    return [*top, *across], others[1::2]


def spread(examples: Sequence[Example], size: int) -> list[Example]:
    """So many of the examples at most, at equal distances in their order."""
    if len(examples) <= size:
        return list(examples)
    return [examples[place * len(examples) // size] for place in range(size)]


def explanation_prompt(
    feature: Feature, shown: Sequence[Example], texts: TokenTexts, prompts: Prompts
) -> Conversation:
    """Asks what a feature responds to.

    Args:
        feature: The feature.
        shown: Examples of it.
        texts: Gives the texts of tokens.
        prompts: The templates.
    """
    promoted = [texts([effect.token_id])[0] for effect in feature.promoted[:_MOST_PROMOTED]]
    examples = [_shown(example, feature.maximum, texts) for example in shown]
    return prompts.render("explain", examples=examples, promoted=promoted)


def explanation_in(answer: str, asked: Conversation) -> str | None:
    """The explanation that an answer holds; None where it is nonsense.

    It stands behind the last `[EXPLANATION]:`, on one line. Three kinds of answers are no explanation. They copy the
    prompt's own examples, announce what never comes ("the following:"), or have more than 300 characters.

    Args:
        answer: What the model said.
        asked: The prompt.
    """
    found = _SAID.findall(answer)
    if not found:
        return None
    text = " ".join(found[-1].split()).strip("*\"' ")
    instructions = " ".join(" ".join(message["content"].split()) for message in asked if message["role"] == "system")
    copied = bool(text) and f"[EXPLANATION]: {text}" in instructions
    if not re.search(r"\w", text) or text.endswith(":") or len(text) > _LONGEST or copied:
        return None
    return text


def marked(parts: Sequence[str], where: Sequence[bool]) -> str:
    """A text whose runs of chosen tokens stand between << and >>."""
    pieces = []
    for chosen, run in groupby(zip(parts, where, strict=True), key=lambda pair: pair[1]):
        text = "".join(part for part, _ in run)
        pieces.append(f"<<{text}>>" if chosen else text)
    return "".join(pieces)


def above_threshold(activations: Sequence[float]) -> list[bool]:
    """Which tokens of an example are marked."""
    threshold = THRESHOLD * max(activations)
    return [value > threshold for value in activations]


def _shown(example: Example, maximum: float, texts: TokenTexts) -> dict[str, Any]:
    parts, where = texts(example.token_ids), above_threshold(example.activations)
    strengths = [
        (part, min(math.ceil(_STRENGTHS * value / maximum), _STRENGTHS))
        for part, value, is_marked in zip(parts, example.activations, where, strict=True)
        if is_marked
    ]
    return {"marked": marked(parts, where), "strengths": strengths[:_MOST_STRENGTHS_SHOWN]}
