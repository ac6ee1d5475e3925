"""Absorption: a feature that stands for a concept is silent where it should fire, and another one carries the concept.

"Begins with s" may have a feature that is silent on "snake": the feature of "snake" writes its direction, too. Chanin
et al. 2024 (arXiv:2409.14507) found it. `GAIN`, `ALIGNED` and `CARRIED` have the values of SAEBench's absorption
fraction (arXiv:2503.09532, sae-bench 0.6).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfsae.autoencoder import SparseAutoencoder
from hfsae.scores.labelled_rows import COORDINATES, FEATURES, LabelledRows
from hfsae.scores.needed import needed
from hfsae.scores.noise import ConfidenceInterval, bootstrap, interval
from hfsae.scores.probing import KS, LINEAR, Probe, Probing, f1_of

LEAST_F1 = 0.8
"""The F1 that a linear probe on held-out text needs, so that the model itself knows the concept."""
GAIN = 0.03
"""A further feature is a main one too where a probe with it has so much more F1."""
ALIGNED = 0.1
"""The cosine with the probe's direction from which a feature may carry the concept."""
CARRIED = 0.4
"""The part of the probe's sum that such a feature writes by itself."""


@dataclass(frozen=True)
class ConceptAbsorption:
    """Absorption of one concept.

    Attributes:
        concept: Its name.
        probe_f1: The F1 of the model's own probe on held-out text.
        main: The features that stand for it.
        tokens: Held-out tokens that have it and of which the probe says so.
        silent: The share of them on which no main feature fires.
        absorbed: The share on which none fires, and another aligned feature carries the concept.
        absorbing: The features that carry it most often, with the number of tokens.
    """

    concept: str
    probe_f1: float
    main: tuple[int, ...]
    tokens: int
    silent: ConfidenceInterval
    absorbed: ConfidenceInterval
    absorbing: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Absorption:
    """Absorption of some concepts.

    Attributes:
        concepts: Those of which it is told.
        not_told: Why it is not told of the others, such as that the model itself does not tell them well enough.
        mean: The mean share of absorbed tokens; None where nothing is told.
    """

    concepts: list[ConceptAbsorption]
    not_told: Mapping[str, str]
    mean: ConfidenceInterval | None

    def recorded(self) -> dict[str, Any]:
        """The figures, in values that JSON can hold."""
        return {
            "mean": None if self.mean is None else vars(self.mean),
            "not_told": dict(self.not_told),
            "concepts": {
                one.concept: {
                    "probe_f1": one.probe_f1,
                    "main": list(one.main),
                    "tokens": one.tokens,
                    "silent": vars(one.silent),
                    "absorbed": vars(one.absorbed),
                    "absorbing": [list(pair) for pair in one.absorbing],
                }
                for one in self.concepts
            },
        }


def absorption(
    sae: SparseAutoencoder,
    held_out: LabelledRows,
    names: Sequence[str],
    probing: Probing,
    *,
    least_f1: float = LEAST_F1,
) -> Absorption:
    """Measures, on tokens that have a concept and of which a linear probe says so, how often it is absorbed.

    The main features of a concept are chosen by sparse probes: the first, and further ones as long as each adds 0.03
    to the F1. A token is absorbed if they are silent and another feature carries the concept. That feature has a
    cosine of 0.1 or more with the probe, and it writes 0.4 or more of the probe's sum.

    Args:
        sae: The SAE; its features are written where they are read.
        held_out: Tokens, with the bases `features` and `coordinates`.
        names: The concepts, as columns of labels.
        probing: Probes of these concepts on features, and the linear one.
        least_f1: The F1 below which a probe does not tell a concept, so that its absorption is not told.

    Raises:
        ValueError: If the SAE writes elsewhere than it reads, so that no direction is common to both.
    """
    refuse_two_places(sae)
    directions = sae.feature_directions.detach().float().cpu().numpy()
    features, coordinates = held_out.values[FEATURES].tocsr(), held_out.values[COORDINATES]
    origin = coordinates.mean(0)
    linear = next(key for key in probing.probes if key[0] == LINEAR)
    f1 = f1_of(probing.counts[linear].sum(0))
    _, document = np.unique(held_out.documents, return_inverse=True)
    found, sums, not_told = [], [], {}
    for row, name in enumerate(probing.concepts):
        if f1[row] < least_f1:
            not_told[name] = f"a linear probe has F1 {f1[row]:.2f}, below {least_f1:g}"
            continue
        main = main_features([probing.probes[FEATURES, k][row] for k in KS])
        if not main:
            not_told[name] = "no feature fires for it"
            continue
        probe = probing.probes[linear][row]
        has = held_out.labels[:, names.index(name)] & probe.says(coordinates)
        tokens = np.flatnonzero(has)
        if not len(tokens):
            not_told[name] = "a linear probe says of nothing held out that has it that it does"
            continue
        silent = ~(features[tokens][:, list(main)] > 0).toarray().any(1)
        carrier = carriers(features[tokens], directions, coordinates[tokens] - origin, probe.weights, main)
        absorbed = silent & (carrier >= 0)
        of_document = np.zeros((document.max() + 1, 3))
        for place, what in enumerate((absorbed, silent, np.ones(len(tokens)))):
            of_document[:, place] = np.bincount(document[tokens], weights=what, minlength=len(of_document))
        sums.append(of_document)
        numbers, times = np.unique(carrier[absorbed], return_counts=True)
        most = np.argsort(-times, kind="stable")[:5]
        draws = bootstrap(of_document, _shares, n_draws=probing.n_draws, seed=probing.seed)
        shares = _shares(of_document.sum(0))
        found.append(
            ConceptAbsorption(
                concept=name,
                probe_f1=float(f1[row]),
                main=main,
                tokens=len(tokens),
                silent=interval(shares[1], draws[:, 1]),
                absorbed=interval(shares[0], draws[:, 0]),
                absorbing=tuple((int(numbers[place]), int(times[place])) for place in most),
            )
        )
    return Absorption(found, not_told, _mean(sums, probing) if found else None)


