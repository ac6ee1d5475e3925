"""SAEs to push, so small that a push takes a fraction of a second."""

import pytest
import torch

from hfsae import SAE, TopKSAEConfig


def make(seed: int = 0, **fields) -> SAE:
    """A random TopK SAE of 64 features."""
    torch.manual_seed(seed)
    return SAE.from_config(TopKSAEConfig(d_in=16, n_features=64, k=4, hook_point="transformer.h.1.output", **fields))


@pytest.fixture
def sae() -> SAE:
    return make()


@pytest.fixture
def other() -> SAE:
    """Of the same shape, with other weights."""
    return make(seed=1)
