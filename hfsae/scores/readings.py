"""`LabelledReader`: what labelled text is in every basis that a probe may choose from: features, neurons, PCA."""

from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from hfsae.analysis import TokenTexts
from hfsae.analysis.document_sequences import DocumentSequenceReader, DocumentSequences
from hfsae.autoencoder import SparseAutoencoder
from hfsae.autoencoder.signed import refuse_signed
from hfsae.data import TokenBatch
from hfsae.data.encoding import bos_token_id
from hfsae.evaluation.baselines import PCA, untrained
from hfsae.evaluation.spliced_model import model_inputs
from hfsae.functional import SparseFeatures
from hfsae.functional.patterns import SparsePattern
from hfsae.hooks import HookPoint, HookPointError, capture, portable_name, resolve_hook_point
from hfsae.hooks.quiet import evaluating
from hfsae.hooks.sites import Sites
from hfsae.hooks.tokens import of_tokens
from hfsae.in_model import hook_points_of_sources
from hfsae.scores.concepts import TokenLabels
from hfsae.scores.labelled_rows import (
    BESIDE,
    COMPONENTS,
    COORDINATES,
    FEATURES,
    NEURONS,
    SPARSE,
    DocumentMeans,
    KeptReads,
    LabelledRows,
)
from hfsae.scores.needed import needed

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

# Of a long document the first piece of text is read, and of the others one in so many: tokens of one document resemble
# each other, and those of many tell more.
_EVERY = 8
# Tokens that PCA and the gain of the untrained SAE are fitted on.
_FIT_TOKENS = 8192


