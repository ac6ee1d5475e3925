"""BatchTopK: the k·N largest pre-activations of a batch of N tokens (Bussmann et al. 2024, arXiv:2412.06410).

In training the budget is shared by the batch. In use every token stands alone, against a threshold. Training follows
the threshold, and its end calibrates it so that the mean number of active features is k.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor
from transformers import initialization as init

from hfsae.autoencoder.objective import TrainingStep
from hfsae.autoencoder.outputs import StepState, StepStatistics
from hfsae.autoencoder.registry import register
from hfsae.autoencoder.strategies import replayable, shardable
from hfsae.configuration import SAEConfig
from hfsae.functional import Above, BatchTopK, Pattern, Selection
from hfsae.functional.finite import refuse_non_finite
from hfsae.functional.selection import refuse_impossible_k
from hfsae.modeling import SAE

# How slowly the threshold follows the smallest activation kept: the last few hundred steps count.
_THRESHOLD_DECAY = 0.99


@strict
class BatchTopKSAEConfig(SAEConfig):
    """Config of a `BatchTopKSAE`; see `SAEConfig` for the shared fields.

    Args:
        k: Active features per token, on average over a batch.

    Raises:
        ValueError: If k is not between 1 and `n_features`.

    Example:
        >>> from hfsae import BatchTopKSAEConfig
        >>> BatchTopKSAEConfig(d_in=64, n_features=512, k=16).expansion_factor
        8.0
    """

    model_type = "hfsae_batch_topk"

    k: int = 32

    def validate_k(self):
        refuse_impossible_k(self.k, self.n_features)


@register
@replayable
@shardable
class BatchTopKSAE(SAE):
    """`z = h · 1[h > θ]` with a scalar θ in use; the k·N largest positive h of the batch in training."""

    config_class = BatchTopKSAEConfig
    config: BatchTopKSAEConfig
    threshold: Tensor
    default_revival = "repoint"
    _float32_tensors = (*SAE._float32_tensors, "threshold")
    _in_scaled_space = ("encoder.bias", "threshold")

    def _declare(self, config: Any) -> None:
        shape = () if self.n_groups == 1 else (self.n_groups,)
        self.register_buffer("threshold", torch.zeros(shape, dtype=torch.float32))

    def _init_weights(self, module) -> None:
        super()._init_weights(module)
        if module is self:
            init.zeros_(self.threshold)

    def selection(self) -> Selection:
        threshold = self.threshold.clamp(min=0)
        return Above(threshold.repeat_interleave(self._of_one_group) if threshold.dim() else threshold)

    def training_selection(self, progress: float = 1.0) -> Selection:
        return BatchTopK(self.config.k)

    def training_statistics(self, step: TrainingStep) -> dict[str, Tensor]:
        values = step.values.detach().float()
        # Infinity where nothing was kept, which `after_step` passes over.
        kept = torch.where(values > 0, values, torch.inf)
        return {"smallest_kept": self._smallest(step.pattern, kept)}

    def _smallest(self, pattern: Pattern, values: Tensor) -> Tensor:
        """The smallest of the values at all entries, or at those of each group; infinity where there are none."""
        if self.n_groups > 1:
            parts = pattern.blocks(values, [self._of_one_group] * self.n_groups)
            return torch.stack([part.amin() if part.numel() else part.new_tensor(torch.inf) for _, part in parts])
        return values.amin() if values.numel() else values.new_tensor(torch.inf)

    @torch.no_grad()
    def after_step(self, statistics: StepStatistics, state: StepState) -> None:
        """Follows the smallest activation kept by an average that is unbiased from its first step on."""
        assert statistics.smallest_kept is not None
        # The weight of step t in a bias-corrected exponential average: (1 − β) / (1 − β^(t+1)); 1 at the first step.
        weight = (1 - _THRESHOLD_DECAY) / (1 - _THRESHOLD_DECAY ** (state.step + 1))
        # A batch in which nothing was positive kept nothing and says nothing about the threshold.
        seen = torch.where(statistics.smallest_kept.isfinite(), statistics.smallest_kept, self.threshold)
        self.threshold.lerp_(seen, weight)

    @property
    def needs_calibration(self) -> bool:
        return True

    @torch.no_grad()
    def calibrate(self, batches: Callable[[], Iterable[Tensor]]) -> None:
        """Sets θ to the value above which k features a token lie on the given activations.

        Args:
            batches: Gives the activations (..., d_in), batch by batch; neither trained nor evaluated on.

        Raises:
            ValueError: If they hold NaN or infinity; θ stays as it was.
            TypeError: If they are no tensors of floating point numbers.
        """

        def scaled() -> Iterator[Tensor]:
            for x in batches():
                refuse_non_finite(self._check(x), "the activations to calibrate on")
                yield self.scaled(x).reshape(-1, self.config.d_in)

        self._fit_threshold(scaled())

    @torch.no_grad()
    def start_from(self, scaled: Tensor, active: int | None = None) -> None:
        """Puts θ where k features a token of the batch are active."""
        self._fit_threshold([scaled])

    def _fit_threshold(self, scaled_batches: Iterable[Tensor]) -> None:
        """Puts θ just below the k·N-th largest positive pre-activation of all the batches' N tokens."""
        kept: list[list[Tensor]] = [[] for _ in range(self.n_groups)]
        n_tokens = 0
        for x in scaled_batches:
            pattern, pre = self._encode(x, BatchTopK(2 * self.config.k), path="sparse")
            for group, (_, part) in enumerate(pattern.blocks(pre, [self._of_one_group] * self.n_groups)):
                kept[group].append(part.float())
            n_tokens += pattern.n_tokens
        for threshold, parts in zip(self.threshold.view(-1), kept, strict=True):
            candidates = torch.cat([self.threshold.new_zeros(0), *parts])
            budget = min(self.config.k * n_tokens, len(candidates))
            if budget:
                smallest = candidates.kthvalue(len(candidates) - budget + 1).values
                threshold.copy_(smallest.nextafter(torch.zeros_like(smallest)))
