"""Massive tokens are found, and features that are pointed elsewhere stay silent on them."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from hfsae import SAE
from hfsae.architectures import config_class_of
from hfsae.autoencoder.initialisation import initialise
from hfsae.training.dead_features import repoint
from hfsae.training.massive_tokens import MassiveTokens
from hfsae.training.optimisation import build_optimiser
from tests.quick import mostly_slow
from tests.training.tiny import contents, stop_at, trainer

WIDTH = 32
DEAD = torch.arange(256) >= 64
ENDS = {"hook_point": "before", "target_hook_point": "after", "subtract_b_dec": False}
"""Of a transcoder that reads `before` and writes `after`."""


def directions(count: int = 2) -> Tensor:
    return F.normalize(torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(9)), dim=1)


def rows(count: int, massive: dict[int, int], seed: int) -> tuple[Tensor, Tensor]:
    """Tokens off centre as an MLP reads and writes them; massive ones in some places, by which direction."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(count, WIDTH, generator=draw) + 1
    x = F.normalize(x, dim=1) * WIDTH**0.5 * (1 + 0.05 * torch.randn(count, 1, generator=draw))
    for place, which in massive.items():
        x[place] = x.mean(0) + 25 * directions()[which] + 0.1 * torch.randn(WIDTH, generator=draw)
    y = torch.relu(x @ torch.randn(WIDTH, 8, generator=torch.Generator().manual_seed(4)))
    y[list(massive)] = 1.0  # they write little
    return x, y


def transcoder(architecture: str) -> SAE:
    """One whose living features are above 0 on one of 50 tokens each, the others nowhere."""
    config_class = config_class_of(architecture)
    options = {"k": 4} if "k" in config_class.__dataclass_fields__ else {}
    torch.manual_seed(0)
    sae = SAE.from_config(config_class(d_in=WIDTH, d_out=8, n_features=256, **ENDS, **options))
    x, y = rows(600, {}, 0)
    initialise(sae, x, target=y)
    with torch.no_grad():
        sae.shift_pre_activations(torch.where(DEAD, -100.0, -sae.pre_activations(x).quantile(0.98, 0)))
    return sae


def test_ordinary_tokens_have_no_direction_and_rows_stay_as_they_are_bit_for_bit():
    seen, (x, _) = MassiveTokens(WIDTH), rows(500, {}, 1)
    assert not seen.see(x).any() and not seen.directions.any()
    assert torch.equal(seen.without(x, 0), x)


def test_directions_span_massive_tokens_of_one_step_and_of_a_later_one():
    seen = MassiveTokens(WIDTH)
    for step, massive in enumerate([{3: 0}, {}, {7: 1, 100: 0}, {8: 1}]):
        x, _ = rows(500, massive, step)
        assert seen.see(x).nonzero()[:, 0].tolist() == sorted(massive)
    found = seen.directions[0]
    assert (found != 0).any(1).sum() == 2  # no third one for what differs among massive tokens of a kind
    assert torch.allclose(found[:2] @ found[:2].T, torch.eye(2), atol=1e-5)
    left = torch.linalg.lstsq(found[:2].T, directions().T).solution
    assert torch.allclose(found[:2].T @ left, directions().T, atol=0.1)
    assert seen.without(25 * directions(), 0).norm(dim=1).max() < 2.5


