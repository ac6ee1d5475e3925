"""Every architecture in each form that its config offers, with the reference that says what a step must compute."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hfsae import SAE
from hfsae.architectures import config_class_of
from hfsae.autoencoder.outputs import StepState
from hfsae.functional import reference
from hfsae.functional.reference import Weights

D_IN, N_FEATURES, K = 6, 24, 3
HAVE_K = ("topk", "abs_topk", "matching_pursuit", "batch_topk", "matryoshka", "crosscoder", "topk_crosscoder")
TIED = ("matching_pursuit",)
"""Those whose decoder rows are their encoder's: no biases, and neither transcoders nor what scales one of the two."""
CROSSCODERS = ("crosscoder", "topk_crosscoder", "jumprelu_crosscoder", "standard_crosscoder")
CROSS_LAYER = ("cross_layer_transcoder", "topk_cross_layer_transcoder", "jumprelu_cross_layer_transcoder")
"""Those that read and write several layers of a model, which have tests of their own."""
SHARE_A_BUDGET = ("batch_topk", "matryoshka", "matryoshka-recipe", "crosscoder")
"""Variants whose choice of features spans the batch."""

COEFFICIENT, TARGET_L0, BANDWIDTH = 0.3, 3.0, 0.6


def sources(architecture: str, d_in: int) -> dict[str, Any]:
    """Config fields of two sources, unequal ones of a crosscoder, one where there is but one dimension; else none."""
    if architecture in CROSS_LAYER:
        return {"source_names": ["first", "second"], "source_widths": [d_in // 2] * 2}
    if architecture not in CROSSCODERS:
        return {}
    widths = [d_in] if d_in == 1 else [d_in // 3 or 1, d_in - (d_in // 3 or 1)]
    return {"source_names": ["base", "tuned"][: len(widths)], "source_widths": widths}


def weights_of(sae: SAE) -> Weights:
    return Weights(sae.encoder.weight, sae.encoder.bias, sae.W_dec, sae.b_dec)


@dataclass(frozen=True)
class Variant:
    """One form of an architecture.

    Args:
        architecture: Its registered name.
        reference: Features and loss in scaled space, from the SAE's own parameters.
        options: Config fields.
    """

    architecture: str
    reference: Callable[[Any, Tensor], tuple[Tensor, Tensor]]
    options: dict[str, Any] = field(default_factory=dict)

    def make(
        self, d_in: int = D_IN, n_features: int = N_FEATURES, *, dtype: torch.dtype = torch.float64, **options: Any
    ) -> SAE:
        """An SAE whose every tensor is away from its trivial start."""
        if self.architecture in HAVE_K:
            options.setdefault("k", min(K, n_features))
        sizes = {"d_in": d_in, "n_features": n_features, **sources(self.architecture, d_in)}
        options = {**sizes, **self.options, **options}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            sae = SAE.from_config(config_class_of(self.architecture)(**options)).to(dtype)
        scramble(sae)
        return sae


@torch.no_grad()
def scramble(sae: SAE, seed: int = 0) -> None:
    """Random values for everything, thresholds and scales positive; encoder rows no longer tied to decoder rows."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in [*sae.named_parameters(), *sae.named_buffers()]:
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        if name in ("input_scale", "output_scale"):
            tensor.copy_(1.5 + 0.2 * noise.tanh())
        elif name == "threshold":
            tensor.copy_(0.5 + 0.4 * noise.tanh())
        elif tensor.ndim == 1:
            tensor.add_(0.3 * noise)
        else:
            tensor.add_(0.3 * noise * tensor.norm(dim=1).mean())


def state(path: str = "auto", **fields: Any) -> StepState:
    return StepState(**{"sparsity_coefficient": COEFFICIENT, "target_l0": TARGET_L0, "path": path, **fields})


def activations(n_tokens: int, d_in: int = D_IN, *, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
    return torch.randn(n_tokens, d_in, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def _jumprelu(sparsity: str, architecture: str = "jumprelu", **more: Any) -> Variant:
    def expected(sae: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        return reference.jumprelu(
            x,
            weights_of(sae),
            threshold=sae.threshold,
            bandwidth=BANDWIDTH,
            coefficient=COEFFICIENT,
            sparsity=sparsity,
            target_l0=TARGET_L0,
            tanh_scale=2.0,
            **more,
        )

    options = {"bandwidth": BANDWIDTH, "sparsity": sparsity, "tanh_scale": 2.0, **more}
    return Variant(architecture, expected, options)


def _gated(sae: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    magnitudes = {"magnitude_bias": sae.magnitude_bias, "magnitude_log_scale": sae.magnitude_log_scale}
    return reference.gated(x, weights_of(sae), **magnitudes, coefficient=COEFFICIENT)


def _standard_crosscoder(sae: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    return reference.standard(x, weights_of(sae), coefficient=COEFFICIENT, widths=sae.config.source_widths)


def _pursuit(sae: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    config = sae.config
    ends = {"residual_threshold": config.residual_threshold, "stop_on_duplicate": config.stop_on_duplicate}
    return reference.matching_pursuit(x, weights_of(sae), k=config.k, **ends)


def _matryoshka(sae: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    prefixes = sae.config.prefixes
    balanced = [sae.config.prefix_balance**wider for wider in reversed(range(len(prefixes)))]
    return reference.matryoshka(
        x,
        weights_of(sae),
        k=sae.config.k,
        prefixes=prefixes,
        weights=sae.config.prefix_weights or balanced,
        orthogonality=sae.config.orthogonality,
    )


VARIANTS: dict[str, Variant] = {
    "standard": Variant("standard", lambda sae, x: reference.standard(x, weights_of(sae), coefficient=COEFFICIENT)),
    "standard-l1": Variant(
        "standard",
        lambda sae, x: reference.standard(x, weights_of(sae), coefficient=COEFFICIENT, weight_by_decoder_norm=False),
        {"penalty": "l1"},
    ),
    "topk": Variant("topk", lambda sae, x: reference.topk(x, weights_of(sae), k=sae.config.k)),
    "multi-topk": Variant(
        "topk",
        lambda sae, x: reference.topk(x, weights_of(sae), k=sae.config.k, multi_topk=True),
        {"multi_topk": True},
    ),
    "hierarchical-topk": Variant(
        "topk",
        lambda sae, x: reference.topk(x, weights_of(sae), k=sae.config.k, budgets=sae.config.budgets),
        {"hierarchical": True},
    ),
    "abs_topk": Variant("abs_topk", lambda sae, x: reference.abs_topk(x, weights_of(sae), k=sae.config.k)),
    "matching_pursuit": Variant("matching_pursuit", _pursuit),
    "patient-pursuit": Variant("matching_pursuit", _pursuit, {"residual_threshold": 0.5, "stop_on_duplicate": False}),
    "batch_topk": Variant("batch_topk", lambda sae, x: reference.batch_topk(x, weights_of(sae), k=sae.config.k)),
    "matryoshka": Variant("matryoshka", _matryoshka),
    "matryoshka-recipe": Variant("matryoshka", _matryoshka, {"prefix_balance": 0.75, "orthogonality": 0.5}),
    "jumprelu": _jumprelu("l0"),
    "jumprelu-quadratic": _jumprelu("l0_quadratic"),
    "jumprelu-tanh": _jumprelu("tanh"),
    "jumprelu-frequency": _jumprelu("l0", frequency_scale=0.1),
    "jumprelu-quadratic-frequency": _jumprelu("l0_quadratic", frequency_scale=0.2),
    "jumprelu-tanh-frequency": _jumprelu("tanh", frequency_scale=0.1),
    "gated": Variant("gated", _gated),
    "crosscoder": Variant("crosscoder", lambda sae, x: reference.batch_topk(x, weights_of(sae), k=sae.config.k)),
    "topk_crosscoder": Variant("topk_crosscoder", lambda sae, x: reference.topk(x, weights_of(sae), k=sae.config.k)),
    "jumprelu_crosscoder": _jumprelu("l0", "jumprelu_crosscoder"),
    "standard_crosscoder": Variant("standard_crosscoder", _standard_crosscoder),
}

# One form of each, for what does not depend on the loss.
ARCHITECTURES = [name for name, variant in VARIANTS.items() if name == variant.architecture]

# Those with an activation of one place, which may be transformed, passed on by `skip`, or be a transcoder's.
OF_ONE_SOURCE = [name for name in ARCHITECTURES if name not in (*CROSSCODERS, *TIED)]
