"""Which features of two SAEs are the same: pairs one to one, by the cosine of their decoder rows.

The share of features that a second run finds again tells how stable they are (Paulo and Belrose 2025,
arXiv:2501.16615). Two runs from one start resemble each other by that start, so they do not tell (arXiv:2606.02061).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hfsae.autoencoder import SparseAutoencoder
from hfsae.autoencoder.given import refuse_no_sae
from hfsae.autoencoder.signed import refuse_signed
from hfsae.configuration import SAEConfig
from hfsae.functional.precision import own_precision
from hfsae.hub.metadata import recorded_portable_name
from hfsae.identity import weights_sha256
from hfsae.scores.needed import needed
from hfsae.scores.noise import ConfidenceInterval, bootstrap, interval
from hfsae.scores.recipe import two_recipes

SAME = 0.7
"""The cosine from which two features count as the same."""

# An assignment of n features takes 8 n² bytes and up to n³ steps: about an hour at this width.
_WIDEST = 40_000


@dataclass(frozen=True)
class Matching:
    """Pairs of features of two SAEs.

    Attributes:
        first: int64 (m,), features of the first SAE, ascending; m is the number of features of the narrower one.
        second: int64 (m,), their partners in the second.
        cosines: float32 (m,), of the decoder rows.
        encoder_cosines: float32 (m,), of the encoder rows of these pairs.
        mean_cosine: The mean of `cosines`, with its interval over pairs.
        shared: The share of pairs whose cosine is `SAME` or more.
        shared_by_both: The share whose encoder rows are as close, too.
        chance: The mean cosine that the first SAE has with random directions, as many as the second has.
        one_start: Why the two count as runs from one start; None where nothing says so.
        two_places: Why the two are no runs at one place of one model; None where nothing says so.
        two_recipes: In what the two differ beside their seed; None where nothing says so.
    """

    first: Tensor
    second: Tensor
    cosines: Tensor
    encoder_cosines: Tensor
    mean_cosine: ConfidenceInterval
    shared: ConfidenceInterval
    shared_by_both: ConfidenceInterval
    chance: float
    one_start: str | None
    two_places: str | None = None
    two_recipes: str | None = None

    @property
    def objection(self) -> str | None:
        """Why the figures do not tell of stability; None where nothing speaks against it."""
        return self.two_places or self.one_start or self.two_recipes

    @property
    def stability(self) -> ConfidenceInterval:
        """The share of features that both runs have.

        Raises:
            ValueError: If the runs have one start, which makes them alike whatever they learned, or two places,
                or differ in more than their seed.
        """
        if self.objection is not None:
            what = "Train one of them with another seed." if self.one_start else "Match runs of one recipe."
            what = "Match runs at one place." if self.two_places else what
            raise ValueError(f"the two do not tell of stability: {self.objection}. {what}")
        return self.shared

    def recorded(self) -> dict[str, Any]:
        """The figures, in values that JSON can hold."""
        figures = {name: vars(getattr(self, name)) for name in ("mean_cosine", "shared", "shared_by_both")}
        reasons = {name: getattr(self, name) for name in ("one_start", "two_places", "two_recipes")}
        return {**figures, "n_pairs": len(self.first), "chance": self.chance, **reasons}


@own_precision()
def match_features(a: SparseAutoencoder, b: SparseAutoencoder, *, n_draws: int = 1000, seed: int = 0) -> Matching:
    """Pairs the features of two SAEs, so that the sum of the cosines of their decoder rows is largest (Kuhn 1955).

    Args:
        a: An SAE.
        b: Another one, of the same place.
        n_draws: Draws of the bootstrap over pairs.
        seed: Of the draws, and of the random directions.

    Returns:
        The pairs. Of two widths, features of the wider SAE stay alone.

    Raises:
        ValueError: If the SAEs are of different widths of activations, too wide to be matched, or not finite. Also
            for cross-layer transcoders, for features that may be negative, and for no draws.
        TypeError: If one is no SAE.
        ImportError: If scipy is not installed.

    Example:
        >>> import torch
        >>> from hfsae import SAE, TopKSAEConfig
        >>> a, b = (SAE.from_config(TopKSAEConfig(d_in=8, n_features=16, k=2)) for _ in range(2))
        >>> match_features(a, a).mean_cosine.value > match_features(a, b).mean_cosine.value
        True
    """
    for sae in (a, b):
        refuse_no_sae(sae)
    _refuse_unlike(a.config, b.config)
    for sae in (a, b):
        refuse_signed(sae, "matching features")
    for which, sae in (("first", a), ("second", b)):
        if not all(bool(weights.isfinite().all()) for weights in (sae.feature_directions, sae.encoder.weight)):
            raise ValueError(f"weights of the {which} SAE are NaN or infinite, and have no cosine.")
    rows = [_unit(sae.feature_directions) for sae in (a, b)]
    encoders = [_unit(sae.encoder.weight) for sae in (a, b)]
    # Not torch's generator: an SAE of this seed drew its first weights from that one.
    random = torch.from_numpy(np.random.default_rng(seed).standard_normal(tuple(rows[1].shape)))
    first, second = assigned(rows[0] @ rows[1].T)
    cosines = (rows[0][first] * rows[1][second]).sum(1)
    of_encoders = (encoders[0][first] * encoders[1][second]).sum(1)
    by_chance = rows[0] @ _unit(random).T
    same = cosines >= SAME
    figures = torch.stack([cosines, same.float(), (same & (of_encoders >= SAME)).float()], 1).double().numpy()
    draws = bootstrap(figures, lambda sums: sums / len(figures), n_draws=n_draws, seed=seed)
    mean_cosine, shared, by_both = (
        interval(value, draws[:, column]) for column, value in enumerate(figures.mean(0).tolist())
    )
    return Matching(
        first=first,
        second=second,
        cosines=cosines,
        encoder_cosines=of_encoders,
        mean_cosine=mean_cosine,
        shared=shared,
        shared_by_both=by_both,
        chance=float(by_chance[assigned(by_chance)].mean()),
        one_start=one_start(a, b),
        two_places=two_places(a.config, b.config),
        two_recipes=two_recipes(a.config, b.config),
    )


def assigned(similarity: Tensor) -> tuple[Tensor, Tensor]:
    """The rows and the columns of the pairs whose sum is largest, each row and column once.

    Args:
        similarity: (n, m).

    Raises:
        ImportError: If scipy is not installed.
    """
    optimize = needed("scipy.optimize")
    found: tuple[NDArray[np.int64], ...] = optimize.linear_sum_assignment(similarity.double().numpy(), maximize=True)
    rows, columns = map(torch.from_numpy, found)
    return rows, columns


def one_start(a: SparseAutoencoder, b: SparseAutoencoder) -> str | None:
    """Why two SAEs count as runs from one start, in words; None where nothing that is recorded says so.

    Args:
        a: An SAE.
        b: Another one.
    """
    if weights_sha256(a) == weights_sha256(b):
        return "their weights are the same"
    starts = [_start(sae.config) for sae in (a, b)]
    for this, other in (starts, starts[::-1]):
        if this["init_from"] is not None and this["init_from"] in (other["init_from"], other["folder"]):
            return f"they were trained on from one start, {this['init_from']}"
    drawn = [None if start["init_from"] is not None else start["seed"] for start in starts]
    if drawn[0] is not None and drawn[0] == drawn[1] and a.config.d_in == b.config.d_in:
        # Of two widths, too: the narrower one drew the first rows of the wider one.
        return f"both drew their first weights with seed {drawn[0]}"
    return None


def two_places(a: SAEConfig, b: SAEConfig) -> str | None:
    """Why two SAEs are not of one place of one model, in words; None where nothing that is recorded says so.

    A model is told by the last part of its name, since folders move.

    Args:
        a: The config of an SAE.
        b: That of another one.
    """
    models = [Path(config.base_model).name for config in (a, b) if config.base_model]
    # One place may go by its path in the one and by its portable name in the other.
    portable = {config.hook_point: name for config in (a, b) if (name := recorded_portable_name(config))}
    read, written = (
        [[portable.get(place, place) for place in getattr(config, side)] for config in (a, b)]
        for side in ("source_places", "target_places")
    )
    unlike = [this != other for this, other in (read, written) if None not in (*this, *other)]
    if len(set(models)) > 1 or any(unlike):
        return f"the one {a.reads_and_writes}, the other {b.reads_and_writes}"
    return None


def run_name(source: str | Path, sae: SparseAutoencoder) -> str:
    """What a card calls another run: the last part of its name, and its seed where that is recorded.

    Args:
        source: Its folder or Hub repository.
        sae: The SAE.
    """
    seed = _start(sae.config)["seed"]
    name = Path(source).name or "another run"
    return name if seed is None else f"{name} (seed {seed})"


def starts_are_known(*saes: SparseAutoencoder) -> bool:
    """Whether each SAE records what it started from.

    Args:
        *saes: The SAEs.
    """
    starts = [_start(sae.config) for sae in saes]
    return all(start["init_from"] is not None or start["seed"] is not None for start in starts)


def _start(config: SAEConfig) -> dict[str, Any]:
    training = config.training or {}
    return {name: training.get(name) for name in ("init_from", "seed", "folder")}


def _refuse_unlike(a: SAEConfig, b: SAEConfig) -> None:
    if a.is_cross_layer or b.is_cross_layer:
        raise ValueError(
            "a feature of a cross-layer transcoder has a decoder row for each layer that it writes at: matching is "
            "for SAEs whose features have one."
        )
    widths = [(config.d_in, sum(config.output_widths)) for config in (a, b)]
    if widths[0] != widths[1]:
        shown = [f"{read}" if read == written else f"{read} to {written}" for read, written in widths]
        raise ValueError(
            f"the one SAE is of activations of width {shown[0]}, the other of {shown[1]}: features can only be "
            "matched at one place of one model."
        )
    if max(a.n_features, b.n_features) > _WIDEST:
        raise ValueError(
            f"{a.n_features:,} and {b.n_features:,} features: an assignment of more than {_WIDEST:,} takes hours and "
            f"{8 * a.n_features * b.n_features / 2**30:.0f} GiB. Match narrower SAEs."
        )


def _unit(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows.detach().float().cpu(), dim=1)
