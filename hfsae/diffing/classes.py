"""Which features a crosscoder's sources share, and which one of them has alone: by norms, and after latent scaling.

Norms are those of decoder rows, relative to the longest. With two sources the threshold 0.2 is that of Lindsey et al.
2024 on the scale from 0 to 1.

There it reads ½ (1 + (‖d_tuned‖ − ‖d_base‖) / max) > 0.9 or < 0.1. The thresholds on ratios are those of Minder et al.
2025 (arXiv:2504.02922): ν^ε < 0.2 and ν^r < 0.5.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hfsae.diffing.scaling import LatentScaling

SHARED, PARTLY, SHRUNK, DECOUPLED, DEAD = "shared", "partly shared", "shrunk", "decoupled", "dead"


def only(source: str) -> str:
    """The class of features that one source alone has: `"tuned-only"`."""
    return f"{source}-only"


@dataclass(frozen=True)
class Thresholds:
    """Where the classes end.

    Args:
        absent: A source whose row is less than this part of the longest has no use for a feature, by norms.
        shared: Sources whose rows are all at least this part of the longest share it.
        error: A source in whose error this part of a feature lies, or more, has it after all.
        reconstruction: The same of what other features write there.

    Raises:
        ValueError: If one is not between 0 and 1, or `absent` is above `shared`.
    """

    absent: float = 0.2
    shared: float = 0.8
    error: float = 0.2
    reconstruction: float = 0.5

    def __post_init__(self):
        if not all(0 <= value <= 1 for value in (self.absent, self.shared, self.error, self.reconstruction)):
            raise ValueError(f"thresholds are parts of a whole, from 0 to 1; got {self}.")
        if self.absent > self.shared:
            raise ValueError(f"absent={self.absent} must not be above shared={self.shared}.")


def relative_norms(norms: Tensor) -> Tensor:
    """Norms (n_features, sources) as parts of the longest of each feature; 0 where all are 0."""
    return norms.double() / norms.double().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)


def ratios(scales: Tensor, norms: Tensor) -> Tensor:
    """ν (n_features, sources): a source's β as a part of that of the source with the longest row.

    NaN where that one is not positive, and so says nothing.
    """
    whole = scales.gather(1, norms.argmax(1, keepdim=True))
    return scales / whole.where(whole > 0, torch.nan)


def classes_by_norms(norms: Tensor, names: list[str], fires: Tensor, thresholds: Thresholds) -> list[str]:
    """What decoder norms alone say of each feature: `shared`, `partly shared`, `<source>-only` or `dead`.

    Args:
        norms: (n_features, sources).
        names: Of the sources.
        fires: bool (n_features,), whether a feature fires at all.
        thresholds: Where the classes end.
    """
    relative = relative_norms(norms)
    there = relative >= thresholds.absent
    together = (relative >= thresholds.shared).all(1)
    longest = norms.argmax(1).tolist()
    found = []
    for feature, (alive, shared, sources) in enumerate(
        zip(fires.tolist(), together.tolist(), there.sum(1).tolist(), strict=True)
    ):
        if not alive:
            found.append(DEAD)
        elif shared:
            found.append(SHARED)
        else:
            found.append(only(names[longest[feature]]) if sources == 1 and len(names) > 1 else PARTLY)
    return found


def classes(
    norms: Tensor, scaling: LatentScaling, names: list[str], fires: Tensor, thresholds: Thresholds
) -> list[str]:
    """What is left of `classes_by_norms` when latent scaling has unmasked the false ones.

    A feature that one source alone has by norms is `shrunk` where the error of another source holds it. It is
    `decoupled` where other features write it there. It stays `<source>-only` where neither does.

    Args:
        norms: As for `classes_by_norms`, like the others.
        scaling: The least squares.
        names: Of the sources.
        fires: Whether a feature fires.
        thresholds: Where the classes end.
    """
    found = classes_by_norms(norms, names, fires, thresholds)
    longest = norms.argmax(1)
    others = torch.ones_like(norms, dtype=torch.bool).scatter(1, longest[:, None], False)

    def holds(scales: Tensor, threshold: float) -> list[bool]:
        # What cannot be told (NaN) is not below the threshold.
        return (~(ratios(scales, norms) < threshold) & others).any(1).tolist()

    in_error, in_others = (
        holds(scaling.error, thresholds.error),
        holds(scaling.reconstruction, thresholds.reconstruction),
    )
    of_one = {only(name) for name in names}
    return [
        (SHRUNK if shrunk else DECOUPLED if decoupled else kind) if kind in of_one else kind
        for kind, shrunk, decoupled in zip(found, in_error, in_others, strict=True)
    ]


def classes_by_scaling(scaling: LatentScaling, names: list[str], fires: Tensor, thresholds: Thresholds) -> list[str]:
    """What latent scaling alone says: `<source>-only`, `shared` where another source holds it too, or `dead`.

    A norm does not say where a row points. A source that writes something else on the same tokens may have a row as
    long, while its β along this one is near 0. Ratios are those to the source in whose error a feature is strongest.

    Args:
        scaling: The least squares.
        names: Of the sources.
        fires: bool (n_features,), whether a feature fires at all.
        thresholds: Where the classes end.
    """
    error = scaling.error.nan_to_num(nan=-torch.inf)
    strongest = error.argmax(1, keepdim=True)
    held = torch.zeros_like(error, dtype=torch.bool)
    for scales, threshold in ((error, thresholds.error), (scaling.reconstruction, thresholds.reconstruction)):
        whole = scales.gather(1, strongest)
        held |= ~(scales / whole.where(whole > 0, torch.nan) < threshold)
    held.scatter_(1, strongest, False)
    return [
        DEAD if not alive else SHARED if others else only(names[longest])
        for alive, others, longest in zip(fires.tolist(), held.any(1).tolist(), strongest[:, 0].tolist(), strict=True)
    ]
