"""How sure a score is: bootstrap intervals, and whether seeds differ less than architectures do.

A score is a function of sums over documents (tokens of one document resemble each other), so documents are drawn.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_ENDS = (2.5, 97.5)


@dataclass(frozen=True)
class ConfidenceInterval:
    """A score and its 95 % bootstrap interval.

    Attributes:
        value: The score.
        low: Lower end.
        high: Upper end.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


def bootstrap(
    sums: NDArray[np.float64],
    score: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    *,
    n_draws: int = 1000,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Draws documents with replacement, as many as there are, and scores each draw (Efron 1979).

    Args:
        sums: (documents, ...), what each document adds to the sums that the score is made of.
        score: Makes scores (n, ...) of sums (n, ...).
        n_draws: How many draws.
        seed: Of the draws.

    Returns:
        The scores of the draws, (n_draws, ...).

    Raises:
        ValueError: If there are fewer than two documents, or no draws.
    """
    if n_draws < 1:
        raise ValueError(f"n_draws must be positive, got {n_draws}.")
    if len(sums) < 2:
        raise ValueError(f"an interval needs two documents at least, got {len(sums)}: give more text.")
    draws = np.random.default_rng(seed).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=n_draws)
    return score(np.tensordot(draws.astype(np.float64), sums, axes=1))


def interval(value: float, draws: NDArray[np.float64]) -> ConfidenceInterval:
    """The middle 95 % of the scores of draws; draws without a score do not count.

    Args:
        value: The score of all documents.
        draws: (n,), as `bootstrap` gives them.
    """
    if not np.isfinite(draws).any():
        return ConfidenceInterval(float(value), float("nan"), float("nan"))
    low, high = np.nanpercentile(draws, _ENDS)
    return ConfidenceInterval(float(value), float(low), float(high))


@dataclass(frozen=True)
class ReseedNoise:
    """What another seed of the training changes.

    Attributes:
        mean: Over the runs.
        deviation: The standard deviation of one run.
        n: How many there are, two or more.
    """

    mean: float
    deviation: float
    n: int

    @classmethod
    def of(cls, scores: Sequence[float]) -> "ReseedNoise | None":
        """The noise of the scores of runs that differ in their seed alone; None for fewer than two."""
        if len(scores) < 2:
            return None
        return cls(float(np.mean(scores)), float(np.std(scores, ddof=1)), len(scores))


@dataclass(frozen=True)
class Ranking:
    """Groups in order of a score, where seeds leave an order to be seen.

    Attributes:
        means: The mean score of each group, the best first.
        between: Standard deviation of the groups' means: what the groups differ by.
        within: Standard deviation of one run over seeds, pooled over the groups; None where no group has two seeds.
    """

    means: Mapping[str, float]
    between: float
    within: float | None

    @property
    def counts(self) -> bool:
        """Whether the groups differ by more than seeds do."""
        return self.within is not None and self.between > self.within

    def __str__(self) -> str:
        if self.within is None:
            return "no ranking: its noise is not known, since no architecture was given with two seeds"
        noise = f"seeds differ by {self.within:.3f}, architectures by {self.between:.3f}"
        if not self.counts:
            return f"no ranking: {noise}"
        told, before, within = "", None, self.within
        for name, mean in self.means.items():
            # Neighbours that differ by less than seeds do are not put in order.
            sign = "" if before is None else " > " if abs(before - mean) > within else " ≈ "
            told, before = f"{told}{sign}{name} {mean:.3f}", mean
        return f"{told} ({noise})"


def ranking(scores: Mapping[str, Sequence[float]], *, higher_is_better: bool = True) -> Ranking:
    """Puts groups in order, and tells whether the order counts.

    Args:
        scores: For each group, such as an architecture, the scores of its seeds.
        higher_is_better: Whether the highest comes first.

    Raises:
        ValueError: If there are fewer than two groups, or one has no score.

    Example:
        >>> print(ranking({"a": [0.80, 0.82], "b": [0.60, 0.62]}))
        a 0.810 > b 0.610 (seeds differ by 0.014, architectures by 0.141)
        >>> print(ranking({"a": [0.80, 0.60], "b": [0.68, 0.70]}))
        no ranking: seeds differ by 0.100, architectures by 0.007
    """
    if len(scores) < 2 or not all(len(runs) for runs in scores.values()):
        raise ValueError(f"a ranking needs two groups with a score each, got {dict(scores)}.")
    means = {name: float(np.mean(runs)) for name, runs in scores.items()}
    freedom = sum(len(runs) - 1 for runs in scores.values())
    squares = sum(float(np.var(runs)) * len(runs) for runs in scores.values())
    return Ranking(
        means=dict(sorted(means.items(), key=lambda entry: entry[1], reverse=higher_is_better)),
        between=float(np.std(list(means.values()), ddof=1)),
        within=(squares / freedom) ** 0.5 if freedom else None,
    )
