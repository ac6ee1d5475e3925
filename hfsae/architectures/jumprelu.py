"""JumpReLU: a learned threshold per feature (Rajamanoharan et al. 2024b, arXiv:2407.14435; Anthropic, January 2025).

The threshold itself is the parameter, not its logarithm: a log parameter moves by a constant factor a step under Adam
and freezes small thresholds. It gets its gradient from a rectangle kernel around it, see
`hfsae.functional.straight_through`.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.distributed as dist
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import initialization as init

from hfsae.autoencoder.objective import TrainingStep, dead_features
from hfsae.autoencoder.outputs import StepState, StepStatistics
from hfsae.autoencoder.registry import register
from hfsae.autoencoder.strategies import shardable
from hfsae.configuration import SAEConfig
from hfsae.functional import Above, Pattern, Selection, count_active, is_active, jump_relu
from hfsae.modeling import SAE

# Active features a token at the start, where nothing says how many are wanted.
_INITIAL_L0 = 256
# Where too few features are active, thresholds sink so many times faster than they rise where too many are.
_SINKING = 3.0


@strict
class JumpReLUSAEConfig(SAEConfig):
    """Config of a `JumpReLUSAE`; see `SAEConfig` for the shared fields.

    Args:
        bandwidth: Width ε of the kernel, in scaled space.
        initial_threshold: Where thresholds start, in scaled space; None takes the quantile of the first batch's
            pre-activations above which `initial_l0` features a token lie.
        initial_l0: See `initial_threshold`; None is three times the number of active features that training steers to,
            or 256 where λ is fixed.
        sparsity: `"l0"`: λ · mean L0. `"l0_quadratic"`: λ · (mean L0 / target − 1)², on the mean over all processes.
            `"tanh"`: λ · mean Σ tanh(`tanh_scale` · z_i ‖W_dec[i]‖).
        tanh_scale: See `sparsity`.
        frequency_scale: p₀ of a further λ · Σ p_i² / p₀, with p_i the share of tokens on which feature i is active. Of
            `"tanh"` it is the mean of its tanh. Features with p_i far below p₀ hardly feel it, frequent ones do (Smith
            et al. 2025 propose 0.1 and 0.01). `"l0_quadratic"` divides it by the target. None leaves it out.
        pre_act_coefficient: Weight of `mean Σ ReLU(θ − h) ‖W_dec[i]‖` over dead features, which pulls them back up
            (3e-6 in Anthropic's January 2025 update); 0 switches it off.

    Raises:
        ValueError: If the bandwidth or a frequency scale is not positive, or a threshold negative.

    Example:
        >>> from hfsae import JumpReLUSAEConfig
        >>> JumpReLUSAEConfig(d_in=64, expansion_factor=8).sparsity
        'l0'
    """

    model_type = "hfsae_jumprelu"

    bandwidth: float | int = 0.5
    initial_threshold: float | int | None = None
    initial_l0: int | None = None
    sparsity: Literal["l0", "l0_quadratic", "tanh"] = "l0"
    tanh_scale: float | int = 4.0
    frequency_scale: float | int | None = None
    pre_act_coefficient: float | int = 0.0

    @classmethod
    def needs_target_l0(cls, options: Mapping[str, Any]) -> bool:
        return options.get("sparsity", cls.sparsity) == "l0_quadratic"

    def validate_threshold(self):
        if self.bandwidth <= 0:
            raise ValueError(f"bandwidth must be positive, got {self.bandwidth}.")
        if self.frequency_scale is not None and self.frequency_scale <= 0:
            raise ValueError(f"frequency_scale must be above 0, got {self.frequency_scale}.")
        if self.initial_threshold is not None and self.initial_threshold < 0:
            raise ValueError(f"initial_threshold must be 0 or more, got {self.initial_threshold}.")
        if self.initial_l0 is not None and self.initial_l0 < 1:
            raise ValueError(f"initial_l0 must be at least 1, got {self.initial_l0}.")


@register
@shardable
class JumpReLUSAE(SAE):
    """`z = h · 1[h > θ]`, θ ≥ 0 a float32 vector. Loss: squared error + λ · a count of active features."""

    config_class = JumpReLUSAEConfig
    config: JumpReLUSAEConfig
    # A dead feature's pre-activations still pass 0, only not its threshold: auxk, which is part of `repoint`, reaches
    # it without unsettling L0.
    default_revival = "repoint"
    _float32_tensors = (*SAE._float32_tensors, "threshold")
    _in_scaled_space = ("encoder.bias", "threshold")

    def _declare(self, config: Any) -> None:
        self.threshold = nn.Parameter(torch.empty(config.n_features, dtype=torch.float32))

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            init.constant_(self.threshold, self.config.initial_threshold or 0.0)

    @property
    def default_sparsity_coefficient(self) -> float:
        """λ without a `target_l0` controller, for each form of the penalty."""
        return {"l0": 0.3, "l0_quadratic": 10.0, "tanh": 1.0}[self.config.sparsity]

    def selection(self) -> Selection:
        return Above(self.threshold.detach())

    def training_selection(self, progress: float = 1.0) -> Selection:
        """Everything within reach of the kernel too: the entries just below a threshold move it as well."""
        return Above(self.threshold.detach(), margin=self.config.bandwidth / 2)

    def activation(self, pattern: Pattern, pre: Tensor) -> Tensor:
        return jump_relu(pre, pattern.gather(self.threshold), self.config.bandwidth)

    def objective(self, step: TrainingStep) -> dict[str, Tensor]:
        losses = {"mse": step.mse(), "sparsity": self._sparsity(step)}
        if self.config.pre_act_coefficient and step.state.n_dead:
            losses["pre_act"] = self.config.pre_act_coefficient * self._pre_act_loss(step)
        return losses

    def _sparsity(self, training: TrainingStep) -> Tensor:
        state, scale = training.state, self.config.frequency_scale
        target = state.target_l0 if self.config.sparsity == "l0_quadratic" else None
        if self.config.sparsity == "l0_quadratic" and target is None:
            raise ValueError("sparsity='l0_quadratic' needs target_l0: the number of active features to aim at.")
        shares = None if scale is None else self._shares(training)
        count = self._count(training) if shares is None else state.partition.total(shares.sum())
        penalty = count if target is None else (_over_processes(count, state) / target - 1).square()
        if shares is not None and scale is not None:
            frequent = state.partition.total(_over_processes(shares, state).square().sum()) / scale
            penalty = penalty + (frequent if target is None else frequent / target)
        return state.sparsity_coefficient * penalty

    def _count(self, training: TrainingStep) -> Tensor:
        """() what the penalty takes for the number of active features a token."""
        if self.config.sparsity == "tanh":
            return training.mean_per_token(self._squashed(training))
        threshold = training.pattern.gather(self.threshold)
        return training.mean_per_token(count_active(training.pre.detach(), threshold, self.config.bandwidth))

    def _shares(self, training: TrainingStep) -> Tensor:
        """The same by feature, (n_features,): on which share of the tokens each is active."""
        pattern = training.pattern
        if self.config.sparsity == "tanh":
            active = self._squashed(training)
        else:
            active = is_active(training.pre.detach(), pattern.gather(self.threshold), self.config.bandwidth)
        return pattern.total(active) / max(pattern.n_tokens, 1)

    def _squashed(self, training: TrainingStep) -> Tensor:
        magnitudes = training.values * training.pattern.gather(self.decoder_norms)
        return torch.tanh(self.config.tanh_scale * magnitudes)

    def _pre_act_loss(self, training: TrainingStep) -> Tensor:
        chosen, is_dead = dead_features(training.state)
        pre, norms = self.at_some(training.x, chosen)
        below = torch.relu(self.threshold[chosen] - pre) * (norms * is_dead)
        return training.mean_per_token(below)

    @torch.no_grad()
    def start_from(self, scaled: Tensor, active: int | None = None) -> None:
        """Puts every threshold at the quantile of the batch's pre-activations that leaves `initial_l0` a token."""
        if self.config.initial_threshold is not None:
            self.threshold.fill_(self.config.initial_threshold)
            return
        wanted = self.config.initial_l0 or active or _INITIAL_L0
        self.threshold.copy_(self.level_of(scaled, wanted).clamp(min=0))

    @torch.no_grad()
    def after_step(self, statistics: StepStatistics, state: StepState) -> None:
        """Keeps thresholds at 0 or more, and moves all of them where L0 is off what is wanted at this step.

        They answer to λ late: in a short run L0 would end above the target, or fall past it. And a λ of nearly nothing
        lets go of features but brings none back.
        """
        if state.steering is not None:
            pull = state.steering.pull(statistics)
            self.threshold.mul_(torch.where(pull > 0, -_SINKING * pull, -pull).exp())
        self.threshold.clamp_(min=0)


def _over_processes(own: Tensor, state: StepState) -> Tensor:
    """The mean over all processes of what each found in its own batch, with the gradient that each owes to its part.

    What is not linear takes this mean: squaring each process's own would punish the spread between processes as well.
    """
    if state.world_size == 1:
        return own
    mean = own.detach().clone()
    dist.all_reduce(mean)
    return mean / state.world_size + (own - own.detach())
