"""`FeatureCollection`: everything that is known of the features of an SAE over a text, in memory and on disk."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hfsae.analysis.contexts import NO_TOKEN
from hfsae.analysis.feature_types import (
    About,
    Example,
    Examples,
    Feature,
    Neighbour,
    Partner,
    Statistics,
    TokenEffect,
)
from hfsae.analysis.histogram import Histograms
from hfsae.analysis.never_trained import left_out_note
from hfsae.analysis.top_examples import TopExamples
from hfsae.analysis.weights import LogitEffects, Neighbours
from hfsae.functional.precision import own_default_device
from hfsae.notebook import html_table
from hfsae.saving import files_at_once, write_json
from hfsae.storage import read_json, read_tensors, write_tensors

TENSORS, ABOUT = "features.safetensors", "features.json"
_FORMAT = 1
# Features that a notebook shows.
_SHOWN = 20


class FeatureCollection(Sequence[Feature]):
    """Features of an SAE over a text: statistics, examples and weights of all of them, as tensors on the CPU.

    `collection.of(17)` is feature 17 in plain values, `collection[i]` the i-th one that was collected.

    Args:
        about: What it was made of.
        features: int64 (n,), the indices of the features.
        statistics: Sums over the text.
        top: Examples by activation.
        sample: A uniform sample of contexts.
        logits: Direct effects on logits; None where the features have none.
        neighbours: The nearest features.
    """

    def __init__(
        self,
        about: About,
        features: Tensor,
        statistics: Statistics,
        top: Examples,
        sample: Examples,
        logits: LogitEffects | None,
        neighbours: Neighbours,
    ):
        self.about = about
        self.features = features
        self.statistics = statistics
        self.top = top
        self.sample = sample
        self.logits = logits
        self.neighbours = neighbours

    def __repr__(self) -> str:
        about = self.about
        text = f" of {about.dataset}" if about.dataset else ""
        return (
            f"FeatureCollection({len(self):,} of {about.n_features:,} features, over {about.n_tokens:,} tokens{text}, "
            f"at {about.hook_point or 'an unnamed place'} of {about.base_model or 'an unnamed model'})"
        )

    def _repr_html_(self) -> str:
        """A row a feature, the most frequent first: how often and how strongly it fires."""
        shown = [self[row] for row in self.densities.argsort(descending=True, stable=True)[:_SHOWN].tolist()]
        return html_table(
            [
                [one.index, f"{one.density:.4%}", f"{one.maximum:.4g}", f"{one.mean:.4g}", len(one.top)]
                for one in shown
            ],
            header=["feature", "fires on", "maximum", "mean where it fires", "examples"],
            caption=repr(self),
            note=f"… and {len(self) - len(shown):,} more" if len(self) > len(shown) else "",
        )

    # -- reading ------------------------------------------------------------------------------------------------------
    @property
    def densities(self) -> Tensor:
        """float64 (n,): the share of tokens on which each fires."""
        return self.statistics.tokens_firing[self.features].double() / self.about.n_tokens

    @property
    def left_out_note(self) -> str:
        """A sentence on the tokens that no list of effects on logits holds; empty where there are none."""
        return left_out_note(self.logits and self.logits.left_out)

    @cached_property
    def _rows(self) -> dict[int, int]:
        return {feature: row for row, feature in enumerate(self.features.tolist())}

    def of(self, feature: int) -> Feature:
        """One feature by its index in the SAE.

        Raises:
            KeyError: If it was not collected.
        """
        if feature not in self._rows:
            raise KeyError(f"feature {feature} is not in this collection of {len(self)} features.")
        return self[self._rows[feature]]

    def __len__(self) -> int:
        return len(self.features)

    def __iter__(self) -> Iterator[Feature]:
        return (self[row] for row in range(len(self)))

    @own_default_device()
    def __getitem__(self, row: int) -> Feature:  # type: ignore[override]
        index, sums = int(self.features[row]), self.statistics
        firing = int(sums.tokens_firing[index])
        sample = sorted(self._examples(self.sample, row), key=lambda example: -example.activation)
        return Feature(
            index=index,
            tokens_firing=firing,
            density=firing / self.about.n_tokens,
            maximum=float(sums.maxima[row]),
            mean=float(sums.totals[row]) / max(firing, 1),
            histogram=sums.counts[row].tolist(),
            bin_width=2.0 ** int(sums.exponents[row]) / sums.counts.shape[1],
            top=self._examples(self.top, row),
            sample=sample,
            promoted=_pairs(TokenEffect, self.logits and self.logits[:2], row),
            suppressed=_pairs(TokenEffect, self.logits and self.logits[2:4], row),
            logit_histogram=_histogram(self.logits, row),
            decoder_neighbours=_pairs(Neighbour, self.neighbours[:2], row),
            encoder_neighbours=_pairs(Neighbour, self.neighbours[2:], row),
            co_firing=self._co_firing(index, sample),
        )

    def _examples(self, examples: Examples, row: int) -> list[Example]:
        before = self.about.before
        columns = (examples.document, examples.position, examples.tokens, examples.activations, examples.partners)
        found = []
        for document, position, tokens, activations, partners in zip(*(c[row].tolist() for c in columns), strict=True):
            if document < 0:
                break
            inside = [place for place, token in enumerate(tokens) if token != NO_TOKEN]
            window = slice(inside[0], inside[-1] + 1)
            found.append(
                Example(
                    document=document,
                    position=position,
                    activation=activations[before],
                    token_ids=tokens[window],
                    activations=activations[window],
                    peak=before - window.start,
                    partners=[partner for partner in partners if partner >= 0],
                )
            )
        return found

    def _co_firing(self, index: int, sample: list[Example]) -> list[Partner]:
        """Ordered by share · log(share / density): what surprises, and holds for more than a token or two."""
        if not sample:
            return []
        features, counts = torch.tensor([p for example in sample for p in example.partners]).unique(return_counts=True)
        shares = counts.double() / len(sample)
        densities = self.statistics.tokens_firing[features].double() / self.about.n_tokens
        telling = shares * (shares / densities).log()
        telling[(features == index) | (counts < 2)] = 0
        order = telling.argsort(descending=True, stable=True)[: (telling > 0).sum()]
        return [Partner(int(features[i]), float(shares[i]), float(densities[i])) for i in order]

    # -- merging ------------------------------------------------------------------------------------------------------
    @classmethod
    def merge(cls, parts: "Sequence[FeatureCollection]") -> "FeatureCollection":
        """One collection of several that were made of different documents of one dataset.

        Args:
            parts: Collections of the same features, made with the same options; documents are told apart by their
                rows, so these must not overlap.

        Raises:
            ValueError: If they are of different SAEs, features or options.
        """
        first = parts[0]
        for part in parts[1:]:
            one, other = (asdict(about.about) | {"n_tokens": 0} for about in (first, part))
            if one != other or not torch.equal(first.features, part.features):
                different = [name for name in one if one[name] != other[name]] or ["features"]
                raise ValueError(f"these collections cannot be merged: they differ in {', '.join(different)}.")
        sums = [part.statistics for part in parts]
        histograms = Histograms(*sums[0].counts.shape)
        for part in sums:
            histograms.merge(part.counts, part.exponents)
        statistics = Statistics(
            torch.stack([part.tokens_firing for part in sums]).sum(0),
            torch.stack([part.totals for part in sums]).sum(0),
            torch.stack([part.maxima for part in sums]).amax(0),
            histograms.counts,
            histograms.exponents,
        )
        about = replace(first.about, n_tokens=sum(part.about.n_tokens for part in parts))
        top, sample = (merge_examples([getattr(part, name) for part in parts]) for name in ("top", "sample"))
        return cls(about, first.features, statistics, top, sample, first.logits, first.neighbours)

    # -- on disk ------------------------------------------------------------------------------------------------------
    def tensors(self) -> dict[str, Tensor]:
        """Every tensor under the name it has on disk, such as `top.tokens`."""
        groups: dict[str, Any] = {name: getattr(self, name) for name in _GROUPS}
        return {"features": self.features} | {
            f"{group}.{field}": tensor
            for group, columns in groups.items()
            if columns is not None
            for field, tensor in columns._asdict().items()
            if tensor is not None
        }

    @classmethod
    def from_tensors(cls, about: About, tensors: dict[str, Tensor]) -> "FeatureCollection":
        """The reverse of `tensors`."""
        groups: dict[str, Any] = {}
        for group, kind in _GROUPS.items():
            columns = {field: tensors.get(f"{group}.{field}") for field in kind._fields}
            groups[group] = None if group == "logits" and columns["promoted"] is None else kind(**columns)
        return cls(about, tensors["features"], **groups)

    def save(self, folder: str | Path) -> None:
        """Writes `features.safetensors` and `features.json` into a folder, which may be the SAE's own."""
        with files_at_once(Path(folder)) as beside:
            write_tensors(beside / TENSORS, {name: tensor.contiguous() for name, tensor in self.tensors().items()})
            write_json(beside / ABOUT, {"format": _FORMAT, **asdict(self.about)})

    @classmethod
    def load(cls, folder: str | Path) -> "FeatureCollection":
        """Reads what `save` wrote.

        Raises:
            FileNotFoundError: If the folder holds no collection.
            ValueError: If it was written by a newer version.
        """
        folder = Path(folder)
        if not (folder / TENSORS).is_file() or not (folder / ABOUT).is_file():
            raise FileNotFoundError(
                f"no features were collected in {folder}: expected {TENSORS} and {ABOUT}, which "
                "collect_features(...).save(folder) writes."
            )
        said = read_json(folder / ABOUT)
        if said.pop("format", None) != _FORMAT:
            raise ValueError(f"{folder / ABOUT} is in a format that this version does not know.")
        known = {field.name for field in fields(About)}
        about = About(**{name: value for name, value in said.items() if name in known})
        return cls.from_tensors(about, read_tensors(folder / TENSORS))


