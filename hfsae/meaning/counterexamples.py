"""Pieces of text on which a feature does not fire: any, and those on which a feature near it does."""

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hfsae.analysis.document_sequences import Documents, DocumentSequenceReader, DocumentSequences
from hfsae.analysis.feature_reader import FeatureReader, Firings
from hfsae.modeling import SAE
from hfsae.progress import token_bar

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Counterexamples:
    """Windows of text, and which features fire in each of them.

    Whether a feature fires is read in the whole document, and not in the window alone.

    Args:
        windows: The tokens of each window.
        firing: int64 (entries, 2), pairs of a window and a feature that fires in it.
        n_features: Width of the SAE.
    """

    def __init__(self, windows: Sequence[list[int]], firing: Tensor, n_features: int):
        self.windows = windows
        self._n_features = n_features
        numbers = (firing[:, 1] * len(windows) + firing[:, 0]).unique()
        self._windows_of = numbers % max(len(windows), 1)
        self._ends = torch.searchsorted(numbers, torch.arange(n_features + 1) * len(windows))

    @classmethod
    def read(
        cls,
        sae: SAE,
        model: PreTrainedModel,
        tokenizer: "PreTrainedTokenizerBase",
        documents: Documents,
        *,
        width: int,
        max_tokens: int,
        context_length: int | None = None,
        text_column: str | None = None,
        batch_size: int = 16,
        disable_tqdm: bool = False,
    ) -> "Counterexamples":
        """Reads a text, cut into windows of one width.

        Args:
            sae: The SAE.
            model: Its language model.
            tokenizer: Its tokenizer.
            documents: Texts in a list, or a dataset.
            width: Tokens in a window; shorter ones than half of it are left out.
            max_tokens: Tokens to read, at most.
            context_length: Tokens that the model sees at once; None takes the config's.
            text_column: The column of documents; None finds it.
            batch_size: Sequences per run of the model.
            disable_tqdm: Whether to show no progress bar.
        """
        reader = FeatureReader(sae, model)
        pieces = DocumentSequenceReader(
            sae.config, model, tokenizer, context_length=context_length, batch_size=batch_size
        )
        windows: list[list[int]] = []
        firing: list[Tensor] = []
        n_tokens = 0
        with token_bar("reading counterexamples", max_tokens, disable=disable_tqdm) as bar:
            for batch in pieces.batches(documents, text_column=text_column):
                found, numbers = _cut(batch, reader.read(batch.tokens), width)
                firing.append(numbers + torch.tensor([len(windows), 0]))
                windows += found
                read = int(batch.tokens.attention_mask.sum())
                n_tokens += read
                bar.update(read)
                if n_tokens >= max_tokens:
                    break
        return cls(
            windows, torch.cat(firing) if firing else torch.zeros(0, 2, dtype=torch.int64), sae.config.n_features
        )

    def firing_in(self, feature: int) -> set[int]:
        """The windows in which a feature fires."""
        return set(self._windows_of[self._ends[feature] : self._ends[feature + 1]].tolist())

    def anywhere(self, feature: int, size: int, chosen: random.Random) -> list[list[int]]:
        """Windows in which a feature does not fire; fewer than asked for where there are no more.

        Args:
            feature: Which one.
            size: How many.
            chosen: Draws them.
        """
        return self._draw(sorted(set(range(len(self.windows))) - self.firing_in(feature)), size, chosen)

    def beside_neighbours(
        self, feature: int, near: Sequence[int], size: int, chosen: random.Random
    ) -> list[list[int]]:
        """Windows in which one of other features fires, and this one does not.

        Args:
            feature: Which one.
            near: The others.
            size: How many.
            chosen: Draws them.
        """
        with_others = set().union(*(self.firing_in(other) for other in near if other != feature))
        return self._draw(sorted(with_others - self.firing_in(feature)), size, chosen)

    def _draw(self, numbers: list[int], size: int, chosen: random.Random) -> list[list[int]]:
        return [self.windows[number] for number in chosen.sample(numbers, min(size, len(numbers)))]


def _cut(batch: DocumentSequences, firings: Firings, width: int) -> tuple[list[list[int]], Tensor]:
    """The windows of a batch of pieces, and pairs of a window's number and a feature that fires in it."""
    ids, lengths = batch.tokens.input_ids, batch.tokens.attention_mask.sum(1).tolist()
    in_a_row = -(-ids.shape[1] // width)
    number_of = torch.full((len(ids) * in_a_row,), -1)
    windows: list[list[int]] = []
    for row, length in enumerate(lengths):
        for place, start in enumerate(range(0, length, width)):
            window = ids[row, start : min(start + width, length)].tolist()
            if 2 * len(window) >= width:
                number_of[row * in_a_row + place] = len(windows)
                windows.append(window)
    row, column = firings.tokens // ids.shape[1], firings.tokens % ids.shape[1]
    numbers = number_of[row * in_a_row + column // width]
    inside = numbers >= 0
    return windows, torch.stack([numbers[inside], firings.features[inside]], 1)
