"""An SAE's config as training and evaluation leave it, its figures made up, and what tests look for in its card."""

import json
import re
from typing import Any

from huggingface_hub import ModelCard

from hfsae import TopKSAEConfig
from hfsae.autoencoder import SparseAutoencoder
from hfsae.identity import Identity

SHA = "607a30d783dfa663caf39e06633721c8d4cfcd7e"
LOG = [
    {"step": step, "tokens": step * 4096, "mse": 9.0 / step, "l0": 4.0, "explained_variance": 1 - 1 / step,
     "dormant_fraction": 0.1 / step}
    for step in range(1, 40)
]  # fmt: skip


def metrics(**others: Any) -> dict[str, Any]:
    """What `evaluate_sae` returns, for 32 features."""
    return {
        "l0": 4.0,
        "mse": 12.5,
        "explained_variance": 0.9625,
        "fvu": 0.0375,
        "ce_clean": 3.25,
        "ce_spliced": 3.5,
        "ce_zero": 10.75,
        "loss_recovered": 0.96875,
        "ce_increase": 0.25,
        "dead_fraction": 0.25,
        "n_tokens": 50_000,
        "notes": {},
        "density": {"log10_edges": [-4.0, -3.0, -2.0, -1.0, 0.0], "counts": [4, 10, 8, 2], "never": 8},
        "baselines": {
            "untrained": {"l0": 4.0, "explained_variance": 0.25, "loss_recovered": 0.75},
            "pca": {"components": 4, "explained_variance": 0.5, "loss_recovered": 0.875},
        },
        "protocol": {
            "dataset": "org/corpus",
            "split": "validation",
            "n_tokens": 50_000,
            "left_out": "special tokens, position 0",
            "ablation": "zero",
            "dtype": "float32",
        },
    } | others


def training(**others: Any) -> dict[str, Any]:
    """What the trainer writes into a config."""
    return {
        "dataset": "org/corpus",
        "split": "train",
        "n_tokens": 4_000_000,
        "steps": 977,
        "seconds": 754.0,
        "seed": 0,
        "arguments": {"learning_rate": 3e-4, "output_dir": "/home/somebody/runs/sae"},
        "hardware": "1 × cpu",
        "versions": {"hfsae": "0.1.0", "torch": "2.13.0"},
        "portable_name": "resid_post.8",
    } | others


def config(**others: Any) -> TopKSAEConfig:
    """An SAE of 32 features that was trained and measured."""
    fields = {
        "d_in": 8,
        "n_features": 32,
        "k": 4,
        "base_model": "org/lm",
        "base_model_revision": SHA,
        "hook_point": "transformer.h.8.output",
        "context_length": 128,
        "training": training(),
        "metrics": metrics(),
    }
    return TopKSAEConfig(**fields | others)


def reread(card: ModelCard) -> ModelCard:
    """The card, written and read again."""
    return ModelCard(str(card))


def snippet(text: str) -> str:
    """The Python in a card."""
    match = re.search(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert match is not None
    return match[1]


def dashboard_of(sae: SparseAutoencoder, *names: str) -> str:
    """Of a dashboard's page what says which SAE it shows; of that only what is named, if anything is."""
    about = {name: value for name, value in Identity.of(sae).record().items() if not names or name in names}
    return f'<script type="application/json" id="index">{json.dumps({"about": about})}</script>'
