"""`score`: probing, absorption and their noise of one SAE, from text to figures."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from transformers import PreTrainedModel

from hfsae.autoencoder import SparseAutoencoder
from hfsae.scores.absorption import LEAST_F1, Absorption, absorption, refuse_two_places
from hfsae.scores.concepts import PYTHON_CONCEPTS, FirstLetters, PatternLabels, TokenLabels
from hfsae.scores.document_sets import DocumentSet
from hfsae.scores.needed import needed
from hfsae.scores.probing import Moments, Probing, probe_concepts
from hfsae.scores.readings import (
    COMPONENTS,
    COORDINATES,
    FEATURES,
    NEURONS,
    UNTRAINED,
    LabelledReader,
    LabelledRows,
    all_of,
)

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


def score(
    sae: SparseAutoencoder,
    model: PreTrainedModel,
    tokenizer: "PreTrainedTokenizerBase",
    text: LabelledText,
    *,
    documents: Sequence[DocumentSet] = (),
    kinds: Sequence[Kind] = KINDS,
    max_tokens: int = 30_000,
    least_f1: float = LEAST_F1,
    n_draws: int = 1000,
    batch_size: int = 32,
    seed: int = 0,
) -> SAEScores:
    """Scores the features of an SAE: how well they tell concepts, and what absorbs them.

    Args:
        sae: The SAE.
        model: Its language model.
        tokenizer: Its tokenizer.
        text: Labelled tokens.
        documents: Sets of labelled documents.
        kinds: Which scores are wanted.
        max_tokens: Tokens that are read of each side of the text.
        least_f1: As in `absorption`.
        n_draws: Draws of the bootstrap over documents.
        batch_size: Pieces of text per run of the model.
        seed: Of the draws.

    Raises:
        ValueError: If there is too little labelled text, or `kinds` names none that there is.
        ImportError: If scikit-learn is not installed.
    """
    check_kinds(kinds)
    if max_tokens < 1 or n_draws < 1:
        raise ValueError(f"max_tokens is {max_tokens} and n_draws {n_draws}; expected 1 or more.")
    if not 0 <= least_f1 <= 1:
        raise ValueError(f"least_f1 is {least_f1}; expected an F1 from 0 to 1.")
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
    reader.fit(text.train)
    if not reader.neuron_layers:
        refused.append("the language model names no neurons of its blocks, so they are not beside the features.")
    options: dict[str, Any] = {"n_draws": n_draws, "seed": seed}
    found: dict[str, Any] = {}
    if "tokens" in kinds or wants_absorption:
        letters = FirstLetters()
        labels = _Together(text.labels, letters)
        n_concepts = len(text.labels.names)
        wanted = "tokens" in kinds
        train, held_out, neurons = _read_tokens(reader, text, labels, n_concepts, wanted, max_tokens)
        own = slice(None, n_concepts)
        fitted_on, measured_on = _some_labels(train, own), _some_labels(held_out, own)
        numbers = {} if neurons is None else {NEURONS: neurons}
        bases = None if wanted else [FEATURES]
        probing = probe_concepts(fitted_on, measured_on, text.labels.names, bases=bases, numbers=numbers, **options)
        if wanted:
            found["tokens"] = probing
        if wants_absorption:
            rest = slice(n_concepts, None)
            fitted_on, of_letters = _some_labels(train, rest), _some_labels(held_out, rest)
            found["absorption"] = absorption(sae, measured_on, text.labels.names, probing, least_f1=least_f1)
            try:
                by_letter = probe_concepts(fitted_on, of_letters, letters.names, bases=[FEATURES], **options)
                found["letters"] = absorption(sae, of_letters, letters.names, by_letter, least_f1=least_f1)
            except ValueError as error:
                refused.append(f"first letters: {error}")
    if "documents" in kinds:
        found |= {"documents": {}, "of_documents": {}}
        for one in documents:
            of_set, held_out = _probed_documents(reader, one, options)
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
    reader: LabelledReader, text: LabelledText, labels: TokenLabels, n_concepts: int, wanted: bool, max_tokens: int
) -> tuple[LabelledRows, LabelledRows, Any]:
    """Both sides, and the numbers of the neurons that were kept since they may tell a concept.

    All neurons of all blocks would not fit into memory, so the train side is read twice.
    """
    bases = [FEATURES, COORDINATES, *([UNTRAINED, COMPONENTS] if wanted else [])]
    if not (wanted and reader.neuron_layers):
        sides = [
            all_of(reader.tokens(documents, labels, bases, max_tokens), "the text")
            for documents in (text.train, text.held_out)
        ]
        return sides[0], sides[1], None
    moments, parts = Moments(), []
    for rows in reader.tokens(text.train, labels, [*bases, NEURONS], max_tokens):
        moments.add(rows.values.pop(NEURONS), rows.labels[:, :n_concepts])
        parts.append(rows)
    train = all_of(parts, "the text to fit probes on")
    kept = np.unique(moments.candidates())
    train_neurons = [
        rows.values[NEURONS][:, kept] for rows in reader.tokens(text.train, labels, [NEURONS], max_tokens)
    ]
    train.values[NEURONS] = np.concatenate(train_neurons)
    parts = []
    for rows in reader.tokens(text.held_out, labels, [*bases, NEURONS], max_tokens):
        rows.values[NEURONS] = rows.values[NEURONS][:, kept]
        parts.append(rows)
    return train, all_of(parts, "the text to measure on"), kept


def _some_labels(rows: LabelledRows, columns: slice) -> LabelledRows:
    return LabelledRows(rows.labels[:, columns], rows.documents, rows.values)


def _probed_documents(
    reader: LabelledReader, given: DocumentSet, options: dict[str, Any]
) -> tuple[Probing, LabelledRows]:
    """Probes of a set, and the documents that they were measured on."""
    from datasets import Dataset

    sides = []
    for is_train in (True, False):
        chosen = [one for one in given.documents if one.is_train == is_train]
        labels = np.array([[one.label == label for label in given.classes] for one in chosen])
        sources = np.unique([one.source for one in chosen], return_inverse=True)[1]
        texts = Dataset.from_dict({"text": [one.text for one in chosen]})
        sides.append(reader.documents(texts, labels, sources))
    try:
        return probe_concepts(sides[0], sides[1], given.classes, **options), sides[1]
    except ValueError as error:
        raise ValueError(f"{given.name}: {error}") from error