def refuse_two_places(sae: SparseAutoencoder) -> None:
    """Refuses SAEs that write elsewhere than they read.

    Raises:
        ValueError: If this is one.
    """
    if sae.config.is_transcoder or sae.config.is_crosscoder:
        kind = "a crosscoder" if sae.config.is_crosscoder else "a transcoder"
        raise ValueError(f"absorption is told of SAEs that write where they read, and this is {kind}.")


def main_features(probes: Sequence[Probe]) -> tuple[int, ...]:
    """The features that stand for a concept: those of the largest probe whose further features were worth it.

    A feature that speaks against the concept does not stand for it.

    Args:
        probes: Of one concept, with more and more features.
    """
    chosen = probes[0]
    for more in probes[1:]:
        if more.train_f1 - chosen.train_f1 < GAIN * (len(more.units) - len(chosen.units)):
            break
        chosen = more
    return tuple(unit for unit, weight in zip(chosen.units, chosen.weights, strict=True) if weight > 0)


def carriers(
    features: Any,
    directions: NDArray[np.floating],
    activations: NDArray[np.floating],
    weights: NDArray[np.floating],
    main: Sequence[int],
) -> NDArray[np.int64]:
    """For each token the feature, other than the main ones, that carries the concept; −1 where none does.

    Args:
        features: (N, n_features) sparse.
        directions: (n_features, d), what a unit of each feature writes.
        activations: (N, d), about the mean of all tokens.
        weights: (d,), the probe.
        main: The main features.
    """
    along = directions @ weights
    cosines = along / np.maximum(np.linalg.norm(directions, axis=1) * np.linalg.norm(weights), 1e-30)
    may = cosines >= ALIGNED
    may[list(main)] = False
    written = (features @ needed("scipy.sparse").diags_array(np.where(may, along, 0.0))).tocsr()
    written.eliminate_zeros()
    totals = activations @ weights
    found = np.full(features.shape[0], -1, np.int64)
    for token in range(len(found)):
        start, end = written.indptr[token], written.indptr[token + 1]
        if start == end or totals[token] <= 0:
            continue
        strongest = start + int(written.data[start:end].argmax())
        if written.data[strongest] >= CARRIED * totals[token]:
            found[token] = written.indices[strongest]
    return found


def _shares(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Absorbed and silent, of (..., 3) with the number of tokens; not a number where a draw has no token."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return sums[..., :2] / sums[..., 2:]


def _mean(sums: Sequence[NDArray[np.float64]], probing: Probing) -> ConfidenceInterval:
    together = np.stack(sums, 1)
    draws = bootstrap(together, _shares, n_draws=probing.n_draws, seed=probing.seed)[..., 0]
    with np.errstate(invalid="ignore"):
        return interval(float(_shares(together.sum(0))[:, 0].mean()), np.nanmean(draws, axis=1))
