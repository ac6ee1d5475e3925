"""Planted dictionaries: activations whose true features are known, and how well an SAE finds these.

True features lie in superposition, fire in groups, and some fire only where a parent fires. Such data were used by
Sharkey et al. 2022, and as a benchmark of architectures by SynthSAEBench (arXiv:2602.14687).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hfsae.autoencoder import SparseAutoencoder
from hfsae.autoencoder.signed import refuse_signed
from hfsae.functional.precision import own_precision
from hfsae.scores.matching import assigned
from hfsae.scores.noise import ConfidenceInterval, bootstrap, interval

_TOKENS_AT_ONCE = 4096


@dataclass(frozen=True)
class PlantedDictionary:
    """True features, and how they fire.

    Attributes:
        directions: (n, d), unit rows.
        rates: (n,), how often each fires; of a child how often it fires where its parent does.
        parents: int64 (n,), the feature without which each one does not fire; −1 for none. A parent has none itself.
        groups: int64 (n,), features of one group fire together more often than by chance.
        correlation: Of the normal variables by which the features of a group fire, from 0 to 1.
        noise: Standard deviation of what is added to every coordinate.
    """

    directions: Tensor
    rates: Tensor
    parents: Tensor
    groups: Tensor
    correlation: float
    noise: float

    @classmethod
    def plant(
        cls,
        d_in: int = 64,
        n_features: int = 256,
        *,
        active: float = 8.0,
        children: float = 0.25,
        group_size: int = 8,
        correlation: float = 0.3,
        noise: float = 0.02,
        seed: int = 0,
    ) -> "PlantedDictionary":
        """Draws a dictionary.

        Args:
            d_in: Width of activations.
            n_features: True features; more than `d_in` are in superposition.
            active: How many fire on a token, on average. Rates fall as 1 / rank^0.5.
            children: The share of features that fire only where a parent fires.
            group_size: Features that fire together.
            correlation: How strongly they do.
            noise: Standard deviation of the noise of a coordinate.
            seed: Of all that is drawn.

        Raises:
            ValueError: If there can be no such dictionary.
        """
        if min(d_in, n_features, group_size) < 1 or not 0 < active <= n_features / 4:
            raise ValueError(
                f"d_in={d_in}, n_features={n_features}, group_size={group_size}, active={active}: expected whole "
                "numbers of 1 or more, and at most a quarter of the features active."
            )
        if not (0 <= correlation <= 1 and 0 <= children <= 0.5 and noise >= 0):
            raise ValueError(
                f"correlation={correlation}, children={children}, noise={noise}: expected a correlation from 0 to 1, "
                "a share of children of at most 0.5, and no negative noise."
            )
        generator = torch.Generator().manual_seed(seed)
        # Not torch's generator: an SAE of the same seed would start from these very directions.
        drawn = torch.from_numpy(np.random.default_rng(seed).standard_normal((n_features, d_in))).float()
        directions = torch.nn.functional.normalize(drawn, dim=1)
        n_children = round(children * n_features)
        order = torch.randperm(n_features, generator=generator)
        parents = torch.full((n_features,), -1)
        roots = order[n_children:]
        parents[order[:n_children]] = roots[torch.arange(n_children) % len(roots)]
        rates = 1 / torch.arange(1, n_features + 1).double().sqrt()
        rates = rates[torch.randperm(n_features, generator=generator)]
        rates = (rates * active / rates.sum()).clamp(max=0.5)
        # Where its parent fires a child does so every third time; that keeps it rarer than the parent.
        rates[parents >= 0] = 1 / 3
        lacking = (
            active / (rates * torch.where(parents >= 0, rates[parents], torch.ones((), dtype=torch.float64))).sum()
        )
        rates[parents < 0] = (rates[parents < 0] * lacking).clamp(max=0.5)
        groups = torch.arange(n_features) // group_size
        return cls(directions, rates.float(), parents, groups, correlation, noise)

    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draws tokens.

        Args:
            n: How many.
            generator: Of what is drawn.

        Returns:
            Activations (n, d), and the values (n, features) that made them, 0 where a feature does not fire.
        """
        n_features = len(self.directions)
        shared = torch.randn(n, int(self.groups.max()) + 1, generator=generator, dtype=torch.float32)[:, self.groups]
        alone = torch.randn(n, n_features, generator=generator, dtype=torch.float32)
        normal = self.correlation**0.5 * shared + (1 - self.correlation) ** 0.5 * alone
        fires = normal > torch.special.ndtri(1 - self.rates.double()).float()
        has_parent = self.parents >= 0
        fires[:, has_parent] &= fires[:, self.parents[has_parent]]
        values = fires * (1 + 0.25 * torch.randn(n, n_features, generator=generator, dtype=torch.float32)).abs()
        noise = self.noise * torch.randn(n, self.directions.shape[1], generator=generator, dtype=torch.float32)
        return values @ self.directions + noise, values


