"""`contrast`: features that tell two sets of texts apart, with held-out precision and a permutation test."""

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hfsae.attachment import refuse_swapped
from hfsae.autoencoder import SparseAutoencoder
from hfsae.functional.precision import own_precision
from hfsae.meaning.marks import parts_of_texts, read_marks
from hfsae.meaning.peaks import Peaks, read_peaks

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_FEWEST, _FOLDS = 3, 5
# Columns whose ranks are held at once.
_AT_ONCE = 4096


@dataclass(frozen=True)
class TellingFeature:
    """A feature that fires more strongly in the one set of texts.

    Attributes:
        feature: Which one.
        auroc: The chance that its largest value in a positive text is above that in a negative one; equal ones count
            half. 0.5 tells nothing.
        p_value: How often the best of all features does as well where the texts are dealt to the sets at random. As it
            is the best of all, the search itself is accounted for.
        precision: Of the texts that it calls positive, the share that are: at thresholds chosen without the text.
        recall: Of the positive texts, the share that it calls so.
        threshold: The value from which it says yes, chosen on all texts.
        positives: In how many positive texts it fires.
        negatives: In how many negative ones.
    """

    feature: int
    auroc: float
    p_value: float
    precision: float
    recall: float
    threshold: float
    positives: int
    negatives: int


class Contrast(NamedTuple):
    """What tells two sets of texts apart.

    Attributes:
        features: The most telling first.
        precision: Of the whole search: in each fold the feature and its threshold are chosen without the fold's texts.
            Unlike that of a feature which was chosen on all texts, it is no better than it should be.
        recall: The same.
        n_positive: Positive texts.
        n_negative: Negative texts, and the rests of positive ones of which a part is marked.
    """

    features: list[TellingFeature]
    precision: float
    recall: float
    n_positive: int
    n_negative: int


