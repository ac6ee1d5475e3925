"""`ModelDiff`: what came out of a comparison, in memory, in words and on disk."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from hfsae.diffing.classes import (
    DEAD,
    DECOUPLED,
    PARTLY,
    SHARED,
    SHRUNK,
    Thresholds,
    classes,
    classes_by_norms,
    classes_by_scaling,
    only,
    ratios,
)
from hfsae.diffing.scaling import Firing, LatentScaling
from hfsae.hub.card import DIFF_FILE
from hfsae.notebook import html_table
from hfsae.saving import files_at_once, write_json
from hfsae.storage import read_json

How: TypeAlias = Literal["norms", "scaling", "both"]
"""What decides a feature's class."""

# What latent scaling says of each feature where there is no latent scaling; no class counts it.
NOT_TOLD = "not told"

_FORMAT = 1
_COLUMNS = ("norms", "error", "reconstruction", "activation")


@dataclass(frozen=True, repr=False)
class ModelDiff:
    """Which features of a crosscoder its sources share, and which one of them has alone.

    Attributes:
        sources: Their names, in the order of all columns.
        norms: (n_features, sources), lengths of decoder rows in scaled space.
        scaling: The least squares; None where the sources have different widths, and norms alone decide.
        firing: How often and how strongly features fire.
        n_tokens: Tokens that were compared.
        explained_variance: Of each source.
        thresholds: Where the classes end.
        about: What was compared: `hook_point`, `models` by source, `dataset`, `weights_sha256`, `settings`.
    """

    sources: list[str]
    norms: Tensor
    scaling: LatentScaling | None
    firing: Firing
    n_tokens: int
    explained_variance: dict[str, float]
    thresholds: Thresholds = Thresholds()
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def kinds(self) -> list[str]:
        """The classes that there are, in the order in which they are told."""
        return [SHARED, *map(only, self.sources), PARTLY, SHRUNK, DECOUPLED, DEAD]

    @property
    def by_norms(self) -> list[str]:
        """The class of each feature as norms alone have it."""
        return classes_by_norms(self.norms, self.sources, self.firing.tokens_firing > 0, self.thresholds)

    @property
    def classes(self) -> list[str]:
        """The class of each feature, the false ones unmasked."""
        if self.scaling is None:
            return self.by_norms
        return classes(self.norms, self.scaling, self.sources, self.firing.tokens_firing > 0, self.thresholds)

    @property
    def by_scaling(self) -> list[str]:
        """The class of each feature as latent scaling alone has it, whatever its norms; `not told` without it."""
        if self.scaling is None:
            return [NOT_TOLD] * len(self.norms)
        return classes_by_scaling(self.scaling, self.sources, self.firing.tokens_firing > 0, self.thresholds)

    def _found(self, how: How) -> list[str]:
        found = {"norms": self.by_norms, "scaling": self.by_scaling, "both": self.classes}
        if how not in found:
            raise ValueError(f"classes are told by {how!r}: expected one of {', '.join(found)}.")
        return found[how]

    def counts(self, how: How = "both") -> dict[str, int]:
        """How many features each class has: by `"norms"` alone, by latent `"scaling"` alone, or by both.

        Raises:
            ValueError: If they are to be told by anything else.
        """
        found = Counter(self._found(how))
        return {kind: found[kind] for kind in self.kinds}

    def of(self, kind: str, how: How = "both") -> list[int]:
        """The features of a class, those first that do most: tokens × mean activation × length of the longest row.

        Args:
            kind: The class, such as `"tuned-only"`.
            how: By `"norms"` alone, by latent `"scaling"` alone, or by both.

        Raises:
            ValueError: If there is no such class, or it is to be told by anything else.
        """
        if kind not in self.kinds:
            raise ValueError(f"there is no class {kind!r}, but {', '.join(self.kinds)}.")
        weight = self.firing.tokens_firing * self.firing.mean * self.norms.amax(1).double()
        found = self._found(how)
        order = weight.argsort(descending=True, stable=True).tolist()
        return [feature for feature in order if found[feature] == kind]

    @property
    def error_ratios(self) -> Tensor:
        """ν^ε (n_features, sources): β of a source's error, as a part of that of the source with the longest row."""
        return self._ratios("error")

    @property
    def reconstruction_ratios(self) -> Tensor:
        """ν^r (n_features, sources), likewise of what is reconstructed."""
        return self._ratios("reconstruction")

    def _ratios(self, kind: str) -> Tensor:
        if self.scaling is None:
            return torch.full(self.norms.shape, torch.nan, dtype=torch.float64)
        return ratios(getattr(self.scaling, kind), self.norms)

    # -- what is shown of it ------------------------------------------------------------------------------------------
    def __repr__(self) -> str:
        told = ", ".join(f"{kind} {number:,}" for kind, number in self.counts().items() if number)
        return f"ModelDiff({' and '.join(self.sources)} over {self.n_tokens:,} tokens: {told})"

    def table(self) -> str:
        """The counts as lines for a terminal."""
        lines = [f"{'class':<16} {'by norms':>10} {'after latent scaling':>22} {'by scaling alone':>18}"]
        columns = self.counts("norms"), self.counts(), self.counts("scaling")
        lines += [
            f"{kind:<16} {before:>10,} {after:>22,} {'–' if self.scaling is None else f'{alone:,}':>18}"
            for kind, before, after, alone in zip(self.kinds, *(column.values() for column in columns), strict=True)
        ]
        explained = ", ".join(f"{name} {value:.3f}" for name, value in self.explained_variance.items())
        return "\n".join([*lines, f"explained variance: {explained}; {self.n_tokens:,} tokens"])

    def _repr_html_(self) -> str:
        before, after = self.counts("norms"), self.counts()
        rows = [[kind, f"{before[kind]:,}", f"{after[kind]:,}"] for kind in self.kinds]
        return html_table(rows, header=["class", "by norms", "after latent scaling"], caption=repr(self))

    # -- on disk ------------------------------------------------------------------------------------------------------
    def save(self, folder: str | Path) -> Path:
        """Writes `diff.json` into a folder, which may be the crosscoder's own; see docs/file_formats.md.

        Returns:
            The file's path.
        """
        columns = {"norms": self.norms, **(self.scaling._asdict() if self.scaling is not None else {})}
        firing = self.firing
        content = {
            "format": _FORMAT,
            "sources": self.sources,
            "about": self.about,
            "n_tokens": self.n_tokens,
            "explained_variance": self.explained_variance,
            "thresholds": asdict(self.thresholds),
            "counts": self.counts(),
            "counts_by_norms": self.counts("norms"),
            "counts_by_scaling": self.counts("scaling"),
            "features": {
                "class": self.classes,
                "by_norms": self.by_norms,
                "by_scaling": self.by_scaling,
                "tokens_firing": firing.tokens_firing.tolist(),
                "mean": _plain(firing.mean),
                "maximum": _plain(firing.maximum),
                **{name: _plain(column) for name, column in columns.items()},
            },
        }
        with files_at_once(Path(folder)) as beside:
            write_json(beside / DIFF_FILE, content)
        return Path(folder) / DIFF_FILE

    @classmethod
    def load(cls, folder: str | Path) -> "ModelDiff":
        """Reads what `save` wrote.

        Raises:
            FileNotFoundError: If there is no comparison in the folder.
            ValueError: If a newer version wrote it.
        """
        path = Path(folder) / DIFF_FILE
        if not path.is_file():
            raise FileNotFoundError(f"{folder} holds no comparison ({DIFF_FILE}): `hfsae diff {folder}` makes it.")
        said = read_json(path)
        if said.get("format") != _FORMAT:
            raise ValueError(f"{path} is in a format that this version does not know.")
        told: Mapping[str, Any] = said["features"]
        columns = {name: _tensor(told[name]) for name in _COLUMNS if name in told}
        norms = columns.pop("norms")
        firing = Firing(
            torch.tensor(told["tokens_firing"], dtype=torch.int64),
            _tensor(told["mean"]),
            _tensor(told["maximum"]).float(),
        )
        return cls(
            said["sources"],
            norms.float(),
            LatentScaling(**columns) if columns else None,
            firing,
            said["n_tokens"],
            said["explained_variance"],
            Thresholds(**said["thresholds"]),
            said["about"],
        )


def _plain(values: Tensor) -> Any:
    """Nested lists that JSON can hold; what is no number is null."""
    if values.dim() > 1:
        return [_plain(row) for row in values]
    return [value if math.isfinite(value) else None for value in values.tolist()]


def _tensor(values: list[Any]) -> Tensor:
    def filled(one: Any) -> Any:
        return [filled(part) for part in one] if isinstance(one, list) else math.nan if one is None else one

    return torch.tensor(filled(values), dtype=torch.float64)
