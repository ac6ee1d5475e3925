"""The metrics once more, written out over whole tables of activations and logits, in NumPy and float64."""

from typing import Any

import numpy as np


def reconstruction(x: np.ndarray, x_hat: np.ndarray, z: np.ndarray) -> dict[str, float]:
    """What needs no language model: from activations and reconstructions (N, d) and dense features (N, n)."""
    x, x_hat = x.astype(np.float64), x_hat.astype(np.float64)
    error = ((x - x_hat) ** 2).sum()
    variance = ((x - x.mean(0)) ** 2).sum()
    norms, norms_hat = np.sqrt((x**2).sum(1)), np.sqrt((x_hat**2).sum(1))
    return {
        "l0": (z != 0).sum(1).mean(),
        "mse": error / len(x),
        "fvu": error / variance,
        "explained_variance": 1 - error / variance,
        "cosine": np.mean(
            [a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) if b.any() else 0 for a, b in zip(x, x_hat, strict=True)]
        ),
        "l2_ratio": norms_hat.mean() / norms.mean(),
        "dead_fraction": ((z != 0).sum(0) == 0).mean(),
    }


def density(z: np.ndarray) -> dict[str, Any]:
    """How many features fire on which share of the tokens, in quarters of a decade."""
    shares = (z != 0).mean(0)
    edges = np.arange(-28, 1) / 4
    counts = np.zeros(28, dtype=int)
    for share in shares[shares > 0]:
        below = np.flatnonzero(edges[:-1] <= np.log10(share) + 1e-12)
        counts[below[-1] if len(below) else 0] += 1
    return {"log10_edges": edges.tolist(), "counts": counts.tolist(), "never": int((shares == 0).sum())}


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def recovered(ce: dict[str, float], ablated: str) -> float | None:
    """None where an ablation does no harm that could be made good."""
    harm = ce[ablated] - ce["clean"]
    return (ce[ablated] - ce["spliced"]) / harm if harm >= 0.05 else None


def predictions(
    logits: dict[str, np.ndarray], ids: np.ndarray, mask: np.ndarray, keep: np.ndarray
) -> dict[str, float | None]:
    """What needs a language model: from the logits (B, T, V) of the runs clean, spliced, zero and mean."""
    nats: dict[str, list[float]] = {run: [] for run in logits}
    divergences = []
    log = {run: log_softmax(values) for run, values in logits.items()}
    for row in range(ids.shape[0]):
        for position in range(ids.shape[1] - 1):
            if not keep[row, position] or not mask[row, position + 1]:
                continue
            for run in logits:
                nats[run].append(-log[run][row, position, ids[row, position + 1]])
            clean, spliced = log["clean"][row, position], log["spliced"][row, position]
            divergences.append((np.exp(clean) * (clean - spliced)).sum())
    ce = {run: float(np.mean(values)) for run, values in nats.items()}
    return {
        **{f"ce_{run}": value for run, value in ce.items()},
        "loss_recovered": recovered(ce, "zero"),
        "loss_recovered_mean": recovered(ce, "mean"),
        "ce_increase": ce["spliced"] - ce["clean"],
        "kl": float(np.mean(divergences)),
    }
