"""Which features fire on which tokens of a batch: one run of the language model, stopped at the SAE."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hfsae.autoencoder import SparseAutoencoder
from hfsae.autoencoder.signed import refuse_signed
from hfsae.data import TokenBatch
from hfsae.data.narrow import LowPrecision
from hfsae.evaluation.spliced_model import model_inputs
from hfsae.functional import SparseFeatures
from hfsae.functional.finite import refuse_non_finite
from hfsae.functional.patterns import SparsePattern
from hfsae.hooks import capture
from hfsae.hooks.quiet import evaluating
from hfsae.hooks.sites import Sites
from hfsae.hooks.tokens import of_tokens
from hfsae.in_model import hook_points_of_sources


@dataclass(frozen=True)
class Firings:
    """Every (token, feature) pair of a batch where the feature's value is above 0, tokens in order; on the CPU.

    Attributes:
        tokens: int64 (entries,), row · T + column of the token in the batch.
        features: int64 (entries,).
        values: float32 (entries,).
        n_features: Width of the SAE.
    """

    tokens: Tensor
    features: Tensor
    values: Tensor
    n_features: int

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def by_feature(self) -> tuple[Tensor, Tensor]:
        """Of each entry feature · 2³² + token, ascending, and the order of the entries that makes it so."""
        features, order = self.features.int().sort(stable=True)
        return (features.long() << 32) + self.tokens.index_select(0, order), order

    def select(self, chosen: Tensor) -> "Firings":
        """Some of the entries, in their order."""
        return Firings(self.tokens[chosen], self.features[chosen], self.values[chosen], self.n_features)

    def by_token(self, shape: torch.Size) -> SparseFeatures:
        """The features of all tokens of the batch.

        Args:
            shape: The batch's, (rows, columns).
        """
        pattern = SparsePattern(self.features, torch.bincount(self.tokens, minlength=shape.numel()), self.n_features)
        return SparseFeatures(pattern, self.values, shape)


class FeatureReader:
    """Runs a language model up to an SAE, over one batch of tokens at a time.

    Args:
        sae: The SAE.
        model: Its language model.
        features: The only features that are read; None for all.
        bf16: Whether a float32 model runs in bfloat16, as training reads its text.

    Raises:
        HookPointError: If the model lacks the SAE's hook point.
        ValueError: If the SAE does not fit the activations there, or its features may be negative.
    """

    def __init__(
        self, sae: SparseAutoencoder, model: PreTrainedModel, features: Tensor | None = None, bf16: bool = False
    ):
        refuse_signed(sae, "reading which features fire")
        self._sae, self._model, self._features = sae, model, features
        # A crosscoder reads all its sources at once.
        self._sources = hook_points_of_sources(sae.config, model)
        self._sites = Sites.at(model, self._sources)
        narrow = torch.bfloat16 if bf16 and model.dtype == torch.float32 else None
        self._precision = LowPrecision(model, self._sources, narrow)

    @property
    def model_precision(self) -> str:
        """What the language model's products are made in, such as `"bfloat16"`."""
        return str(self._precision.dtype).removeprefix("torch.")

    @torch.no_grad()
    def read(self, batch: TokenBatch) -> Firings:
        """The features of the tokens that count; the others have none.

        Raises:
            ValueError: If the language model gives NaN or infinity at tokens that count.
        """
        with (
            evaluating(self._model),
            capture(self._model, self._sites) as activations,
            self._precision.entered(),
        ):
            activations.run(**model_inputs(self._model, batch))
        kept = batch.keep.flatten().nonzero().squeeze(1)
        parts = []
        for place in self._sources:
            rows = of_tokens(activations[place], batch.input_ids.shape, place).flatten(0, 1)
            parts.append(rows[kept.to(rows.device)].to(self._sae.device))
        counted = torch.cat(parts, 1) if len(parts) > 1 else parts[0]
        # NaN is not above 0: features would be said not to fire.
        refuse_non_finite(counted, f"the language model's activations at {' and '.join(map(str, self._sources))}")
        return _firings(self._sae.encode_sparse(counted, self._features), kept)


def _firings(features: SparseFeatures, kept: Tensor) -> Firings:
    pattern = features.pattern
    assert isinstance(pattern, SparsePattern), "encode_sparse gives entries"
    active = (features.entry_values > 0).nonzero()[:, 0]
    tokens, indices, values = (
        column.index_select(0, active).cpu() for column in (pattern.tokens, pattern.features, features.entry_values)
    )
    return Firings(kept.index_select(0, tokens), indices, values.float(), pattern.n_features)
