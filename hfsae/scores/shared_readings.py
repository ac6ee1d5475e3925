"""`SharedReadings`: what the scores of several SAEs at one place have in common, so that it is made once."""

from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from typing import Any

from hfsae.scores.labelled_rows import COORDINATES, SPARSE, KeptReads, LabelledRows
from hfsae.scores.probing import Probing


@dataclass(frozen=True)
class Sides:
    """Both sides of a text.

    Attributes:
        train: Rows to fit probes on.
        held_out: Rows to measure them on.
        sizes: Of each side the rows of every batch that was read.
        neurons: The numbers of the neurons that are in the rows; None where neurons were not read.
    """

    train: LabelledRows
    held_out: LabelledRows
    sizes: tuple[list[int], list[int]]
    neurons: Any


@dataclass
class SharedReadings:
    """Labelled text of one language model, and probes of its own bases, kept for the next SAE.

    Pass one to each call of `score`, with the same model, tokenizer and text. SAEs that read at one place with the
    same rules for tokens then share what the model makes of the text. Neurons, coordinates, PCA and the linear probe
    are probed once. The scores are those without it. It keeps the coordinates of all tokens that were read: 60,000
    tokens of width 768 take 184 MB.

    Args:
        document_bytes: What may be kept of documents; sets that need more are read for each SAE. 450,000 tokens of
            width 768 in bfloat16 take 690 MB.

    Example:
        >>> shared = SharedReadings()
        >>> scores = [score(sae, model, tokenizer, text, shared=shared) for sae in saes]  # doctest: +SKIP
    """

    document_bytes: int = 700_000_000
    _of: tuple[Any, ...] | None = None
    _sides: dict[Hashable, Sides] = field(default_factory=dict)
    _probes: dict[Hashable, Probing] = field(default_factory=dict)
    _documents: dict[Hashable, tuple[LabelledRows, KeptReads]] = field(default_factory=dict)

    def bind(self, *of: Any) -> None:
        """Belongs to these from now on: the model, the tokenizer and the text.

        Raises:
            ValueError: If it belongs to others.
        """
        if self._of is None:
            self._of = of
        if len(of) != len(self._of) or any(mine is not its for mine, its in zip(self._of, of, strict=True)):
            raise ValueError(
                "these SharedReadings are of another language model, tokenizer or text: make new ones for each."
            )

    def sides(self, key: Hashable) -> Sides | None:
        """What was read, or None."""
        return self._sides.get(key)

    def keep_sides(self, key: Hashable, sides: Sides) -> None:
        """Keeps what no SAE has part in: labels, documents and coordinates."""
        self._sides[key] = replace(sides, train=_of_the_model(sides.train), held_out=_of_the_model(sides.held_out))

    def documents(self, key: Hashable) -> tuple[LabelledRows, KeptReads] | None:
        """Documents that were read, or None."""
        return self._documents.get(key)

    def room_for_documents(self) -> KeptReads:
        """Where reads of documents can be kept."""
        return KeptReads(self.document_bytes - sum(kept.n_bytes for _, kept in self._documents.values()))

    def keep_documents(self, key: Hashable, rows: LabelledRows, kept: KeptReads) -> None:
        """Keeps documents, if what the model made of all their tokens is there."""
        if kept.is_whole:
            self._documents[key] = _of_the_model(rows), kept

    def probes(self, key: Hashable) -> Probing | None:
        """Probes of the model's own bases, or None."""
        return self._probes.get(key)

    def keep_probes(self, key: Hashable, probing: Probing) -> None:
        """Keeps the probes of the model's own bases."""
        own = {basis: found for basis, found in probing.probes.items() if basis[0] not in SPARSE}
        counts = {basis: probing.counts[basis] for basis in own}
        self._probes[key] = replace(probing, probes=own, counts=counts)


def _of_the_model(rows: LabelledRows) -> LabelledRows:
    return replace(rows, values={COORDINATES: rows.values[COORDINATES]})
