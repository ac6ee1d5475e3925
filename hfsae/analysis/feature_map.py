"""Where features stand on a map: near each other where they write alike, in groups of the most alike."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hfsae.autoencoder import SparseAutoencoder

# Groups are found in so many of the leading components, and at most so many groups.
_COMPONENTS, _GROUPS = 32, 12
_ITERATIONS = 30


@dataclass(frozen=True)
class FeatureMap:
    """Places of features on a map.

    Attributes:
        features: int64 (n,), the features that have a place, ascending.
        places: float32 (n, 2), the two leading principal components of the unit decoder rows.
        groups: int64 (n,), the group of each, from 0; the largest group comes first.
        n_components: Of how many components the groups were made.
        explained: The share of the rows' variance that lies along each of the two.
    """

    features: Tensor
    places: Tensor
    groups: Tensor
    n_components: int
    explained: tuple[float, float]


@torch.no_grad()
def feature_map(sae: SparseAutoencoder, features: Tensor) -> FeatureMap | None:
    """Lays features out by the principal components of their unit decoder rows, and groups them by k-means.

    The first components come from subspace iteration, which needs no matrix of all columns by all columns. Everything
    is seeded, so one SAE has one map.

    Args:
        sae: The SAE. Of a cross-layer transcoder a row is what a feature writes at all layers together.
        features: The features to be laid out, such as all that fire.

    Returns:
        The map; None for fewer than three features, which have none.
    """
    features = features.sort().values
    if len(features) < 3:
        return None
    rows = _Rows(sae, features)
    start = torch.randn(rows.width, min(_COMPONENTS, rows.width, len(features)), generator=_seeded())
    axes = torch.linalg.qr(start).Q
    for _ in range(_ITERATIONS):
        axes = torch.linalg.qr(rows.back(rows.along(axes))).Q
    # Within the subspace, its own principal components.
    spread, turn = torch.linalg.eigh(torch.cov(rows.along(axes).T).reshape(axes.shape[1], -1))
    order = spread.argsort(descending=True)
    places = rows.along(axes @ turn[:, order])
    # The sign of a component is free: the feature that lies farthest out is on the positive side.
    places = places * places.gather(0, places.abs().argmax(0, keepdim=True)).sign()
    shares = [*(spread[order][:2] / max(rows.variance, 1e-12)).clamp(0, 1).tolist(), 0.0]
    two = torch.nn.functional.pad(places, (0, max(0, 2 - places.shape[1])))[:, :2]
    return FeatureMap(features, two, _groups(places), places.shape[1], (shares[0], shares[1]))


class _Rows:
    """Unit decoder rows less their mean, which may lie in blocks of columns and are never put together."""

    def __init__(self, sae: SparseAutoencoder, features: Tensor):
        self._blocks: list[tuple[slice, slice, Tensor]] = []
        start, done, self.n = 0, 0, len(features)
        for first, block in sae.decoder_blocks:
            own = features[(features >= start) & (features < start + len(block))] - start
            unit = torch.nn.functional.normalize(block[own.to(block.device)].float().cpu(), dim=1)
            self._blocks.append((slice(done, done + len(own)), slice(first, first + block.shape[1]), unit))
            start, done = start + len(block), done + len(own)
        self.width = max(columns.stop for _, columns, _ in self._blocks)
        self._mean = torch.zeros(self.width)
        for _, columns, rows in self._blocks:
            self._mean[columns] += rows.sum(0) / self.n
        squares = sum(float(rows.square().sum()) for _, _, rows in self._blocks)
        self.variance = (squares - self.n * float(self._mean.square().sum())) / (self.n - 1)

    def along(self, axes: Tensor) -> Tensor:
        """(n, k) coordinates of the rows on axes (width, k)."""
        return torch.cat([rows @ axes[columns] for _, columns, rows in self._blocks]) - self._mean @ axes

    def back(self, coordinates: Tensor) -> Tensor:
        """(width, k): the rows transposed times coordinates (n, k)."""
        made = -torch.outer(self._mean, coordinates.sum(0))
        for places, columns, rows in self._blocks:
            made[columns] += rows.T @ coordinates[places]
        return made


def _groups(places: Tensor) -> Tensor:
    """k-means of places (n, k), begun with far-apart ones (k-means++), the largest group numbered 0."""
    wanted = min(_GROUPS, max(2, round((len(places) / 4) ** 0.5)))
    random, centres = _seeded(), places[:1]
    while len(centres) < wanted:
        apart = torch.cdist(places, centres).amin(1).square()
        if not apart.any():
            break
        centres = torch.cat([centres, places[torch.multinomial(apart, 1, generator=random)]])
    groups = torch.cdist(places, centres).argmin(1)
    for _ in range(_ITERATIONS):
        sums = torch.zeros_like(centres).index_add_(0, groups, places)
        sizes = torch.bincount(groups, minlength=len(centres))[:, None]
        centres = torch.where(sizes > 0, sums / sizes.clamp(min=1), centres)
        again = torch.cdist(places, centres).argmin(1)
        if torch.equal(again, groups):
            break
        groups = again
    sizes = torch.bincount(groups, minlength=len(centres))
    order = sizes.argsort(descending=True, stable=True)
    return order.argsort()[groups]


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)