class LabelledReader:
    """Reads labelled text with a language model and an SAE.

    Args:
        sae: The SAE.
        model: Its language model.
        tokenizer: Its tokenizer.
        batch_size: Pieces of text per run of the model.

    Attributes:
        neuron_layers: The blocks whose MLP activations are read, those up to the SAE's; empty where there are none.

    Raises:
        HookPointError: If the model lacks the SAE's hook point.
        ValueError: If the SAE's features may be negative.
    """

    def __init__(
        self,
        sae: SparseAutoencoder,
        model: PreTrainedModel,
        tokenizer: "PreTrainedTokenizerBase",
        batch_size: int = 32,
    ):
        refuse_signed(sae, "scoring")
        self._sae, self._model, self._tokenizer = sae, model, tokenizer
        self._sources = tuple(hook_points_of_sources(sae.config, model))
        self._neurons = tuple(_neurons(model, self._sources[-1]))
        self._cutter = DocumentSequenceReader(sae.config, model, tokenizer, batch_size=batch_size)
        # Of its batches few pieces are read.
        self._sampled = DocumentSequenceReader(sae.config, model, tokenizer, batch_size=batch_size * _EVERY)
        self._texts = TokenTexts(tokenizer)
        self._sites: dict[tuple[HookPoint, ...], Sites] = {}
        self._pca: PCA | None = None
        self._untrained: SparseAutoencoder | None = None

    @property
    def neuron_layers(self) -> int:
        """The number of blocks whose neurons are read; 0 where the model names none."""
        return len(self._neurons)

    @property
    def reads(self) -> tuple[Hashable, ...]:
        """What decides which tokens are read, where, and in which batches; alike for SAEs that share readings."""
        return (self._sources, self._neurons, self._sampled.cuts)

    def fit(self, documents: "Dataset") -> None:
        """Fits PCA and the untrained SAE on the first tokens of a text.

        Raises:
            ValueError: If it has fewer tokens than activations have dimensions.
        """
        parts: list[Tensor] = []
        active = n = 0
        for batch in self._some(documents):
            rows = self._read(batch, self._sources)[0]
            parts.append(rows.cpu().float())
            active += int((self._sae.encode_sparse(rows).entry_values > 0).sum())
            n += len(rows)
            if n >= _FIT_TOKENS:
                break
        d_in = self._sae.config.d_in
        if n < 2 * d_in:
            raise ValueError(f"{n} tokens to fit on are too few for activations of width {d_in}: give more text.")
        activations = torch.cat(parts)
        self._pca = PCA(activations, d_in)
        self._untrained = untrained(self._sae, activations.to(self._sae.device), max(1, round(active / n)))

    def tokens(
        self, documents: "Dataset", labels: TokenLabels, bases: Sequence[str], max_tokens: int
    ) -> Iterator[LabelledRows]:
        """The tokens of documents that count for the SAE, a batch at a time.

        Args:
            documents: Texts in a column `text`.
            labels: Labels the tokens of each.
            bases: The bases that are wanted.
            max_tokens: Ends after the batch in which so many were read.
        """
        known: dict[int, tuple[NDArray[np.int64], NDArray[np.bool_]]] = {}
        n = 0
        for batch in self._some(documents):
            parts = []
            for row, (document, start) in enumerate(zip(batch.documents.tolist(), batch.starts.tolist(), strict=True)):
                if document not in known:
                    known[document] = self._labelled(documents[document]["text"], labels)
                here = batch.tokens.keep[row].nonzero().squeeze(1).numpy()
                ids, of_document = known[document]
                found = of_document[start + here]
                # A BOS that was put in front of a piece is no token of the document, and has no concept.
                found[ids[start + here] != batch.tokens.input_ids[row].numpy()[here]] = False
                parts.append(found)
            of_tokens = batch.documents[batch.tokens.keep.nonzero()[:, 0]].numpy()
            yield LabelledRows(np.concatenate(parts), of_tokens, self._values(batch, bases))
            n += len(of_tokens)
            if n >= max_tokens:
                return

    @torch.no_grad()
    def read_before(self, rows: LabelledRows, sizes: Sequence[int], bases: Sequence[str]) -> LabelledRows:
        """Rows that were read for another SAE, with what this one makes of their coordinates.

        Args:
            rows: With their coordinates.
            sizes: The rows of every batch in which they were read; an SAE reads the same batches.
            bases: The bases that are wanted; those of `SPARSE` are added, of the others there is what there is.
        """
        batches = torch.from_numpy(rows.values[COORDINATES]).split([size for size in sizes if size])
        values = dict(rows.values)
        for basis in (basis for basis in bases if basis in SPARSE):
            parts = [self._sparse_values(basis, batch.to(self._sae.device)) for batch in batches]
            values[basis] = needed("scipy.sparse").vstack(parts, format="csc")
        return LabelledRows(rows.labels, rows.documents, values)

    def documents(
        self,
        documents: "Dataset",
        labels: NDArray[np.bool_],
        sources: NDArray[np.int64],
        beside: Collection[str] = BESIDE,
        kept: KeptReads | None = None,
    ) -> LabelledRows:
        """Documents: of every basis the mean over their tokens that count; those without such a token are left out.

        Args:
            documents: Texts in a column `text`.
            labels: bool (documents, concepts).
            sources: int64 (documents,), documents of one source resemble each other.
            beside: The bases that are wanted beside features and coordinates.
            kept: Takes what the model makes of the tokens, for `documents_before`.
        """
        there = {FEATURES, COORDINATES, *beside} - (set() if self._neurons else {NEURONS})
        bases = [basis for basis in (*SPARSE, COORDINATES, COMPONENTS, NEURONS) if basis in there]
        means = DocumentMeans(len(labels))
        for batch in self._cutter.batches(documents):
            of_tokens = batch.documents[batch.tokens.keep.nonzero()[:, 0]].numpy()
            read, neurons = self._read(batch, self._sources, self._neurons if NEURONS in bases else ())
            means.add(of_tokens, self._values_of(read, neurons, bases))
            if kept is not None:
                kept.add(of_tokens, read)
        return LabelledRows(labels[means.counted], sources[means.counted], means.values())

    def documents_before(self, rows: LabelledRows, kept: KeptReads, beside: Collection[str] = BESIDE) -> LabelledRows:
        """Documents that were read for another SAE, with what this one makes of their tokens.

        Args:
            rows: What `documents` gave.
            kept: What it kept.
            beside: The bases that are wanted; those of `SPARSE` are added, of the others there is what there is.
        """
        means = DocumentMeans(1 + max((int(numbers.max(initial=0)) for numbers, _ in kept), default=0))
        bases = [basis for basis in SPARSE if basis in (FEATURES, *beside)]
        for numbers, read in kept:
            means.add(numbers, self._values_of(read.to(self._sae.device), torch.zeros(0, dtype=torch.float32), bases))
        return replace(rows, values=means.values() | rows.values)

    def _some(self, documents: "Dataset") -> Iterator[DocumentSequences]:
        """The first piece of each document, and of a long one some further pieces."""
        for batch in self._sampled.batches(documents):
            numbers = self._numbers(batch)
            chosen = (numbers == 0) | ((numbers + batch.documents) % _EVERY == 0)
            if chosen.any():
                ids, mask, keep = (part[chosen] for part in batch.tokens)
                tokens = TokenBatch(ids, mask, keep)
                yield DocumentSequences(tokens, batch.documents[chosen], batch.starts[chosen])

    def _numbers(self, batch: DocumentSequences) -> Tensor:
        """int64: which piece of its document each is. A BOS that was put in front leaves room for one token less."""
        length, begin = self._sampled.context_length, bos_token_id(self._tokenizer)
        plain = batch.starts.clamp(min=0) // length
        if begin is None:
            return plain
        return torch.where(batch.tokens.input_ids[:, 0] == begin, (batch.starts + 1) // max(length - 1, 1), plain)

    def _labelled(self, text: str, labels: TokenLabels) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """The token ids of a document, and their labels."""
        ids: Any = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return np.array(ids, np.int64), labels(self._texts(ids))

    def _values(self, batch: DocumentSequences, bases: Sequence[str]) -> dict[str, Any]:
        read, neurons = self._read(batch, self._sources, self._neurons if NEURONS in bases else ())
        return self._values_of(read, neurons, bases)

    @torch.no_grad()
    def _values_of(self, read: Tensor, neurons: Tensor, bases: Sequence[str]) -> dict[str, Any]:
        of_basis: dict[str, Callable[[], Any]] = {
            **{basis: partial(self._sparse_values, basis, read) for basis in SPARSE},
            NEURONS: lambda: neurons.float().cpu().numpy(),
            COORDINATES: lambda: read.float().cpu().numpy(),
            COMPONENTS: lambda: _along(_fitted(self._pca), read.float().cpu()),
        }
        return {basis: of_basis[basis]() for basis in bases}

    def _sparse_values(self, basis: str, read: Tensor) -> Any:
        return _sparse((self._sae if basis == FEATURES else _fitted(self._untrained)).encode_sparse(read))

    @torch.no_grad()
    def _read(
        self, batch: DocumentSequences, sources: Sequence[HookPoint], neurons: Sequence[HookPoint] = ()
    ) -> tuple[Tensor, Tensor]:
        """What the SAE reads of the tokens that count (N, d_in), and the neurons (N, …)."""
        places = tuple(dict.fromkeys([*sources, *neurons]))
        if places not in self._sites:
            self._sites[places] = Sites.at(self._model, places)
        with evaluating(self._model), capture(self._model, self._sites[places]) as activations:
            activations.run(**model_inputs(self._model, batch.tokens))
        kept = batch.tokens.keep.flatten()

        def rows(place: HookPoint) -> Tensor:
            found = of_tokens(activations[place], batch.tokens.input_ids.shape, place).flatten(0, 1)
            return found[kept.to(found.device)].to(self._sae.device)

        read = torch.cat([rows(place) for place in sources], 1)
        if not read.isfinite().all():
            raise ValueError(f"activations at {sources[0]} are not all finite: load the language model in float32.")
        return read, torch.cat([rows(place) for place in neurons], 1) if neurons else read[:, :0]


def _neurons(model: PreTrainedModel, place: HookPoint) -> list[HookPoint]:
    """The MLP activations of the blocks up to a place; none where the model names none."""
    try:
        name = portable_name(model, place)
        layer = int((name or "").rpartition(".")[2])
        return [resolve_hook_point(model, f"mlp_act.{block}") for block in range(layer + 1)]
    except (HookPointError, ValueError):
        return []


def _fitted(one: Any) -> Any:
    if one is None:
        raise RuntimeError("call fit() first: PCA and the untrained SAE have seen no activations.")
    return one


def _along(pca: PCA, rows: Tensor) -> NDArray[np.float32]:
    return ((rows - pca.mean.cpu()) @ pca.directions.cpu().T).numpy()


def _sparse(features: SparseFeatures) -> Any:
    """A matrix of scipy, (tokens, n_features)."""
    pattern = features.pattern
    assert isinstance(pattern, SparsePattern), "encode_sparse gives entries"
    values = features.entry_values.float().cpu().numpy()
    where = (pattern.tokens.cpu().numpy(), pattern.features.cpu().numpy())
    shape = (features.shape[:-1].numel(), pattern.n_features)
    found = needed("scipy.sparse").csr_array((values, where), shape=shape)
    found.eliminate_zeros()
    return found