@dataclass(frozen=True)
class Found:
    """How well an SAE finds true features; the intervals are over these.

    Attributes:
        mean_max_cosine: The mean, over true features, of the largest cosine with a decoder row.
        mcc: The mean cosine of true features and decoder rows that are paired one to one.
        f1: The mean F1 of partners, that tell where a true feature fires. One without a partner has 0.
        l0: Active features of the SAE a token.
    """

    mean_max_cosine: ConfidenceInterval
    mcc: ConfidenceInterval
    f1: ConfidenceInterval
    l0: float

    def recorded(self) -> dict[str, Any]:
        """The figures, in values that JSON can hold."""
        return {**{name: vars(getattr(self, name)) for name in ("mean_max_cosine", "mcc", "f1")}, "l0": self.l0}


@torch.no_grad()
@own_precision()
def find_planted(
    sae: SparseAutoencoder, planted: PlantedDictionary, *, n_tokens: int = 16_384, n_draws: int = 1000, seed: int = 1
) -> Found:
    """Measures how many true features an SAE has found, and how well it tells where they fire.

    Args:
        sae: The SAE, trained on samples of the dictionary.
        planted: The dictionary.
        n_tokens: Tokens on which F1 and L0 are measured.
        n_draws: Draws of the bootstrap over true features.
        seed: Of the tokens, which training must not have seen, and of the draws.

    Raises:
        ValueError: If the SAE is of another width, or its features may be negative.
        ImportError: If scipy is not installed.
    """
    refuse_signed(sae, "finding planted features")
    n, d_in = planted.directions.shape
    if sae.config.d_in != d_in or sae.config.is_transcoder or sae.config.is_crosscoder:
        raise ValueError(f"the dictionary is of activations of width {d_in}: expected an SAE of that width.")
    rows = torch.nn.functional.normalize(sae.feature_directions.detach().float().cpu(), dim=1)
    cosines = planted.directions @ rows.T
    true, learned = assigned(cosines)
    generator = torch.Generator().manual_seed(seed)
    both, fires, says = (torch.zeros(len(true), dtype=torch.float64) for _ in range(3))
    l0 = 0.0
    for start in range(0, n_tokens, _TOKENS_AT_ONCE):
        activations, values = planted.sample(min(_TOKENS_AT_ONCE, n_tokens - start), generator)
        features = sae.encode(activations.to(sae.device)).cpu() > 0
        l0 += float(features.sum()) / n_tokens
        truly, partner = values[:, true] > 0, features[:, learned]
        both += (truly & partner).sum(0)
        fires += truly.sum(0)
        says += partner.sum(0)
    figures = torch.zeros(n, 3, dtype=torch.float64)
    figures[:, 0] = cosines.amax(1)
    figures[true, 1] = cosines[true, learned].double()
    figures[true, 2] = 2 * both / (fires + says).clamp(min=1)
    table = figures.numpy()
    draws = bootstrap(table, lambda sums: sums / n, n_draws=n_draws, seed=seed)
    largest, paired, f1 = (interval(value, draws[:, column]) for column, value in enumerate(table.mean(0).tolist()))
    return Found(largest, paired, f1, l0)
