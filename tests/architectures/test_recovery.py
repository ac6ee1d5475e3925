"""Planted features are found again: sparse sums of known directions, with noise, and a plain training loop."""

import pytest
import torch
from torch import Tensor

from hfsae import SAE
from hfsae.architectures import architectures, config_class_of
from hfsae.autoencoder.initialisation import initialise
from hfsae.autoencoder.outputs import StepState
from hfsae.training.optimisation import restore_rows
from tests.architectures.variants import CROSS_LAYER, sources
from tests.quick import mostly_slow

D_IN, N_TRUE, ACTIVE, NOISE = 32, 64, 3, 0.05
STEPS, BATCH, LEARNING_RATE = 400, 256, 1e-2

# What each architecture is told: config fields, λ. Everything else is the same.
SETTINGS: dict[str, tuple[str, dict, float]] = {
    "topk": ("topk", {"k": ACTIVE}, 0.0),
    "abs_topk": ("abs_topk", {"k": ACTIVE}, 0.0),
    "topk-aligned": ("topk", {"k": ACTIVE, "aligned": True}, 0.0),
    "matching_pursuit": ("matching_pursuit", {"k": ACTIVE}, 0.0),
    "batch_topk": ("batch_topk", {"k": ACTIVE}, 0.0),
    "matryoshka": ("matryoshka", {"k": ACTIVE, "prefix_sizes": [N_TRUE, 2 * N_TRUE]}, 0.0),
    "standard": ("standard", {}, 2.0),
    "standard-l1": ("standard", {"penalty": "l1"}, 2.0),
    "jumprelu": ("jumprelu", {"initial_l0": 2 * ACTIVE}, 0.5),
    "jumprelu-frequency": ("jumprelu", {"initial_l0": 2 * ACTIVE, "frequency_scale": 0.1}, 0.5),
    "matryoshka-recipe": (
        "matryoshka",
        {"k": ACTIVE, "prefix_sizes": [N_TRUE, 2 * N_TRUE], "prefix_balance": 0.75, "orthogonality": 0.1},
        0.0,
    ),
    "gated": ("gated", {}, 4.0),
    "crosscoder": ("crosscoder", {"k": ACTIVE}, 0.0),
    "topk_crosscoder": ("topk_crosscoder", {"k": ACTIVE}, 0.0),
    "jumprelu_crosscoder": ("jumprelu_crosscoder", {"initial_l0": 2 * ACTIVE}, 0.5),
    "standard_crosscoder": ("standard_crosscoder", {}, 1.5),
}

# The sum of norms prices a feature of two sources up to √2 times as high as one of a single source.
LEAST_COSINE = {"standard_crosscoder": 0.88}


def planted(n_tokens: int, generator: torch.Generator, directions: Tensor) -> Tensor:
    """Tokens that each write `ACTIVE` of the directions, at strengths of 1 to 2, with noise and less their mean."""
    chosen = torch.rand(n_tokens, N_TRUE, generator=generator).topk(ACTIVE).indices
    strengths = torch.zeros(n_tokens, N_TRUE).scatter(1, chosen, 1 + torch.rand(n_tokens, ACTIVE, generator=generator))
    x = strengths @ directions
    x = x + NOISE * x.std() * torch.randn(x.shape, generator=generator)
    return x - x.mean(0)


def mean_max_cosine(sae: SAE, directions: Tensor) -> float:
    """How well the best feature for each planted direction matches it, on average."""
    rows = torch.nn.functional.normalize(sae.feature_directions.detach(), dim=1)
    cosines = directions @ rows.T
    return (cosines.abs() if sae.signed else cosines).amax(1).mean().item()


def train(sae: SAE, coefficient: float, generator: torch.Generator, directions: Tensor) -> None:
    optimiser = torch.optim.Adam(sae.parameters(), lr=LEARNING_RATE)
    for step in range(STEPS):
        warm = min(1.0, step / (0.2 * STEPS))
        decay = min(1.0, (STEPS - step) / (0.3 * STEPS))
        for group in optimiser.param_groups:
            group["lr"] = LEARNING_RATE * decay
        state = StepState(step=step, sparsity_coefficient=coefficient * warm)
        out = sae(planted(BATCH, generator, directions), state=state)
        out.loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        restore_rows(sae)
        sae.after_step(out.statistics, state)


def test_nothing_registered_is_left_out_here():
    assert {architecture for architecture, _, _ in SETTINGS.values()} == set(architectures()) - {*CROSS_LAYER}


@pytest.mark.parametrize("name", mostly_slow(SETTINGS, quick=["topk", "jumprelu", "standard"]))
def test_training_finds_the_planted_directions_that_the_start_does_not_have(name: str):
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(N_TRUE, D_IN, generator=generator), dim=1)
    architecture, options, coefficient = SETTINGS[name]
    torch.manual_seed(1)
    sizes = {"d_in": D_IN, "n_features": 2 * N_TRUE, **sources(architecture, D_IN)}
    sae = SAE.from_config(config_class_of(architecture)(**sizes, **options))
    initialise(sae, planted(4096, generator, directions))
    untrained = mean_max_cosine(sae, directions)
    train(sae, coefficient, generator, directions)
    assert untrained < 0.6 and mean_max_cosine(sae, directions) >= LEAST_COSINE.get(name, 0.9)