@own_precision()
def contrast(
    sae: SparseAutoencoder,
    model: PreTrainedModel,
    tokenizer: "PreTrainedTokenizerBase",
    positive: Sequence[str],
    negative: Sequence[str],
    *,
    marked: bool = False,
    top: int = 10,
    n_permutations: int = 1000,
    batch_size: int = 16,
    seed: int = 0,
) -> Contrast:
    """Finds the features that tell texts with something from texts without it.

    Each text is read by itself, and of each feature counts its largest value in it. Features are ordered by the area
    under the ROC curve. Of equal ones the first are those whose mean values differ most, in shares of the largest. A
    token that the SAE leaves out, as the first one often is, cannot be told: give what is meant some words in front.

    Whole texts do not say where in them it stands. Marks do: `if x is <<None>>:`. What is marked then counts as a
    positive text, and the rest of its text as one more negative one.

    Args:
        sae: The SAE.
        model: Its language model.
        tokenizer: Its tokenizer.
        positive: Texts with it; ten are a good beginning.
        negative: Texts without it, else as like the others as can be.
        marked: Whether it stands between << and >> in the positive texts, each of which has it marked.
        top: How many features.
        n_permutations: Random dealings of the texts for the p-values.
        batch_size: Pieces per run of the model.
        seed: Of the dealings and the folds.

    Raises:
        ValueError: If a set has fewer than three different texts, or the sets overlap. If no token of a text counts,
            or no feature fires. If nothing is marked in a text that should have marks.

    Example:
        >>> found = contrast(sae, model, tokenizer, ["a\\nimport os"], ["a\\nb = os"])  # doctest: +SKIP
        >>> found.features[0].feature, found.features[0].precision  # doctest: +SKIP
        (1890, 0.9)
    """
    refuse_swapped(sae, model)
    if top < 1 or n_permutations < 1:
        raise ValueError(f"top is {top} and n_permutations {n_permutations}; expected 1 or more.")
    positive, negative = _different(positive, "positive"), _different(negative, "negative")
    marks = [read_marks(text) for text in positive] if marked else []
    if marked and len(positive := list(dict.fromkeys(one.text for one in marks))) < len(marks):
        raise ValueError("two positive texts differ in their marks alone: mark everything in one of them.")
    if both := set(positive) & set(negative):
        shown = sorted(both)[0]
        raise ValueError(f"{len(both)} texts are in both sets, so nothing can tell these apart; the first: {shown!r}.")
    texts = [*positive, *negative]
    parts = parts_of_texts(marks, len(negative), tokenizer) if marked else None
    n_parts = len(texts) + len(marks)
    peaks = read_peaks(sae, model, tokenizer, texts, n_texts=n_parts, parts=parts, batch_size=batch_size)
    empty = peaks.n_tokens == 0
    if bool(empty[: len(texts)].any()):
        first = int(empty.nonzero()[0])
        where = "what is marked in " if first < len(marks) else ""
        raise ValueError(
            f"{where}the text {texts[first]!r} has no token that counts for this SAE: give more text, or leave it out."
        )
    peaks = peaks.of(~empty)  # all of a text may be marked, so that nothing is left
    labels = torch.arange(len(peaks.n_tokens)) < len(positive)
    firing = peaks.firing()
    if not len(firing):
        raise ValueError("no feature fires in any of these texts.")
    auroc, strength, exceeded = _order(peaks, firing, labels, n_permutations, seed)
    order = _best_first(auroc, strength)[:top]
    folds = _folds(labels[: len(texts)], seed)
    # The parts of a text are not parted.
    folds = torch.cat([folds, folds[: len(marks)][~empty[len(texts) :]]])
    chosen, place = firing[order].sort()
    values = peaks.dense(chosen)[:, torch.argsort(place)]
    says = _says_held_out(values, labels, folds)
    features = []
    for column, row in enumerate(order.tolist()):
        precision, recall = _precision_and_recall(says[:, column], labels)
        features.append(
            TellingFeature(
                feature=int(firing[row]),
                auroc=float(auroc[row]),
                p_value=float(exceeded[row] + 1) / (n_permutations + 1),
                precision=precision,
                recall=recall,
                threshold=float(thresholds(values[:, [column]], labels)[0]),
                positives=int((values[labels, column] > 0).sum()),
                negatives=int((values[~labels, column] > 0).sum()),
            )
        )
    n_negative = int((~labels).sum())
    return Contrast(features, *_of_the_search(peaks, firing, labels, folds), len(positive), n_negative)


def ranks(values: Tensor) -> Tensor:
    """The rank of every value in its column, from 1 on; equal ones share the mean of theirs: float64.

    Example:
        >>> ranks(torch.tensor([[3.0], [0.0], [0.0], [5.0]])).flatten().tolist()
        [3.0, 1.5, 1.5, 4.0]
    """
    # Columns as rows that ascend: how many are below, and how many are below or equal.
    table = values.T.contiguous()
    ordered = table.sort(1).values
    below = torch.searchsorted(ordered, table)
    up_to = torch.searchsorted(ordered, table, right=True)
    return ((below + up_to + 1).double() / 2).T


def thresholds(values: Tensor, labels: Tensor) -> Tensor:
    """The thresholds of the best F1: float32 (m,), halfway between two values that are there, or a value and 0.

    Args:
        values: (N, m), 0 where a feature does not fire.
        labels: bool (N,).
    """
    ordered, order = values.sort(0, descending=True)
    hits = labels[order].cumsum(0)
    f1 = 2 * hits / (torch.arange(1, len(values) + 1)[:, None] + labels.sum())
    below = torch.cat([ordered[1:], torch.zeros_like(ordered[:1])])
    # A threshold lies between two values; one that does not fire says nothing.
    f1 = torch.where((ordered > below), f1, -1.0)
    place = f1.argmax(0, keepdim=True)
    found = ((ordered + below) / 2).gather(0, place)[0]
    return torch.where(f1.amax(0) >= 0, found, torch.inf)