_GROUPS: dict[str, Any] = {
    "statistics": Statistics,
    "top": Examples,
    "sample": Examples,
    "logits": LogitEffects,
    "neighbours": Neighbours,
}


def new_leaders(n_features: int, size: int, window: int, partners: int) -> TopExamples:
    """Empty places for examples, with the columns of `Examples`."""
    return TopExamples(
        n_features,
        size,
        {
            "tokens": torch.full((1, window), NO_TOKEN, dtype=torch.int32),
            "activations": torch.zeros(1, window, dtype=torch.float32),
            "partners": torch.full((1, partners), -1, dtype=torch.int32),
        },
    )


def merge_examples(parts: Sequence[Examples]) -> Examples:
    """The best of several parts."""
    n_features, size, window = parts[0].tokens.shape
    leaders = new_leaders(n_features, size, window, parts[0].partners.shape[2])
    for part in parts:
        leaders.merge(part._asdict())
    return Examples(**leaders.fields)


def _histogram(logits: LogitEffects | None, row: int) -> list[tuple[float, int]]:
    """The middle of every bin of a feature's effects on logits, and how many tokens lie in it."""
    if logits is None or logits.counts is None or logits.range is None:
        return []
    counts, (low, high) = logits.counts[row].tolist(), logits.range[row].tolist()
    width = (high - low) / len(counts)
    return [(low + (i + 0.5) * width, count) for i, count in enumerate(counts)]


def _pairs(kind: Any, columns: Any, row: int) -> list[Any]:
    return [] if columns is None else [kind(*pair) for pair in zip(*(c[row].tolist() for c in columns), strict=True)]
