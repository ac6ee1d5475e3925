"""What a circuit is made of: features that read at one place and write at others, linear at one prompt."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hfsae.autoencoder.input_transform import LAYER_NORM_EPS, taken_apart
from hfsae.autoencoder.model import SparseAutoencoder
from hfsae.functional import SparsePattern
from hfsae.hooks import HookPoint


@dataclass(frozen=True)
class ActiveFeatures:
    """The features that fire in a prompt of S tokens, each as a vector that reads and vectors that are written.

    A feature's value is `readers[i] · x[positions[i]] + constants[i]`, where x is what is read.

    Attributes:
        positions: (N,) int64, where they fire, in rising order.
        features: (N,) int64, which.
        values: (N,).
        readers: (N, d_in), in the units of the model's activations.
        constants: (N,), what their biases add.
        written: What each adds at each place where it writes, its value included: (N, d_out).
    """

    positions: Tensor
    features: Tensor
    values: Tensor
    readers: Tensor
    constants: Tensor
    written: Mapping[HookPoint, Tensor]

    def __len__(self) -> int:
        return len(self.positions)


class FeatureSource:
    """One SAE or transcoder in a prompt.

    Args:
        owner: The SAE's name.
        sae: The SAE, in the dtype in which the model runs.
        reads: Where it reads.
        writes: Where it writes.
        keep: (S,) bool, the tokens that count. At the others the model keeps its own activation.

    Attributes:
        writes: Where it writes. At the first of these stands what is constant too, and what `skip` passes on.

    Raises:
        ValueError: If what it computes is not linear where its features are known.
    """

    writes: tuple[HookPoint, ...]

    def __init__(self, owner: str, sae: SparseAutoencoder, reads: HookPoint, writes: HookPoint, keep: Tensor):
        if sae.config.skip and sae.config.input_transform != "none":
            raise ValueError(
                f"SAE {owner!r} passes a normalised input on (skip with input_transform="
                f"{sae.config.input_transform!r}), which is not linear."
            )
        if sae.encoder_passes > 1:
            raise ValueError(
                f"SAE {owner!r} ({sae.config.architecture}) finds features one after the other, so each depends on "
                "those before it: take one whose encoder reads once, such as topk."
            )
        self.owner, self.sae = owner, sae
        self.reads, self.writes = reads, (writes,)
        self._keep = keep

    @torch.no_grad()
    def active(self, x: Tensor) -> ActiveFeatures:
        """The features that fire.

        Args:
            x: (S, d_in), what is read.
        """
        sae, config = self.sae, self.sae.config
        found = sae.encode_sparse(x)
        fires = (found.values != 0) & self._keep[:, None]
        positions = fires.nonzero()[:, 0]
        features = found.indices[fires]
        rows, bias = sae.encoder_rows[features], sae.encoder_bias[features]
        pre = (sae.encoder_input(sae.scaled(x))[positions] * rows).sum(-1) + bias
        values, slopes = self._values_and_slopes(pre, positions, features, len(x))
        center = sae.b_dec if config.subtract_b_dec else torch.zeros_like(rows[:1]).sum(0)
        readers = rows * sae._scale_in.to(rows.dtype)
        if config.input_transform in ("center", "layer_norm"):
            readers = readers - readers.mean(-1, keepdim=True)
        spread_in, spread_out = self._spreads(x)
        directions = (sae.decoder_rows[features] / sae._scale_out.to(rows.dtype)) * spread_out[positions]
        return ActiveFeatures(
            positions,
            features,
            values,
            readers=slopes[:, None] * readers / spread_in[positions],
            constants=slopes * (bias - rows @ center) + values - slopes * pre,
            written={place: values[:, None] * directions for place in self.writes},
        )

    @torch.no_grad()
    def values_of(self, x: Tensor, feature: int) -> Tensor:
        """(N,), the values of one feature at what is read, (N, d_in)."""
        return self.sae.encode(x, [feature])[:, 0]

    def _values_and_slopes(
        self, pre: Tensor, positions: Tensor, features: Tensor, n_tokens: int
    ) -> tuple[Tensor, Tensor]:
        """Values (N,) of pre-activations (N,), and how they change with these, which is 1 for most architectures."""
        per_token = torch.bincount(positions, minlength=n_tokens)
        pattern = SparsePattern(features, per_token, self.sae.config.n_features)
        with torch.enable_grad():
            leaf = pre.detach().requires_grad_()
            values = self.sae.activation(pattern, leaf)
            (slopes,) = torch.autograd.grad(values.sum(), leaf)
        return values.detach(), slopes

    def _spreads(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What a token is divided by on the way in, and multiplied by on the way out: (S, 1) each."""
        _, _, spread = taken_apart(x, self.sae.config.input_transform)
        if not isinstance(spread, Tensor):
            ones = torch.ones_like(x[:, :1])
            return ones, ones
        if self.sae.config.input_transform == "layer_norm":
            return spread + LAYER_NORM_EPS, spread
        return spread.clamp(min=torch.finfo(x.dtype).tiny), spread

    @torch.no_grad()
    def constant(self, x: Tensor) -> Tensor:
        """(S, d_out), what the decoder's bias writes; 0 at tokens that do not count."""
        bias = self.sae.b_dec / self.sae._scale_out.to(self.sae.b_dec.dtype)
        return torch.where(self._keep[:, None], bias * self._spreads(x)[1], 0.0)

    def passed_on(self, x: Tensor) -> Tensor | None:
        """(batch, S, d_out), what `skip` passes on of what is read, (batch, S, d_in); None where there is no skip."""
        if not self.sae.config.skip:
            return None
        sae, dtype = self.sae, self.sae.b_dec.dtype
        through = (x * sae._scale_in.to(dtype)) @ sae.W_skip.detach().T / sae._scale_out.to(dtype)
        return torch.where(self._keep[None, :, None], through, 0.0)