def _order(
    peaks: Peaks, firing: Tensor, labels: Tensor, n_permutations: int, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Of every feature its AUROC, by how much it fires more strongly, and how often chance does as well."""
    generator = torch.Generator().manual_seed(seed)
    dealt = torch.stack([labels[torch.randperm(len(labels), generator=generator)] for _ in range(n_permutations)])
    best = torch.zeros(n_permutations, dtype=torch.float64)
    auroc, strength = [], []
    for part in firing.split(_AT_ONCE):
        values = peaks.dense(part)
        ranked = ranks(values)
        auroc.append(_auroc(labels[None], ranked)[0])
        best = torch.maximum(best, _auroc(dealt, ranked).amax(1))
        strength.append((values[labels].mean(0) - values[~labels].mean(0)) / values.amax(0))
    found = torch.cat(auroc)
    # Sums of ranks are halves of whole numbers; what differs less is equal.
    exceeded = (best[:, None] >= found[None] - 1e-9).sum(0)
    return found, torch.cat(strength), exceeded


def _auroc(labels: Tensor, ranked: Tensor) -> Tensor:
    """(dealings, m), from the sum of ranks (Mann and Whitney 1947)."""
    n = labels[0].sum()
    return (labels.double() @ ranked - n * (n + 1) / 2) / (n * (labels.shape[1] - n))


def _best_first(auroc: Tensor, strength: Tensor) -> Tensor:
    order = strength.argsort(descending=True, stable=True)
    return order[auroc[order].round(decimals=9).argsort(descending=True, stable=True)]


def _folds(labels: Tensor, seed: int) -> Tensor:
    """int64 (N,): the fold of each text; each fold has its share of both sets."""
    n_folds = min(_FOLDS, int(labels.sum()), int((~labels).sum()))
    folds = torch.zeros(len(labels), dtype=torch.int64)
    chosen = random.Random(seed)
    for kind in (labels, ~labels):
        numbers = kind.nonzero().flatten().tolist()
        chosen.shuffle(numbers)
        folds[torch.tensor(numbers)] = torch.arange(len(numbers)) % n_folds
    return folds


def _says_held_out(values: Tensor, labels: Tensor, folds: Tensor) -> Tensor:
    """bool (N, m): what each feature says of each text, at a threshold chosen on the other folds."""
    says = torch.zeros(values.shape, dtype=torch.bool)
    for fold in range(int(folds.max()) + 1):
        out = folds == fold
        says[out] = values[out] >= thresholds(values[~out], labels[~out])
    return says


def _of_the_search(peaks: Peaks, firing: Tensor, labels: Tensor, folds: Tensor) -> tuple[float, float]:
    """Precision and recall where the feature too is chosen on the other folds."""
    says = torch.zeros(len(labels), dtype=torch.bool)
    for fold in range(int(folds.max()) + 1):
        out = folds == fold
        best: tuple[float, float] = (-1.0, -1.0)
        column = torch.zeros(len(labels), dtype=torch.float32)
        for part in firing.split(_AT_ONCE):
            values = peaks.dense(part)
            inside, yes = values[~out], labels[~out]
            auroc = _auroc(yes[None], ranks(inside))[0]
            strength = (inside[yes].mean(0) - inside[~yes].mean(0)) / inside.amax(0).clamp(min=1e-30)
            first = int(_best_first(auroc, strength)[0])
            if (found := (round(float(auroc[first]), 9), float(strength[first]))) > best:
                best, column = found, values[:, first]
        says[out] = column[out] >= thresholds(column[~out, None], labels[~out])[0]
    return _precision_and_recall(says, labels)


def _precision_and_recall(says: Tensor, labels: Tensor) -> tuple[float, float]:
    hits = int((says & labels).sum())
    return hits / max(int(says.sum()), 1), hits / int(labels.sum())


def _different(texts: Sequence[Any], name: str) -> list[str]:
    """The texts of a set, each once."""
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"the {name} texts are no list of texts.")
    different = list(dict.fromkeys(texts))
    if len(different) < _FEWEST:
        raise ValueError(
            f"there are {len(different)} different {name} texts: at least {_FEWEST} are needed to choose on some and "
            "measure on others."
        )
    if len(different) < len(texts):
        logger.warning("%d of the %s texts stand there twice and count once", len(texts) - len(different), name)
    return different
