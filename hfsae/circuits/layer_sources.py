"""The features of one layer of a cross-layer transcoder, which write at that layer and at all later ones."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hfsae.architectures.cross_layer import CrossLayer
from hfsae.circuits.feature_sources import ActiveFeatures, FeatureSource
from hfsae.hooks import HookPoint


class LayerSource(FeatureSource):
    """One layer of a cross-layer transcoder in a prompt. Its features have the numbers that the transcoder gives them.

    Args:
        owner: The transcoder's name.
        sae: The transcoder, in the dtype in which the model runs.
        layer: The layer's number in it.
        reads: Where the layer reads.
        writes: Where it writes, and each later layer.
        keep: (S,) bool, the tokens that count.
    """

    sae: CrossLayer

    def __init__(
        self, owner: str, sae: CrossLayer, layer: int, reads: HookPoint, writes: Sequence[HookPoint], keep: Tensor
    ):
        super().__init__(owner, sae, reads, writes[0], keep)
        self.writes = tuple(writes)
        self._layer = layer
        self._first = layer * sae.config.features_per_layer

    @torch.no_grad()
    def active(self, x: Tensor) -> ActiveFeatures:
        sae, layer = self.sae, self._layer
        found = sae.encode_layer(layer, x)
        fires = (found.values != 0) & self._keep[:, None]
        positions, own = fires.nonzero()[:, 0], found.indices[fires]
        features = own + self._first
        readers = sae.encoder.weight[features] * sae.input_scale[layer].to(sae.dtype)
        bias = sae.encoder.bias[features]
        pre = (readers * x[positions]).sum(-1) + bias
        values, slopes = self._values_and_slopes(pre, positions, features, len(x))
        written = {
            place: values[:, None] * self._directions(own, layer + later) for later, place in enumerate(self.writes)
        }
        constants = slopes * (bias - pre) + values
        return ActiveFeatures(positions, features, values, slopes[:, None] * readers, constants, written)

    def _directions(self, own: Tensor, target: int) -> Tensor:
        """(N, d_out), what features of the layer, numbered within it, write at a later one."""
        return self.sae.rows_between(self._layer, target)[own] / self.sae.output_scale[target].to(self.sae.dtype)

    def values_of(self, x: Tensor, feature: int) -> Tensor:
        return self.sae.encode_layer(self._layer, x).to_dense()[:, feature - self._first]

    @torch.no_grad()
    def constant(self, x: Tensor) -> Tensor:
        bias = self.sae.b_dec.split(self.sae.config.output_widths)[self._layer]
        bias = bias / self.sae.output_scale[self._layer].to(bias.dtype)
        return torch.where(self._keep[:, None], bias, 0.0)

    def passed_on(self, x: Tensor) -> Tensor | None:
        if not self.sae.config.skip:
            return None
        scale = (self.sae.input_scale[self._layer] / self.sae.output_scale[self._layer]).to(x.dtype)
        through = (x * scale) @ self.sae.W_skip[self._layer].detach().T
        return torch.where(self._keep[None, :, None], through, 0.0)
