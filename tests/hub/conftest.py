"""SAEs to push, so small that a push takes a fraction of a second, and one that was trained and is published."""

import pytest
import torch
from huggingface_hub import HfApi

from hfsae import SAE, TopKSAEConfig
from tests.hub_server import HubServer


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


@pytest.fixture
def published(hub: HubServer, trained_folder) -> HubServer:
    """The trained SAE and its language model, both on the Hub."""
    sae = SAE.from_pretrained(trained_folder)
    HfApi().create_repo("tester/tiny-lm")
    HfApi().upload_folder(repo_id="tester/tiny-lm", folder_path=sae.config.base_model)
    sae.config.base_model = "tester/tiny-lm"
    sae.push_to_hub("tester/checked", folder=trained_folder, subfolder="a")
    return hub
