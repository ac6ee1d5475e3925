"""Detection and fuzzing: how well an explanation foretells where a feature fires.

As EleutherAI's delphi 0.1.3 has them (`scorers/classifier`; Paulo et al. 2024, arXiv:2410.13928). A model is given the
explanation and a few pieces of text at once, and says 1 or 0 of each.

* Detection: does the pattern occur in the piece? 1 is right where the feature fires in it.
* Fuzzing: are the marked tokens what the explanation describes? Where the feature fires, its own tokens are marked:
  those of at least 0.3 of the example's largest value. Elsewhere as many random tokens are marked as it fires on in an
  example, on average, rounded up.

The score is balanced accuracy, (TPR + TNR) / 2. Unlike delphi's, examples that are scored were not shown to the model
that explained. Negatives are of two kinds: random pieces, and pieces on which a feature near this one fires.
"""

import json
import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from hfsae.analysis import Example, TokenTexts
from hfsae.label_file import Score
from hfsae.meaning.chat import Conversation
from hfsae.meaning.explaining import THRESHOLD, marked
from hfsae.meaning.label_prompts import Prompts

Kind = Literal["detection", "fuzzing"]
Group = Literal["fires", "random", "neighbouring"]
KINDS: tuple[Kind, ...] = ("detection", "fuzzing")
AGAINST: tuple[Group, ...] = ("random", "neighbouring")

_Z = 1.959964  # of a 95 % interval
_LIST = re.compile(r"\[.*?\]", re.S)


@dataclass(frozen=True)
class Trial:
    """A piece of text that is to be told.

    Attributes:
        text: As it is shown.
        group: Whether the feature fires on it, or where it is from.
    """

    text: str
    group: Group


def trials(
    kind: Kind,
    positives: Sequence[Example],
    negatives: Mapping[Group, Sequence[list[int]]],
    texts: TokenTexts,
    chosen: random.Random,
) -> list[Trial]:
    """Everything that is asked of one feature, in a random order.

    Args:
        kind: What is asked.
        positives: Examples on which it fires.
        negatives: Tokens of pieces on which it does not, by where they are from.
        texts: Gives the texts of tokens.
        chosen: Draws the tokens that are marked wrongly, and the order.
    """
    found = [Trial(_positive(kind, example, texts), "fires") for example in positives]
    firing = [sum(value > 0 for value in example.activations) for example in positives]
    n_marked = math.ceil(sum(firing) / max(len(firing), 1))
    for group, windows in negatives.items():
        found += [Trial(_negative(kind, window, n_marked, texts, chosen), group) for window in windows]
    chosen.shuffle(found)
    return found


def batches(found: Sequence[Trial], shown_at_once: int) -> Iterator[Sequence[Trial]]:
    """The trials, so many at once."""
    return (found[start : start + shown_at_once] for start in range(0, len(found), shown_at_once))


def scoring_prompt(kind: Kind, explanation: str, shown: Sequence[Trial], prompts: Prompts) -> Conversation:
    """Asks which of some pieces an explanation is true of."""
    return prompts.render(kind, explanation=explanation, examples=[trial.text for trial in shown])


def verdicts_in(answer: str, size: int) -> list[bool] | None:
    """What an answer says of each piece: the first list in it, if that has a 0 or 1 for each; None for others."""
    match = _LIST.search(answer)
    if match is None:
        return None
    try:
        said = json.loads(match[0].lower())
    except (ValueError, RecursionError):
        return None
    # True and False are 1 and 0 in Python too.
    return [bool(one) for one in said] if len(said) == size and all(one in (0, 1) for one in said) else None


def scores_of(kind: Kind, told: Sequence[tuple[Trial, bool | None]]) -> dict[str, Score]:
    """The scores of one feature, by their names in `labels.json`.

    Args:
        kind: What was asked.
        told: Every trial with the verdict; None where there was none.

    Returns:
        A score for each kind of negatives of which, and of positives, at least one was answered.
    """
    found = {}
    for against in AGAINST:
        asked = [(trial.group == "fires", verdict) for trial, verdict in told if trial.group in ("fires", against)]
        yes = [verdict for fires, verdict in asked if fires and verdict is not None]
        no = [not verdict for fires, verdict in asked if not fires and verdict is not None]
        if yes and no:
            accuracy, low, high = balanced_accuracy(sum(yes), len(yes), sum(no), len(no))
            unanswered = len(asked) - len(yes) - len(no)
            found[f"{kind}_{against}"] = Score(accuracy, low, high, len(yes), len(no), unanswered)
    return found


def wilson(hits: int, size: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927), which holds for few trials and near 0 and 1.

    Example:
        >>> [round(end, 3) for end in wilson(8, 10)]
        [0.49, 0.943]
    """
    share, z = hits / size, _Z
    middle = share + z**2 / (2 * size)
    half = z * math.sqrt(share * (1 - share) / size + z**2 / (4 * size**2))
    return (middle - half) / (1 + z**2 / size), (middle + half) / (1 + z**2 / size)


def balanced_accuracy(true_positives: int, positives: int, true_negatives: int, negatives: int) -> tuple[float, ...]:
    """(TPR + TNR) / 2 with its 95 % interval, of two Wilson intervals by square-and-add (Newcombe 1998, method 10).

    Example:
        >>> [round(number, 3) for number in balanced_accuracy(8, 10, 5, 10)]
        [0.65, 0.438, 0.796]
    """
    rates = true_positives / positives, true_negatives / negatives
    ends = wilson(true_positives, positives), wilson(true_negatives, negatives)
    below = math.hypot(*(rate - low for rate, (low, _) in zip(rates, ends, strict=True))) / 2
    above = math.hypot(*(high - rate for rate, (_, high) in zip(rates, ends, strict=True))) / 2
    accuracy = sum(rates) / 2
    return accuracy, accuracy - below, accuracy + above


def mean_over_features(accuracies: Sequence[float], n_resamples: int = 2000) -> tuple[float, float, float]:
    """The mean of features' scores with its 95 % interval, by bootstrap over features (percentiles)."""
    values = torch.tensor(accuracies, dtype=torch.float64)
    drawn = torch.randint(len(values), (n_resamples, len(values)), generator=torch.Generator().manual_seed(0))
    means = values[drawn].mean(1)
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return float(values.mean()), low, high


def _positive(kind: Kind, example: Example, texts: TokenTexts) -> str:
    parts = texts(example.token_ids)
    if kind == "detection":
        return "".join(parts)
    threshold = THRESHOLD * max(example.activations)
    return marked(parts, [value >= threshold for value in example.activations])


def _negative(kind: Kind, window: list[int], n_marked: int, texts: TokenTexts, chosen: random.Random) -> str:
    parts = texts(window)
    if kind == "detection":
        return "".join(parts)
    places = set(chosen.sample(range(len(parts)), min(n_marked, len(parts))))
    return marked(parts, [place in places for place in range(len(parts))])
