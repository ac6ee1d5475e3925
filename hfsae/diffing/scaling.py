"""Latent scaling: how much of what each source holds goes along a feature, by least squares in one pass over a text.

A decoder row of length 0 says that a source has no use for a feature. A sparsity penalty makes such rows of its own
accord (Minder et al. 2025, arXiv:2504.02922). It shrinks a weak one away (complete shrinkage), or splits one concept
into a feature for each source (latent decoupling). What a source really holds then lies in its error, or in the
reconstruction that other features make.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hfsae.autoencoder.model import SparseAutoencoder
from hfsae.functional.patterns import SparsePattern

# Rows that are encoded at once.
_ROWS = 4096


class LatentScaling(NamedTuple):
    """How strongly each feature goes through each source: (n_features, sources) float64, NaN where it never fires.

    f(x) is a feature's value, d its row in the source where that is longest, and y what is explained. Then β = argmin
    Σ_x ‖y(x) − β f(x) d‖² = Σ_x f(x) ⟨y(x), d⟩ / (‖d‖² Σ_x f(x)²).

    Attributes:
        error: β of a source's error, to which what the feature itself writes there is given back.
        reconstruction: β of a source's reconstruction, the feature's own part in it, without `b_dec`.
        activation: β of a source's activation, less `b_dec`: the sum of the first and of what other features write.
    """

    error: Tensor
    reconstruction: Tensor
    activation: Tensor


class Firing(NamedTuple):
    """How often and how strongly features fire.

    Attributes:
        tokens_firing: int64 (n_features,).
        mean: float64 (n_features,), where a feature fires; 0 where it never does.
        maximum: float32 (n_features,).
    """

    tokens_firing: Tensor
    mean: Tensor
    maximum: Tensor


class DiffSums:
    """The sums over a text that latent scaling is made of; memory grows with features × sources alone.

    All is in scaled space, in which every source has a mean norm of √width: there the sources can be compared.

    Args:
        sae: A crosscoder. Where its sources have different widths there is no latent scaling: a row of one source is
            then no direction in another.

    Attributes:
        n_tokens: Tokens added so far.
    """

    def __init__(self, sae: SparseAutoencoder):
        self.n_tokens = 0
        self._sae: Any = sae
        rows: Tensor = self._sae.decoder_rows.detach().float()
        self._rows = [part.contiguous() for part in rows.split(self._sae.config.source_widths, 1)]
        self._longest: Tensor | None = None
        n, sources = self._sae.source_norms.shape
        if len(set(self._sae.config.source_widths)) == 1:
            longest = self._sae.source_norms.argmax(1)[None, :, None].expand(1, *self._rows[0].shape)
            self._longest = torch.stack(self._rows).gather(0, longest)[0].contiguous()

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float64)

        self._errors, self._reconstructions = zeros(n, sources), zeros(n, sources)
        self._squares, self._totals, self._maxima = zeros(n), zeros(n), torch.zeros(n, dtype=torch.float32)
        self._firing = torch.zeros(n, dtype=torch.int64)
        self._squared_error, self._squared = zeros(sources), zeros(sources)
        self._sum: list[Tensor] = [zeros(width) for width in self._sae.config.source_widths]

    @torch.no_grad()
    def add(self, activations: Tensor | Mapping[str, Tensor]) -> None:
        """Adds activations (N, d_in) of all sources, joined or by source.

        Raises:
            ValueError, TypeError: As `Crosscoder.join`, and if a value is not finite.
        """
        sae = self._sae
        joined = sae.join(activations)
        for rows in joined.reshape(-1, joined.shape[-1]).split(_ROWS):
            if not rows.isfinite().all():
                raise ValueError("activations hold what is no finite number: sources cannot be compared on them.")
            self._add(rows.to(sae.W_dec.device))

    def _add(self, rows: Tensor) -> None:
        sae = self._sae
        features = sae.encode_sparse(rows)
        pattern, values = features.pattern, features.entry_values.float()
        assert isinstance(pattern, SparsePattern), "encode_sparse gives entries"
        self.n_tokens += len(rows)
        centred = (sae.scaled(rows).float() - sae.b_dec.float()).split(sae.config.source_widths, 1)
        for source, (held, decoder) in enumerate(zip(centred, self._rows, strict=True)):
            written = pattern.token_sum(values, decoder)
            error = held - written
            explaining = ((self._errors, error), (self._reconstructions, written)) if self._longest is not None else ()
            for sums, explained in explaining:
                assert self._longest is not None
                products = pattern.sampled_product(explained, self._longest).double() * values.double()
                sums[:, source].index_add_(0, pattern.features.cpu(), products.cpu())
            self._squared_error[source] += error.double().square().sum().cpu()
            self._squared[source] += held.double().square().sum().cpu()
            self._sum[source] += held.double().sum(0).cpu()
        fired, values = pattern.features.cpu(), values.cpu()
        self._squares.index_add_(0, fired, values.double().square())
        self._totals.index_add_(0, fired, values.double())
        self._maxima.scatter_reduce_(0, fired, values, "amax")
        self._firing += torch.bincount(fired[values > 0], minlength=len(self._firing))

    def scaling(self) -> LatentScaling | None:
        """The least squares over all that was added; None where the sources have different widths.

        Raises:
            ValueError: If nothing was.
        """
        self._refuse_nothing()
        if self._longest is None:
            return None
        longest = self._longest.double().cpu()
        # ⟨d of each source, d⟩
        along = torch.stack([(rows.double().cpu() * longest).sum(1) for rows in self._rows], 1)
        squares = self._squares[:, None]
        whole = squares * longest.square().sum(1, keepdim=True)
        whole = whole.where(whole > 0, torch.nan)
        activation = (self._errors + self._reconstructions) / whole
        return LatentScaling((self._errors + squares * along) / whole, self._reconstructions / whole, activation)

    def firing(self) -> Firing:
        """How often and how strongly features fired."""
        self._refuse_nothing()
        return Firing(self._firing, self._totals / self._firing.clamp(min=1), self._maxima)

    def explained_variance(self) -> dict[str, float]:
        """1 − Σ ‖error‖² / Σ ‖x − mean‖² of each source, over all that was added."""
        self._refuse_nothing()
        around_mean = self._squared - torch.stack([total.square().sum() for total in self._sum]) / self.n_tokens
        explained = 1 - self._squared_error / around_mean
        return dict(zip(self._sae.config.source_names, explained.tolist(), strict=True))

    def _refuse_nothing(self) -> None:
        if not self.n_tokens:
            raise ValueError("there are no activations to compare the sources on: no token of the text counts.")
