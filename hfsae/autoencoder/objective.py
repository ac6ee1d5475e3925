"""What a training step knows, and the loss terms that architectures share. All in scaled space."""

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from hfsae.autoencoder.outputs import StepState
from hfsae.functional import AbsTopK, Pattern, Selection, TopK, at_least_float32, encode
from hfsae.functional.sparse_rows import rows_at

# The bias of a feature that is to be active nowhere: far below any pre-activation, and finite in bfloat16 too.
_NEVER = -1e30


@dataclass
class TrainingStep:
    """One batch on its way through an SAE.

    Args:
        x: (N, d_in) scaled activations.
        target: (N, d_out) what is to be reconstructed; `x` itself but for transcoders.
        pattern: The entries the step works on.
        pre: Pre-activations at the entries.
        values: Feature activations at the entries.
        reconstruction: (N, d_out) at least float32, before the scale is undone.
        state: The trainer's view of the step.
    """

    x: Tensor
    target: Tensor
    pattern: Pattern
    pre: Tensor
    values: Tensor
    reconstruction: Tensor
    state: StepState

    @cached_property
    def variance(self) -> Tensor:
        """Mean over tokens of the squared distance of the target from its mean over the batch; 0 for no tokens."""
        return _summed_variance(at_least_float32(self.target).detach()) / max(len(self.target), 1)

    def mse(self) -> Tensor:
        """Mean over tokens of Σ over dimensions of the squared error."""
        return squared_error(self.reconstruction, self.target)

    def mean_per_token(self, values: Tensor) -> Tensor:
        """The sum of values at the entries, or of sums over tokens, divided by the number of tokens."""
        return self.state.partition.total(at_least_float32(values).sum()) / max(self.pattern.n_tokens, 1)

    def mean_weighted(self, values: Tensor, weights: Tensor) -> Tensor:
        """Sum over entries of value × the weight (n,) of its feature, mean over tokens."""
        return self.mean_per_token(self.pattern.total(values) * weights)

    def reconstruct(self, written: Tensor, offset: Tensor) -> Tensor:
        """(N, d_out) what all features write together, from what those of this process write.

        Args:
            written: (N, d_out), a sum over the decoder rows of this process's features.
            offset: What the SAE adds to it: `sae.offset(step.x)`.
        """
        partition = self.state.partition
        return partition.total(written + partition.share(offset))

    def rule(self, selection: Selection) -> Selection:
        """The rule by which this process picks its own of the features that a rule picks of all."""
        return self.state.partition.rule(selection)


def squared_error(reconstruction: Tensor, target: Tensor) -> Tensor:
    """Mean over tokens of Σ over dimensions of the squared error; 0 for no tokens."""
    total = F.mse_loss(at_least_float32(reconstruction), at_least_float32(target), reduction="sum")
    return total / max(len(target), 1)


def _summed_variance(rows: Tensor) -> Tensor:
    """Σ over tokens of the squared distance from the mean of all (N, d)."""
    return torch.linalg.vector_norm(rows - rows.mean(0)).square()


def auxk_loss(
    step: TrainingStep,
    weight: Tensor,
    bias: Tensor,
    center: Tensor | None,
    rows: Tensor,
    signed: bool = False,
) -> Tensor:
    """Lets the strongest dead features reconstruct what the living ones missed.

    `α · min(n_dead / k_aux, 1) · V · ‖e − ê‖² / max(‖e − ē‖², 1e-6 ‖s·x‖²)`, with k_aux = d/2, e the detached residual
    and V the batch's summed variance. V puts the term in the units of the mean squared error. (Gao et al. 2024,
    arXiv:2406.04093, A.2, in the centred form of dictionary_learning's code.) It is a TopK SAE of the dead rows, which
    are gathered first: the cost is at most n_dead/n of a dense pass.

    Args:
        step: The step; its state must have dead features.
        weight: (n, d_in) encoder rows.
        bias: (n,).
        center: (d_in,) what the encoder subtracts (`b_dec`), or None.
        rows: (n, d_out) decoder rows.
        signed: Whether features count by their size on either side of 0, instead of above it alone.
    """
    chosen, is_dead = dead_features(step.state)
    k_aux = max(1, step.target.shape[1] // 2)
    residual = (step.target - step.reconstruction).detach()
    weight, rows = rows_at(weight, chosen), rows_at(rows, chosen)
    bias = torch.where(is_dead, bias.index_select(0, chosen), 0.0 if signed else _NEVER)
    if signed:  # far below 0 is as active as can be: what must not be active reads nothing
        weight = weight * is_dead[:, None]
    k = min(k_aux, step.state.n_dead)
    pattern, pre = encode(step.x, weight, bias, center, step.rule((AbsTopK if signed else TopK)(k)), step.state.path)
    written = step.state.partition.total(pattern.decode(pattern.keep(pre if signed else torch.relu(pre)), rows))
    error = F.mse_loss(at_least_float32(written), residual, reduction="sum")
    spread = _summed_variance(residual)
    # All-zero or no activations: nothing to explain, and 0 / 0 must not be what says so.
    floor = 1e-6 * torch.linalg.vector_norm(at_least_float32(step.target).detach()).square()
    floor = floor.clamp(min=torch.finfo(floor.dtype).tiny)
    n_dead = step.state.partition.total(is_dead.sum().to(spread.dtype))
    share = (n_dead / k_aux).clamp(max=1.0)
    return step.state.auxk_alpha * share * step.variance * error / torch.maximum(spread, floor)


def dead_features(state: StepState) -> tuple[Tensor, Tensor]:
    """The dead features, filled up with others to as many as the state says, which no device need be asked for.

    Returns:
        (m,) int64 indices, ascending, and (m,) bool, which of them are dead.
    """
    assert state.dead is not None
    first = state.dead.byte().sort(descending=True, stable=True).indices[: state.n_dead]
    chosen = first.sort().values
    return chosen, state.dead[chosen]
