"""Sparse probing: how well k units of a basis tell a concept, on text that they were not chosen on.

Units are chosen and probes fitted on the one side, F1 and accuracy are measured on the other. Sources: Gurnee et al.
2023 (arXiv:2305.01610), Kantamneni et al. 2025 (arXiv:2502.16681). The same rule chooses from every basis.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfsae.scores.labelled_rows import COORDINATES, LabelledRows
from hfsae.scores.needed import needed
from hfsae.scores.noise import ConfidenceInterval, bootstrap, interval

KS = (1, 2, 5)
LINEAR = "linear probe"
"""A logistic regression on all coordinates of what the SAE reads."""
ENOUGH = 30
"""A concept with fewer rows that have it, or that lack it, on one of the sides is left out."""

# Units whose means differ most are tried, so many of them.
_TRIED = 20

Basis = tuple[str, int]
"""A basis and k; the linear probe has as many as there are coordinates."""


@dataclass(frozen=True)
class Probe:
    """A linear probe on some units, with the threshold of the best F1 on what it was fitted on.

    Attributes:
        units: Which ones, in the order in which they were chosen.
        weights: float64 (units,), of raw values.
        threshold: The sum from which on it says yes.
        train_f1: Its F1 on what it was fitted on.
    """

    units: tuple[int, ...]
    weights: NDArray[np.float64]
    threshold: float
    train_f1: float

    def says(self, values: Any) -> NDArray[np.bool_]:
        """Yes or no for each row of a basis, (N,)."""
        return taken(values, self.units).astype(np.float64) @ self.weights >= self.threshold


@dataclass(frozen=True)
class Probing:
    """Probes of some concepts, and what they say of the other side.

    Attributes:
        concepts: Their names; those without enough rows are not among them.
        left_out: The others.
        n_train: Rows that probes were fitted on.
        n_held_out: Rows that they were measured on.
        share: The share of the held-out rows that have each concept.
        probes: By (basis, k), one for each concept.
        numbers: Of a basis of which only some units are in the rows, the number of each; probes name columns.
        counts: By (basis, k), float64 (documents, concepts, 4): true and false positives, false and true negatives.
        n_draws: Draws of the bootstrap over documents.
        seed: Of the draws.
    """

    concepts: list[str]
    left_out: list[str]
    n_train: int
    n_held_out: int
    share: NDArray[np.float64]
    probes: Mapping[Basis, list[Probe]]
    numbers: Mapping[str, NDArray[np.int64]]
    counts: Mapping[Basis, NDArray[np.float64]]
    n_draws: int
    seed: int

    def f1(self, basis: str, k: int) -> list[ConfidenceInterval]:
        """The F1 of each concept."""
        return self._of_each(basis, k, f1_of)

    def accuracy(self, basis: str, k: int) -> list[ConfidenceInterval]:
        """The accuracy of each concept; always to say no would have 1 − share."""
        return self._of_each(basis, k, accuracy_of)

    def mean_f1(self, basis: str, k: int) -> ConfidenceInterval:
        """The mean F1 over concepts."""
        return self._mean(basis, k, f1_of)

    def mean_accuracy(self, basis: str, k: int) -> ConfidenceInterval:
        """The mean accuracy over concepts."""
        return self._mean(basis, k, accuracy_of)

    def above(self, basis: Basis, other: Basis) -> ConfidenceInterval:
        """On how many concepts the F1 of a basis is above that of another one; both see the same draws."""
        mine, its = (self._drawn(key, f1_of) for key in (basis, other))
        return interval(float((mine[0] > its[0]).sum()), (mine[1] > its[1]).sum(1).astype(np.float64))

    def units(self, key: Basis, concept: int) -> list[int]:
        """The numbers of the units of a probe."""
        chosen = list(self.probes[key][concept].units)
        return self.numbers[key[0]][chosen].tolist() if key[0] in self.numbers else chosen

    def recorded(self) -> dict[str, Any]:
        """The figures, in values that JSON can hold."""
        return {
            "n_train": self.n_train,
            "n_held_out": self.n_held_out,
            "left_out": self.left_out,
            "means": {
                called(key): {"f1": vars(self.mean_f1(*key)), "accuracy": vars(self.mean_accuracy(*key))}
                for key in self.probes
            },
            "concepts": {
                name: {
                    "share": float(self.share[row]),
                    **{
                        called(key): {
                            "f1": vars(self.f1(*key)[row]),
                            "accuracy": vars(self.accuracy(*key)[row]),
                            **({"units": self.units(key, row)} if key[0] != LINEAR else {}),
                        }
                        for key in self.probes
                    },
                }
                for row, name in enumerate(self.concepts)
            },
        }

    def _of_each(self, basis: str, k: int, score: Any) -> list[ConfidenceInterval]:
        values, draws = self._drawn((basis, k), score)
        return [interval(value, draws[:, row]) for row, value in enumerate(values)]

    def _mean(self, basis: str, k: int, score: Any) -> ConfidenceInterval:
        values, draws = self._drawn((basis, k), score)
        return interval(float(values.mean()), draws.mean(1))

    def _drawn(self, key: Basis, score: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        counts = self.counts[key]
        return score(counts.sum(0)), bootstrap(counts, score, n_draws=self.n_draws, seed=self.seed)


def probe_concepts(
    train: LabelledRows,
    held_out: LabelledRows,
    names: Sequence[str],
    *,
    bases: Sequence[str] | None = None,
    ks: Sequence[int] = KS,
    linear: bool = True,
    numbers: Mapping[str, NDArray[np.int64]] | None = None,
    known: Probing | None = None,
    n_draws: int = 1000,
    seed: int = 0,
) -> Probing:
    """Fits probes on one side and measures them on the other.

    Of each basis 20 units are tried: those whose means with and without the concept differ most, in standard
    deviations. The first is that of the best F1; each further one lessens the squared error of the label most. A
    logistic regression weighs them, and its threshold has the best F1 of all on the train side.

    Args:
        train: Rows to fit on.
        held_out: Rows of the same bases to measure on.
        names: The concepts, as columns of labels.
        bases: The bases that probes choose from; None for all.
        ks: How many units.
        linear: Whether the probe on all coordinates is fitted too.
        numbers: Of a basis of which only some units are in the rows, the number of each.
        known: Probes of the same rows and concepts; what they hold is not fitted again.
        n_draws: Draws of the bootstrap over documents.
        seed: Of the draws.

    Raises:
        ValueError: If no concept has enough rows on both sides, or the known probes are of others.
        ImportError: If scikit-learn is not installed.
    """
    fewest = [np.minimum(side.labels.sum(0), (~side.labels).sum(0)) for side in (train, held_out)]
    enough = np.minimum(*fewest) >= ENOUGH
    if not enough.any():
        raise ValueError(
            f"none of {len(names)} concepts has {ENOUGH} rows that have it and {ENOUGH} that lack it on both sides: "
            "give more text, or other labels."
        )
    columns = np.flatnonzero(enough)
    concepts = [names[column] for column in columns.tolist()]
    there = {} if known is None else known.probes
    if known is not None and (known.concepts, known.n_train) != (concepts, len(train)):
        raise ValueError("the known probes are of other rows or concepts: expected those of the same text and labels.")
    probes: dict[Basis, list[Probe]] = {}
    for basis in train.values if bases is None else bases:
        if all((basis, k) in there for k in ks):
            probes |= {(basis, k): there[basis, k] for k in ks}
            continue
        found = [_chosen(train.values[basis], train.labels[:, column], ks) for column in columns]
        probes |= {(basis, k): [one[k] for one in found] for k in ks}
    if linear:
        values = train.values[COORDINATES]
        everything = tuple(range(values.shape[1]))
        key = LINEAR, len(everything)
        probes[key] = there.get(key) or [_fitted_probe(values, train.labels[:, c], everything) for c in columns]
    return Probing(
        concepts=concepts,
        left_out=[name for name, has in zip(names, enough, strict=True) if not has],
        n_train=len(train),
        n_held_out=len(held_out),
        share=held_out.labels[:, columns].mean(0),
        probes=probes,
        numbers=numbers or {},
        counts={
            key: known.counts[key] if known and key in there else _counts(held_out, columns, key[0], found)
            for key, found in probes.items()
        },
        n_draws=n_draws,
        seed=seed,
    )


class Moments:
    """Sums by which units are told whose means differ between rows with and without a concept.

    Args:
        values: (N, units), a basis of some rows; None to begin with nothing.
        labels: bool (N, concepts).
    """

    def __init__(self, values: Any = None, labels: NDArray[np.bool_] | None = None):
        self._positive: Any = 0.0
        self._all: Any = 0.0
        self._squares: Any = 0.0
        self._n_positive: Any = 0.0
        self._n = 0
        if labels is not None:
            self.add(values, labels)

    def add(self, values: Any, labels: NDArray[np.bool_]) -> None:
        """Adds rows."""
        squares = values.power(2) if hasattr(values, "power") else np.square(values)
        self._positive = self._positive + np.asarray(labels.T.astype(np.float32) @ values, np.float64)
        self._all = self._all + np.asarray(values.sum(0, dtype=np.float64)).ravel()
        self._squares = self._squares + np.asarray(squares.sum(0, dtype=np.float64)).ravel()
        self._n_positive = self._n_positive + labels.sum(0)
        self._n += len(labels)

    def candidates(self, n: int = _TRIED) -> NDArray[np.int64]:
        """The units whose means differ most in standard deviations, (concepts, n or all), the first most."""
        n_positive = np.maximum(self._n_positive, 1)[:, None]
        n_negative = np.maximum(self._n - self._n_positive, 1)[:, None]
        variance = self._squares / self._n - (self._all / self._n) ** 2
        # What never varies, up to rounding, tells nothing.
        alive = variance > 1e-12 * np.maximum(self._squares / self._n, 1e-30)
        spread = np.sqrt(np.where(alive, variance, 1.0))
        distance = np.abs(self._positive / n_positive - (self._all - self._positive) / n_negative) / spread
        return np.argsort(-np.where(alive, distance, -1.0), axis=1, kind="stable")[:, :n]


def taken(values: Any, units: Sequence[int]) -> NDArray[np.float32]:
    """Some columns of a basis, dense."""
    found = values[:, list(units)]
    return found.toarray() if hasattr(found, "toarray") else found


def best_threshold(says: NDArray[np.floating], labels: NDArray[np.bool_]) -> tuple[float, float]:
    """The threshold of the best F1, halfway between two values, and that F1.

    Args:
        says: (N,), larger for yes.
        labels: bool (N,).

    Example:
        >>> best_threshold(np.array([3.0, 1.0, 0.0, 2.0]), np.array([True, False, False, True]))
        (1.5, 1.0)
    """
    order = np.argsort(-says, kind="stable")
    ordered, hits = says[order].astype(np.float64), labels[order].cumsum()
    f1 = 2 * hits / (np.arange(1, len(says) + 1) + labels.sum())
    # A threshold lies between two values that differ; below the last one all rows say yes.
    below = np.append(ordered[1:], -np.inf)
    f1[ordered <= below] = -1
    place = int(f1.argmax())
    threshold = (ordered[place] + below[place]) / 2 if np.isfinite(below[place]) else -np.inf
    return float(threshold), float(f1[place])


def f1_of(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """F1 of (..., 4) true and false positives, false and true negatives; 0 where nothing is said and nothing there."""
    return 2 * counts[..., 0] / np.maximum(2 * counts[..., 0] + counts[..., 1] + counts[..., 2], 1)


def accuracy_of(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """The share of right answers, of the same."""
    return (counts[..., 0] + counts[..., 3]) / np.maximum(counts.sum(-1), 1)


def called(key: Basis) -> str:
    """What a basis with k units is called: `"features, k = 1"`."""
    return key[0] if key[0] == LINEAR else f"{key[0]}, k = {key[1]}"


def _chosen(values: Any, labels: NDArray[np.bool_], ks: Sequence[int]) -> dict[int, Probe]:
    """The probe of every k."""
    tried = Moments(values, labels[:, None]).candidates()[0]
    columns = taken(values, tried).astype(np.float64)
    target = labels - labels.mean()
    columns_about_0 = columns - columns.mean(0)
    signs = np.where(target @ columns_about_0 < 0, -1.0, 1.0)
    singles = [best_threshold(sign * column, labels) for sign, column in zip(signs, columns.T, strict=True)]
    first = int(np.argmax([f1 for _, f1 in singles]))
    order = forward(columns_about_0.T @ columns_about_0, columns_about_0.T @ target, first, max(ks))
    probes = {}
    for k in ks:
        if k == 1:
            probes[k] = Probe((int(tried[first]),), signs[[first]], *singles[first])
        else:
            fitted = _fitted_probe(columns, labels, tuple(order[:k]))
            units = tuple(int(tried[unit]) for unit in fitted.units)
            probes[k] = Probe(units, fitted.weights, fitted.threshold, fitted.train_f1)
    return probes


def forward(gram: NDArray[np.float64], moments: NDArray[np.float64], first: int, n: int) -> list[int]:
    """Columns in the order in which each lessens the squared error of least squares most, from a first one on.

    Args:
        gram: (m, m), products of the columns about their means.
        moments: (m,), their products with the target.
        first: The column that is first.
        n: How many columns; fewer come where the others add nothing.
    """
    order, gram, moments = [first], gram.copy(), moments.copy()
    scale = np.maximum(np.diag(gram).copy(), 1e-30)
    while True:
        # The last one is projected out of the others and of the target.
        last = order[-1]
        along = gram[:, last] / max(gram[last, last], 1e-30)
        moments -= along * moments[last]
        gram -= np.outer(along, gram[last])
        left = np.diag(gram)
        gain = np.where(left > 1e-9 * scale, moments**2 / np.maximum(left, 1e-30), -1.0)
        gain[order] = -1.0
        if len(order) >= n or gain.max() <= 0:
            return order
        order.append(int(gain.argmax()))


def _fitted_probe(values: Any, labels: NDArray[np.bool_], units: tuple[int, ...]) -> Probe:
    """A logistic regression on standardised units, with the threshold of the best F1."""
    columns = taken(values, units).astype(np.float64)
    spread = columns.std(0)
    spread[spread < 1e-12] = 1.0
    model = needed("sklearn.linear_model").LogisticRegression(
        solver="newton-cholesky" if len(units) <= max(KS) else "lbfgs", max_iter=200
    )
    with warnings.catch_warnings():
        # Labels that a probe tells without fault let weights grow for ever; 200 steps are enough to tell them.
        warnings.simplefilter("ignore")
        model.fit((columns - columns.mean(0)) / spread, labels)
    weights = model.coef_[0] / spread
    threshold, f1 = best_threshold(columns @ weights, labels)
    return Probe(units, weights, threshold, f1)


def _counts(
    held_out: LabelledRows, columns: NDArray[np.int64], basis: str, probes: Sequence[Probe]
) -> NDArray[np.float64]:
    values = held_out.values[COORDINATES if basis == LINEAR else basis]
    _, document = np.unique(held_out.documents, return_inverse=True)
    found = np.zeros((document.max() + 1, len(columns), 4))
    for row, (column, probe) in enumerate(zip(columns, probes, strict=True)):
        says, has = probe.says(values), held_out.labels[:, column]
        for place, right in enumerate((says & has, says & ~has, ~says & has, ~says & ~has)):
            found[:, row, place] = np.bincount(document, weights=right, minlength=len(found))
    return found
