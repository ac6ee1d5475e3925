"""`collect_features`: statistics and examples of all features in one pass over a text, in memory of one size."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.distributed as distributed
from torch import Tensor
from transformers import PreTrainedModel

from hfsae.analysis.collection import FeatureCollection, new_leaders
from hfsae.analysis.contexts import context_numbers, random_numbers, strongest, windows
from hfsae.analysis.document_sequences import Documents, DocumentSequenceReader, DocumentSequences
from hfsae.analysis.feature_reader import FeatureReader, Firings
from hfsae.analysis.feature_types import About, Example, Examples, Statistics
from hfsae.analysis.histogram import Histograms
from hfsae.analysis.top_examples import Fields, rank, rows_of
from hfsae.analysis.weights import chosen_features, has_logit_effects, logit_effects, neighbours
from hfsae.attachment import refuse_swapped
from hfsae.autoencoder import SparseAutoencoder
from hfsae.functional.precision import own_precision
from hfsae.identity import settings_of, weights_sha256
from hfsae.processes import has_group, process, refuse_no_process
from hfsae.progress import token_bar

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@own_precision()
def collect_features(
    sae: SparseAutoencoder,
    model: PreTrainedModel,
    tokenizer: "PreTrainedTokenizerBase",
    documents: Documents,
    *,
    features: Sequence[int] | Tensor | None = None,
    max_tokens: int = 1_000_000,
    n_top: int = 20,
    n_sample: int = 30,
    before: int = 20,
    after: int = 11,
    n_partners: int = 16,
    n_bins: int = 64,
    n_tokens_promoted: int = 10,
    n_neighbours: int = 10,
    context_length: int | None = None,
    batch_size: int = 32,
    bf16: bool = False,
    text_column: str | None = None,
    dataset: str | None = None,
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
    all_processes: bool = False,
    disable_tqdm: bool = False,
) -> FeatureCollection:
    """Finds out what the features of an SAE do on a text: one pass of the language model, all features at once.

    Memory grows with features × examples and not with the text. Each document is read by itself, in pieces of
    `context_length`; the tokens that the SAE's config leaves out do not count.

    * Top examples: the largest activation of each piece of text. Of equal contexts (a token and the `before` tokens in
      front of it) one is taken, and of equal activations the earlier document.
    * Sample: contexts drawn uniformly among the different ones in which the feature fires, for quantiles.

    What is found depends on the documents, not on their order, nor on how they are shared among processes.

    Args:
        sae: The SAE.
        model: Its language model.
        tokenizer: Its tokenizer.
        documents: Texts in a list, or a `datasets` dataset of texts, conversations or token ids; streams too. Of
            conversations those tokens count that counted in training.
        features: The features to collect; None for all.
        max_tokens: Ends after the batch in which so many tokens have counted (over all processes).
        n_top: Top examples of each feature.
        n_sample: Sampled contexts of each feature.
        before: Tokens in front of an example's own in its window.
        after: Tokens behind.
        n_partners: The strongest features of each example's token that are noted, for co-firing.
        n_bins: Bins of the histograms, an even number.
        n_tokens_promoted: Promoted and suppressed tokens.
        n_neighbours: Nearest features.
        context_length: Tokens that the model sees at once; None takes the config's.
        batch_size: Sequences per run of the model.
        bf16: Whether a float32 model runs in bfloat16, as training reads its text. That takes about half of the time
            where the device has units for it. Activations then agree to two or three digits.
        text_column: The column of documents; None finds it.
        dataset: What to call the text in the collection.
        seed: Of the sample.
        rank: This process, where collections are made apart and merged (`FeatureCollection.merge`).
        world_size: The number of such processes.
        all_processes: Whether every process of the default `torch.distributed` group calls this; each reads its share
            and all get the whole. Takes the place of `rank` and `world_size`.
        disable_tqdm: Whether to show no progress bar.

    Returns:
        The collection; without effects on logits where the SAE does not write into the residual stream.

    Raises:
        ValueError, HookPointError: If the SAE does not fit the model, or an option is impossible (before anything
            runs). ValueError also if no token counts, or a feature is named twice.
        TypeError: If `documents` is of another type.

    Example:
        >>> collection = collect_features(sae, model, tokenizer, load_text("data.jsonl"))  # doctest: +SKIP
        >>> collection.of(17).top[0].activation  # doctest: +SKIP
        12.3
        >>> collection.save("runs/tiny")  # doctest: +SKIP
    """
    refuse_swapped(sae, model)
    if min(max_tokens, n_top, n_sample, before + 1, after + 1, n_partners, n_bins) < 1:
        raise ValueError("max_tokens, n_top, n_sample, n_partners and n_bins must be positive, before and after >= 0.")
    if min(n_tokens_promoted, n_neighbours) < 0:
        raise ValueError(
            f"n_tokens_promoted is {n_tokens_promoted} and n_neighbours is {n_neighbours}: expected 0 or more of each."
        )
    if all_processes and has_group():
        rank, world_size = process()
    refuse_no_process(rank, world_size)
    chosen = chosen_features(sae, features, once=True)
    reader = FeatureReader(sae, model, bf16=bf16)
    pieces = DocumentSequenceReader(sae.config, model, tokenizer, context_length=context_length, batch_size=batch_size)
    sums = _Sums(sae.config.n_features, chosen, n_bins)
    examples = _ExampleKeeper(len(chosen), n_top, n_sample, before, after, n_partners, seed)
    limit = -(-max_tokens // world_size)
    with token_bar("collecting features", limit, disable=disable_tqdm) as bar:
        for batch in pieces.batches(documents, text_column=text_column, rank=rank, world_size=world_size):
            firings = reader.read(batch.tokens)
            sums.add(batch, firings)
            examples.add(batch, firings, sums.row_of)
            bar.update(int(batch.tokens.keep.sum()))
            if sums.n_tokens >= limit:
                break
    about = About(
        n_tokens=sums.n_tokens,
        n_features=sae.config.n_features,
        before=before,
        after=after,
        context_length=pieces.context_length,
        hook_point=sae.config.hook_point,
        base_model=sae.config.base_model,
        weights_sha256=weights_sha256(sae),
        seed=seed,
        dataset=dataset,
        model_precision=reader.model_precision,
        settings=settings_of(sae.config),
    )
    collection = FeatureCollection(
        about,
        chosen,
        sums.statistics(),
        Examples(**examples.top.fields),
        Examples(**examples.sample.fields),
        logit_effects(sae, model, chosen, k=n_tokens_promoted) if has_logit_effects(sae, model) else None,
        neighbours(sae, chosen, k=n_neighbours),
    )
    return _of_all_processes(collection) if all_processes else collection


def find_max_activating_examples(
    sae: SparseAutoencoder,
    model: PreTrainedModel,
    tokenizer: "PreTrainedTokenizerBase",
    documents: Documents,
    feature: int,
    *,
    n_examples: int = 20,
    max_tokens: int = 1_000_000,
) -> list[Example]:
    """The tokens that activate one feature most, strongest first; `collect_features` finds those of all at once.

    Args:
        sae: The SAE.
        model: Its language model.
        tokenizer: Its tokenizer.
        documents: As `collect_features` takes them.
        feature: Which one.
        n_examples: How many.
        max_tokens: Tokens to read, at most.

    Raises:
        ValueError, TypeError, HookPointError: As `collect_features`.
    """
    collection = collect_features(
        sae, model, tokenizer, documents, features=[feature], n_top=n_examples, max_tokens=max_tokens
    )
    return collection[0].top


class _Sums:
    """The statistics of the pass."""

    def __init__(self, n_features: int, chosen: Tensor, n_bins: int):
        self.n_tokens = 0
        self.row_of = torch.full((n_features,), -1)
        self.row_of[chosen] = torch.arange(len(chosen))
        self._tokens_firing = torch.zeros(n_features, dtype=torch.int64)
        self._totals = torch.zeros(len(chosen), dtype=torch.float64)
        self._maxima = torch.zeros(len(chosen), dtype=torch.float32)
        self._histograms = Histograms(len(chosen), n_bins)

    def add(self, pieces: DocumentSequences, firings: Firings) -> None:
        self.n_tokens += int(pieces.tokens.keep.sum())
        self._tokens_firing += torch.bincount(firings.features, minlength=len(self._tokens_firing))
        rows = self.row_of.index_select(0, firings.features)
        mine = (rows >= 0).nonzero()[:, 0]
        rows, values = rows.index_select(0, mine), firings.values.index_select(0, mine)
        self._totals.index_add_(0, rows, values.double())
        self._maxima.scatter_reduce_(0, rows, values, "amax")
        self._histograms.add(rows, values)

    def statistics(self) -> Statistics:
        if not self.n_tokens:
            raise ValueError("the documents hold no token that counts: they are empty, or every token is left out.")
        histograms = self._histograms
        return Statistics(self._tokens_firing, self._totals, self._maxima, histograms.counts, histograms.exponents)


class _ExampleKeeper:
    """The examples of the pass."""

    def __init__(self, n: int, n_top: int, n_sample: int, before: int, after: int, n_partners: int, seed: int):
        self._before, self._after, self._n_partners, self._seed = before, after, n_partners, seed
        self.top, self.sample = (new_leaders(n, size, before + 1 + after, n_partners) for size in (n_top, n_sample))

    def add(self, pieces: DocumentSequences, firings: Firings, row_of: Tensor) -> None:
        if not len(firings):
            return
        contexts = context_numbers(pieces, self._before).index_select(0, firings.tokens)
        rows = row_of.index_select(0, firings.features)
        chosen, some_row = rows >= 0, rows.clamp(min=0)
        partners = strongest(firings, torch.arange(pieces.tokens.input_ids.numel()), self._n_partners)
        for leaders, scores in (
            (self.top, firings.values.double()),
            (self.sample, random_numbers(contexts, firings.features, self._seed)),
        ):
            entering = (chosen & leaders.may_enter(some_row, scores)).nonzero().squeeze(1)
            entries = self._places(pieces, firings, entering) | rows_of(
                {"score": scores, "context": contexts}, entering
            )
            if leaders is self.top:
                best = _best_of_each_piece(rows[entering], entries, pieces, firings.tokens[entering])
                entering, entries = entering[best], rows_of(entries, best)
            # Windows are made for those alone that could stay.
            best = rank(rows[entering], entries, leaders.size)
            entering, entries = entering[best], rows_of(entries, best)
            tokens, features = firings.tokens[entering], firings.features[entering]
            window, activations = windows(pieces, firings, tokens, features, self._before, self._after)
            entries |= {"tokens": window, "activations": activations, "partners": partners.index_select(0, tokens)}
            leaders.place(rows[entering], entries)

    def _places(self, pieces: DocumentSequences, firings: Firings, entering: Tensor) -> Fields:
        length = pieces.tokens.input_ids.shape[1]
        tokens = firings.tokens[entering]
        piece = tokens // length
        return {"document": pieces.documents[piece], "position": pieces.starts[piece] + tokens % length}


def _best_of_each_piece(rows: Tensor, entries: Fields, pieces: DocumentSequences, tokens: Tensor) -> Tensor:
    """The strongest entry of each feature in each piece, the earlier of equal ones."""
    piece = tokens // pieces.tokens.input_ids.shape[1]
    feature_in_piece = rows * len(pieces.documents) + piece
    # Within a feature and a piece all contexts count as one.
    return rank(feature_in_piece, entries | {"context": torch.zeros_like(piece)}, 1)


def _of_all_processes(collection: FeatureCollection) -> FeatureCollection:
    """What the processes have found together; on each of them."""
    if not has_group():
        return collection
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    world_size = distributed.get_world_size()
    counts = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(world_size)]
    distributed.all_gather(counts, torch.tensor([collection.about.n_tokens], device=device))
    shares: list[dict[str, Tensor]] = [{} for _ in range(world_size)]
    for name, tensor in sorted(collection.tensors().items()):
        if not tensor.numel():  # gloo gathers nothing of no elements
            for share in shares:
                share[name] = tensor
            continue
        mine = tensor.to(device).contiguous()
        gathered = [torch.empty_like(mine) for _ in range(world_size)]
        distributed.all_gather(gathered, mine)
        for share, part in zip(shares, gathered, strict=True):
            share[name] = part.cpu()
    parts = [
        FeatureCollection.from_tensors(replace(collection.about, n_tokens=int(count)), share)
        for count, share in zip(counts, shares, strict=True)
    ]
    return FeatureCollection.merge(parts)