def test_heavy_tails_are_not_massive():
    """Lengths that differ among all tokens, as those of a residual stream."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2000, WIDTH, generator=draw) * (0.4 * torch.randn(2000, 1, generator=draw)).exp()
    assert (x.norm(dim=1) > 2 * x.norm(dim=1).median()).sum() > 50
    assert MassiveTokens(WIDTH).see(x).float().mean() < 0.01


def test_each_layer_has_directions_of_its_own():
    first, second = rows(500, {3: 0}, 0)[0], rows(500, {8: 1}, 1)[0]
    seen = MassiveTokens(2 * WIDTH, 2)
    assert seen.see(torch.cat([first, second], 1)).nonzero()[:, 0].tolist() == [3, 8]
    of_each = F.cosine_similarity(seen.directions[:, 0].unsqueeze(1), directions().unsqueeze(0), dim=2)
    assert (of_each.abs().diagonal() > 0.95).all() and (of_each.abs() > 0.95).sum() == 2


@pytest.mark.parametrize("architecture", ["batch_topk", "jumprelu", "standard", "gated", "topk", "matryoshka"])
def test_features_that_are_pointed_elsewhere_are_silent_on_massive_tokens_that_come_later(architecture):
    sae, seen = transcoder(architecture), MassiveTokens(WIDTH)
    optimiser = build_optimiser(sae, lr=0.01, betas=(0.9, 0.999), eps=1e-8)
    early, late = torch.arange(256) >= 160, (torch.arange(256) >= 64) & (torch.arange(256) < 160)
    for step, stuck in enumerate([early, late]):  # massive tokens are in the first step alone
        x, y = rows(600, {5: 0, 300: 1} if step == 0 else {}, step)
        assert repoint(sae, optimiser, x, y, stuck, DEAD, seed=step, massive=seen) == 96
    x, _ = rows(2000, {place: place % 2 for place in range(100)}, 7)
    with torch.no_grad():
        above = (sae.pre_activations(x)[:, DEAD] > 0).float()
    assert above[100:].mean() > 0.05
    assert above[:100].mean() < 0.02  # 0.38 where what they read in those directions is left in


def test_no_feature_is_pointed_at_a_massive_token():
    sae, (x, y) = transcoder("topk"), rows(600, {5: 0, 300: 1}, 0)
    y[[5, 300]] *= 1000  # which nearly every draw would choose
    optimiser = build_optimiser(sae, lr=0.01, betas=(0.9, 0.999), eps=1e-8)
    repoint(sae, optimiser, x, y, DEAD, DEAD, seed=0)
    with torch.no_grad():
        error = F.normalize(sae.scaled_target(x, y) - sae.scaled_reconstruction(sae.scaled(x)), dim=1)
    assert (F.cosine_similarity(sae.W_dec[DEAD].unsqueeze(1), error[[5, 300]].unsqueeze(0), dim=2) < 0.9999).all()


@pytest.mark.parametrize("architecture", mostly_slow(["batch_topk", "jumprelu"], quick=["batch_topk"]))
def test_massive_tokens_do_not_outweigh_what_is_explained_of_all_others(tmp_path, architecture):
    """Hundreds of features fired on each, and of all tokens together -2.25 and 0.07 of the variance was explained."""
    x, y = rows(40_000, {place: place // 2000 % 2 for place in range(1999, 40_000, 2000)}, 0)
    places = {"hook_point": "before", "target_hook_point": "after", "shuffle_window_tokens": 0}
    size = {"steps": 150, "train_batch_tokens": 256, "n_features": 512, "dead_feature_window": 1024}
    options = {"architecture": architecture, "architecture_options": {"skip": True}, "revival": "repoint"}
    given = {"activations": {"before": x, "after": y}}
    sae = trainer(tmp_path, inputs=given, **places, **size, **options).train().sae.eval()
    massive = torch.arange(4000) >= 3992
    x, y = rows(4000, {place: place % 2 for place in range(3992, 4000)}, 99)
    with torch.no_grad():
        error = (sae(x).reconstruction - y).square().sum(1)
    variance = (y - y.mean(0)).square().sum(1)
    of_others = 1 - error[~massive].sum() / variance[~massive].sum()
    assert of_others > 0.9
    assert 1 - error.sum() / variance.sum() > of_others - 0.03


def test_a_run_with_massive_tokens_goes_on_bit_for_bit(tmp_path):
    """It keeps directions when it stops, and features are repointed later."""
    x, y = rows(2000, {place: place // 60 % 2 for place in range(60, 2000, 60)}, 0)
    given = {"inputs": {"activations": {"before": x, "after": y}}, "shuffle_window_tokens": 0, **ENDS}
    given.pop("subtract_b_dec")
    options = {"architecture": "batch_topk", "n_features": 256, "dead_feature_window": 128, "steps": 40, **given}
    trainer(tmp_path / "whole", **options).train()
    trainer(tmp_path / "cut", callbacks=[stop_at(17)], **options).train()
    seen = load_file(tmp_path / "cut" / "checkpoint-17" / "saes" / "state.safetensors")["massive"]
    assert (seen != 0).any(2).sum() == 2
    trainer(tmp_path / "cut", **options).train(resume_from_checkpoint=True)
    assert contents(tmp_path / "whole" / "checkpoint-40") == contents(tmp_path / "cut" / "checkpoint-40")
