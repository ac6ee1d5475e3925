"""A crosscoder of two sources made by hand, with one feature of each kind, and activations in which the kinds show."""

import torch
from torch import Tensor

from hfsae import SAE, StandardCrosscoderSAEConfig
from hfsae.architectures import Crosscoder

WIDTH = 12
SHARED, TUNED_ONLY, BASE_ONLY, SHRUNK, DECOUPLED, ITS_TWIN, PARTLY, DEAD = range(8)
KINDS = {
    SHARED: "shared",
    TUNED_ONLY: "tuned-only",
    BASE_ONLY: "base-only",
    SHRUNK: "shrunk",
    DECOUPLED: "decoupled",
    ITS_TWIN: "decoupled",
    PARTLY: "partly shared",
    DEAD: "dead",
}


@torch.no_grad()
def crosscoder() -> Crosscoder:
    """Each feature has an axis of its own, but for the twins, which have one together; it reads what it writes."""
    config = StandardCrosscoderSAEConfig(
        source_names=["base", "tuned"], source_widths=[WIDTH] * 2, n_features=len(KINDS)
    )
    sae = SAE.from_config(config).eval()
    rows = torch.zeros(len(KINDS), 2, WIDTH)
    parts = {
        SHARED: (1, 1),
        TUNED_ONLY: (0, 1),
        BASE_ONLY: (1, 0),
        SHRUNK: (0, 1),
        DECOUPLED: (0, 1),
        ITS_TWIN: (1, 0),
        PARTLY: (0.5, 1),
        DEAD: (1, 1),
    }
    for feature, (base, tuned) in parts.items():
        axis = DECOUPLED if feature == ITS_TWIN else feature
        rows[feature, :, axis] = torch.tensor([base, tuned], dtype=torch.float32)
    sae.W_dec.copy_(rows.flatten(1))
    reads = rows.clone()
    reads[SHARED, 0] = reads[PARTLY, 0] = 0  # read in one source, so that values are what was planted
    sae.encoder.weight.copy_(reads.flatten(1))
    sae.encoder.bias.zero_()
    sae.encoder.bias[DEAD] = -100
    sae.b_dec.zero_()
    return sae  # type: ignore[return-value]


def activations(n_tokens: int = 4000, seed: int = 0) -> dict[str, Tensor]:
    """What both sources hold of concepts that are there on a tenth of the tokens each."""
    generator = torch.Generator().manual_seed(seed)
    there = torch.rand(n_tokens, len(KINDS), generator=generator) < 0.1
    strength = there * (1 + torch.rand(n_tokens, len(KINDS), generator=generator))
    base, tuned = torch.zeros(n_tokens, WIDTH), torch.zeros(n_tokens, WIDTH)
    for feature, (in_base, in_tuned) in {
        SHARED: (1, 1),
        TUNED_ONLY: (0, 1),
        BASE_ONLY: (1, 0),
        SHRUNK: (0.6, 1),  # the base holds it, though the crosscoder writes nothing of it there
        DECOUPLED: (1, 1),  # one concept, for which the crosscoder has a feature in each source
        PARTLY: (0.5, 1),
    }.items():
        base[:, feature] += in_base * strength[:, feature]
        tuned[:, feature] += in_tuned * strength[:, feature]
    noise = [0.01 * torch.randn(n_tokens, WIDTH, generator=generator) for _ in range(2)]
    return {"base": base + noise[0], "tuned": tuned + noise[1]}
