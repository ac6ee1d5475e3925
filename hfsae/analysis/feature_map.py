"""Where features stand on a map: near each other where they write alike, in groups of the most alike."""

import warnings
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from hfsae.autoencoder import SparseAutoencoder

MapMethod = Literal["pca", "umap"]
"""How features are laid out: by two principal components, or by UMAP (McInnes et al. 2018, arXiv:1802.03426)."""

# Groups are found in so many of the leading components, and at most so many groups.
_COMPONENTS, _GROUPS = 32, 12
# Decoder rows have many directions that are nearly as long as the leading ones, which takes many rounds.
_ITERATIONS = 30
# UMAP is chaotic: what differs by rounding at its start ends elsewhere. So it starts from so many steps.
_NEIGHBOURS, _STEPS = 15, 1000


@dataclass(frozen=True)
class FeatureMap:
    """Places of features on a map.

    Attributes:
        features: int64 (n,), the features that have a place, ascending.
        places: float32 (n, 2), of the unit decoder rows the two leading principal components, or what UMAP made.
        groups: int64 (n,), the group of each, from 0; the largest group comes first. None without scikit-learn.
        n_components: Of how many components the groups were made.
        explained: The share of the rows' variance that lies along each of the two; None by UMAP.
    """

    features: Tensor
    places: Tensor
    groups: Tensor | None
    n_components: int
    explained: tuple[float, float] | None


@torch.no_grad()
def feature_map(sae: SparseAutoencoder, features: Tensor, method: MapMethod = "pca") -> FeatureMap | None:
    """Lays features out by their unit decoder rows, and groups them by scikit-learn's k-means.

    Components come from a randomised decomposition (`torch.pca_lowrank`), which needs no matrix of all columns by all
    columns. Everything is seeded, so one SAE has one map.

    Args:
        sae: The SAE. Of a cross-layer transcoder a row is what a feature writes at all layers together.
        features: The features to be laid out, such as all that fire.
        method: `"pca"` for the two leading principal components; `"umap"` keeps neighbours together, by the cosine of
            their rows, and says nothing of distances between groups.

    Returns:
        The map; None for fewer than three features, which have none. Without scikit-learn it has no groups.

    Raises:
        ValueError: If there is no such method.
        ImportError: If the method is `"umap"` and umap-learn is not installed.
    """
    can_be_laid_out(method)
    features = features.sort().values
    if len(features) < 3:
        return None
    rows = _unit_rows(sae, features)
    centred = rows - rows.mean(0)
    variance = float(centred.square().sum())
    # It draws from the one generator that torch has, which stays as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        components = min(_COMPONENTS, *centred.shape)
        along, sizes, _ = torch.pca_lowrank(centred, q=components, center=False, niter=_ITERATIONS)
    places = along * sizes
    # The sign of a component is free: the feature that lies farthest out is on the positive side.
    places = places * places.gather(0, places.abs().argmax(0, keepdim=True)).sign()
    shares = [*(sizes[:2].square() / max(variance, 1e-12)).clamp(0, 1).tolist(), 0.0]
    two = torch.nn.functional.pad(places, (0, max(0, 2 - places.shape[1])))[:, :2]
    groups = _groups(places)
    if method == "umap":
        return FeatureMap(features, _by_umap(rows, two), groups, components, None)
    return FeatureMap(features, two, groups, components, (shares[0], shares[1]))


def can_be_laid_out(method: str) -> None:
    """Refuses methods that there are not, or not here.

    Args:
        method: As in `feature_map`.

    Raises:
        ValueError: If there is no such method.
        ImportError: If the package that it takes is not installed.
    """
    if method not in get_args(MapMethod):
        raise ValueError(f"maps are made by {' or '.join(get_args(MapMethod))}, and not by {method!r}.")
    if method == "umap":
        _umap()


def _umap() -> type:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of parts that need tensorflow
            from umap import UMAP  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError("a map by UMAP needs umap-learn: pip install 'hfsae[umap]'.") from error
    return UMAP


def _unit_rows(sae: SparseAutoencoder, features: Tensor) -> Tensor:
    """(features, columns) float32; rows that lie in blocks of columns are zero elsewhere."""
    width = max(first + block.shape[1] for first, block in sae.decoder_blocks)
    rows = torch.zeros(len(features), width, dtype=torch.float32)
    start = done = 0
    for first, block in sae.decoder_blocks:
        own = features[(features >= start) & (features < start + len(block))] - start
        rows[done : done + len(own), first : first + block.shape[1]] = block[own.to(block.device)].float().cpu()
        start, done = start + len(block), done + len(own)
    return torch.nn.functional.normalize(rows, dim=1)


def _groups(places: Tensor) -> Tensor | None:
    """k-means of places (n, k), the largest group numbered 0; None without scikit-learn."""
    try:
        from sklearn.cluster import KMeans
        from sklearn.exceptions import ConvergenceWarning
    except ImportError:
        return None
    wanted = min(_GROUPS, max(2, round((len(places) / 4) ** 0.5)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer places that differ than groups: then fewer groups
        means = KMeans(wanted, n_init=4, random_state=0)  # pyright: ignore[reportArgumentType]
        found = torch.from_numpy(means.fit_predict(places.numpy())).long()
    order = torch.bincount(found).argsort(descending=True, stable=True)
    return order.argsort()[found]


def _by_umap(rows: Tensor, start: Tensor) -> Tensor:
    """(n, 2) float32, from places on."""
    start = (start / start.abs().max().clamp(min=1e-12) * _STEPS).round() / _STEPS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a seed leaves one process
        made = _umap()(
            n_neighbors=min(_NEIGHBOURS, len(rows) - 1), metric="cosine", init=start.numpy(), random_state=0
        )
        return torch.from_numpy(made.fit_transform(rows.numpy())).float()
