"""`score`: probing, absorption and their noise of one SAE, from text to figures."""

import logging
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from transformers import PreTrainedModel

from hfsae.attachment import refuse_swapped
from hfsae.autoencoder import SparseAutoencoder
from hfsae.functional.precision import own_precision
from hfsae.scores.absorption import LEAST_F1, Absorption, absorption, refuse_two_places
from hfsae.scores.concepts import PYTHON_CONCEPTS, FirstLetters, PatternLabels, TokenLabels
from hfsae.scores.document_sets import DocumentSet
from hfsae.scores.labelled_rows import (
    BESIDE,
    COMPONENTS,
    COORDINATES,
    FEATURES,
    NEURONS,
    UNTRAINED,
    LabelledRows,
    all_of,
)
from hfsae.scores.needed import needed
from hfsae.scores.probing import Moments, Probing, probe_concepts
from hfsae.scores.readings import LabelledReader
from hfsae.scores.shared_readings import SharedReadings, Sides

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

Kind = Literal["tokens", "documents", "absorption"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class LabelledText:
    """Text to fit probes on and text to measure them on, and how its tokens are labelled.

    Attributes:
        train: Documents with a column `text`.
        held_out: Others.
        labels: Labels tokens.
        name: What the text is called.
    """

    train: "Dataset"
    held_out: "Dataset"
    labels: TokenLabels = field(default_factory=lambda: PatternLabels(PYTHON_CONCEPTS))
    name: str = "python-stdlib"


@dataclass(frozen=True)
class SAEScores:
    """The scores of an SAE; what was not asked for is empty or None.

    Attributes:
        tokens: Probes of the concepts of tokens.
        documents: Probes of documents, by the name of the set.
        absorption: Absorption of the concepts of tokens.
        letters: Absorption of first letters.
        of_documents: Absorption of the classes of documents, by the name of the set.
        text: What tokens were read.
        refused: What could not be scored, and why.
    """

    tokens: Probing | None = None
    documents: dict[str, Probing] = field(default_factory=dict)
    absorption: Absorption | None = None
    letters: Absorption | None = None
    of_documents: dict[str, Absorption] = field(default_factory=dict)
    text: str = ""
    refused: tuple[str, ...] = ()

    def recorded(self) -> dict[str, Any]:
        """The figures, in values that JSON can hold."""
        found: dict[str, Any] = {"text": self.text, "refused": list(self.refused)}
        for name in ("tokens", "absorption", "letters"):
            one = getattr(self, name)
            found[name] = None if one is None else one.recorded()
        for name in ("documents", "of_documents"):
            found[name] = {title: one.recorded() for title, one in getattr(self, name).items()}
        return found


class _Together:
    """The labels of several labellers, side by side."""

    def __init__(self, *labellers: TokenLabels):
        self._labellers = labellers
        self.names = [name for one in labellers for name in one.names]

    def __call__(self, tokens: Sequence[str]) -> Any:
        return np.concatenate([labels(tokens) for labels in self._labellers], 1)


@own_precision()
def score(
    sae: SparseAutoencoder,
    model: PreTrainedModel,
    tokenizer: "PreTrainedTokenizerBase",
    text: LabelledText,
    *,
    documents: Sequence[DocumentSet] = (),
    kinds: Sequence[Kind] = KINDS,
    beside: Collection[str] = BESIDE,
    letters: bool = True,
    max_tokens: int = 30_000,
    least_f1: float = LEAST_F1,
    n_draws: int = 1000,
    batch_size: int = 32,
    seed: int = 0,
    shared: SharedReadings | None = None,
) -> SAEScores:
    """Scores the features of an SAE: how well they tell concepts, and what absorbs them.

    Args:
        sae: The SAE.
        model: Its language model.
        tokenizer: Its tokenizer.
        text: Labelled tokens.
        documents: Sets of labelled documents.
        kinds: Which scores are wanted.
        beside: The bases that are probed beside the features: `"untrained SAE"`, `"coordinates"`, `"PCA"` and
            `"neurons"`. Of tokens and documents the linear probe always is.
        letters: Whether absorption is told of first letters too.
        max_tokens: Tokens that are read of each side of the text.
        least_f1: As in `absorption`.
        n_draws: Draws of the bootstrap over documents.
        batch_size: Pieces of text per run of the model.
        seed: Of the draws.
        shared: What was read for other SAEs of the same model, tokenizer and text, and is kept for the next ones.

    Raises:
        ValueError: If there is too little labelled text, `kinds` or `beside` names none that there is, or `shared` is
            of another model, tokenizer or text.
        ImportError: If scikit-learn is not installed.
    """
    refuse_swapped(sae, model)
    check_kinds(kinds)
    if unknown := set(beside) - set(BESIDE):
        raise ValueError(f"beside features are {', '.join(BESIDE)}, and not {', '.join(map(repr, sorted(unknown)))}.")
    if max_tokens < 1 or n_draws < 1:
        raise ValueError(f"max_tokens is {max_tokens} and n_draws {n_draws}; expected 1 or more.")
    if not 0 <= least_f1 <= 1:
        raise ValueError(f"least_f1 is {least_f1}; expected an F1 from 0 to 1.")
    shared = SharedReadings(document_bytes=0) if shared is None else shared
    shared.bind(model, tokenizer, text)
    needed("sklearn.linear_model")
    refused: list[str] = []
    wants_absorption = "absorption" in kinds
    if wants_absorption:
        try:
            refuse_two_places(sae)
        except ValueError as error:
            if set(kinds) == {"absorption"}:
                raise
            refused.append(str(error))
            wants_absorption = False
    reader = LabelledReader(sae, model, tokenizer, batch_size)
    if {UNTRAINED, COMPONENTS} & set(beside) and {"tokens", "documents"} & set(kinds):
        reader.fit(text.train)
    if NEURONS in beside and not reader.neuron_layers:
        refused.append("the language model names no neurons of its blocks, so they are not beside the features.")
    there = (COORDINATES, UNTRAINED, COMPONENTS, *([NEURONS] if reader.neuron_layers else []))
    beside = [basis for basis in there if basis in beside]
    options: dict[str, Any] = {"n_draws": n_draws, "seed": seed}
    found: dict[str, Any] = {}
    if "tokens" in kinds or wants_absorption:
        probed = [FEATURES, *beside] if "tokens" in kinds else [FEATURES]
        labels = _Together(text.labels, *([FirstLetters()] if letters else []))
        own, begin = text.labels.names, FirstLetters().names
        # What is kept for other SAEs is of the same tokens, labels and bases.
        key = (*reader.reads, *labels.names, *probed, max_tokens)
        sides = _read_tokens(reader, text, labels, probed, max_tokens, shared, key)
        measured_on, probing = _probed(sides, own, 0, probed, shared, key, options)
        if "tokens" in kinds:
            found["tokens"] = probing
        if wants_absorption:
            found["absorption"] = absorption(sae, measured_on, own, probing, least_f1=least_f1)
        if wants_absorption and letters:
            try:
                measured_on, probing = _probed(sides, begin, len(own), [FEATURES], shared, key, options)
                found["letters"] = absorption(sae, measured_on, begin, probing, least_f1=least_f1)
            except ValueError as error:
                refused.append(f"first letters: {error}")
    if "documents" in kinds:
        found |= {"documents": {}, "of_documents": {}}
        for one in documents:
            of_set, held_out = _probed_documents(reader, one, beside, shared, options)
            found["documents"][one.name] = of_set
            if wants_absorption:
                absorbed = absorption(sae, held_out, one.classes, of_set, least_f1=least_f1)
                found["of_documents"][one.name] = absorbed
    return SAEScores(**found, text=text.name, refused=tuple(refused))


def check_kinds(kinds: Sequence[str]) -> None:
    """Refuses kinds of scores that there are not.

    Raises:
        ValueError: If one is unknown, or there is none.
    """
    if not kinds or set(kinds) - set(KINDS):
        raise ValueError(f"the kinds of scores are {', '.join(KINDS)}, and not {', '.join(map(repr, kinds))}.")


def _read_tokens(
    reader: LabelledReader,
    text: LabelledText,
    labels: TokenLabels,
    probed: Sequence[str],
    max_tokens: int,
    shared: SharedReadings,
    key: Hashable,
) -> Sides:
    """Both sides, with the neurons that may tell a concept, or what was read before with what this SAE makes of it.

    All neurons of all blocks would not fit into memory, so the train side is read twice for them.
    """
    if (before := shared.sides(key)) is not None:
        both = zip((before.train, before.held_out), before.sizes, strict=True)
        train, held_out = (reader.read_before(rows, sizes, probed) for rows, sizes in both)
        return replace(before, train=train, held_out=held_out)
    bases = list(dict.fromkeys([*probed, COORDINATES]))
    train, held_out, kept, moments = [], [], None, Moments()
    for rows in reader.tokens(text.train, labels, bases, max_tokens):
        if NEURONS in bases:
            moments.add(rows.values.pop(NEURONS), rows.labels[:, : len(text.labels.names)])
        train.append(rows)
    fitted_on = all_of(train, "the text to fit probes on")
    if NEURONS in bases:
        kept = np.unique(moments.candidates())
        again = reader.tokens(text.train, labels, [NEURONS], max_tokens)
        fitted_on.values[NEURONS] = np.concatenate([rows.values[NEURONS][:, kept] for rows in again])
    for rows in reader.tokens(text.held_out, labels, bases, max_tokens):
        if kept is not None:
            rows.values[NEURONS] = rows.values[NEURONS][:, kept]
        held_out.append(rows)
    sides = Sides(fitted_on, all_of(held_out, "the text to measure on"), (_sizes(train), _sizes(held_out)), kept)
    shared.keep_sides(key, sides)
    return sides


def _sizes(parts: Sequence[LabelledRows]) -> list[int]:
    return [len(part) for part in parts]


def _probed(
    sides: Sides,
    names: Sequence[str],
    first: int,
    bases: Sequence[str],
    shared: SharedReadings,
    key: Hashable,
    options: dict[str, Any],
) -> tuple[LabelledRows, Probing]:
    """The held-out rows with the labels from a column on, and the probes of these."""
    columns = slice(first, first + len(names))
    both = (sides.train, sides.held_out)
    fitted_on, measured_on = (replace(side, labels=side.labels[:, columns]) for side in both)
    numbers = {NEURONS: sides.neurons} if NEURONS in bases else {}
    known = shared.probes((key, first))
    probing = probe_concepts(fitted_on, measured_on, names, bases=bases, numbers=numbers, known=known, **options)
    shared.keep_probes((key, first), probing)
    return measured_on, probing


def _probed_documents(
    reader: LabelledReader,
    given: DocumentSet,
    beside: Collection[str],
    shared: SharedReadings,
    options: dict[str, Any],
) -> tuple[Probing, LabelledRows]:
    """Probes of a set, and the documents that they were measured on."""
    key = (*reader.reads, *sorted(beside), given)
    train, held_out = (_read_documents(reader, given, side, beside, shared, (key, side)) for side in (True, False))
    bases = [FEATURES, *(basis for basis in BESIDE if basis in beside)]
    try:
        probing = probe_concepts(train, held_out, given.classes, bases=bases, known=shared.probes(key), **options)
    except ValueError as error:
        raise ValueError(f"{given.name}: {error}") from error
    shared.keep_probes(key, probing)
    return probing, held_out


def _read_documents(
    reader: LabelledReader,
    given: DocumentSet,
    is_train: bool,
    beside: Collection[str],
    shared: SharedReadings,
    key: Hashable,
) -> LabelledRows:
    """One side of a set, or what was read before with what this SAE makes of it."""
    from datasets import Dataset

    if (before := shared.documents(key)) is not None:
        return reader.documents_before(*before, beside)
    chosen = [one for one in given.documents if one.is_train == is_train]
    labels = np.array([[one.label == label for label in given.classes] for one in chosen])
    sources = np.unique([one.source for one in chosen], return_inverse=True)[1]
    texts, kept = Dataset.from_dict({"text": [one.text for one in chosen]}), shared.room_for_documents()
    rows = reader.documents(texts, labels, sources, beside, kept)
    shared.keep_documents(key, rows, kept)
    return rows
