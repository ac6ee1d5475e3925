"""Features that are pointed at other tokens stay silent on massive ones."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from hfsae import SAE
from hfsae.architectures import config_class_of
from hfsae.autoencoder.initialisation import initialise
from hfsae.functional.massive_tokens import MassiveTokens
from hfsae.training.dead_features import repoint
from hfsae.training.optimisation import build_optimiser
from tests.functional.test_massive_tokens import WIDTH, directions, rows
from tests.quick import mostly_slow
from tests.training.tiny import contents, stop_at, trainer

DEAD = torch.arange(256) >= 64
ENDS = {"hook_point": "before", "target_hook_point": "after", "subtract_b_dec": False}
"""Of a transcoder that reads `before` and writes `after`."""


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


@pytest.mark.parametrize("architecture", ["batch_topk", "jumprelu", "standard", "gated", "matryoshka"])
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
    sae, (x, y) = transcoder("batch_topk"), rows(600, {5: 0, 300: 1}, 0)
    y[[5, 300]] *= 1000  # which nearly every draw would choose
    optimiser = build_optimiser(sae, lr=0.01, betas=(0.9, 0.999), eps=1e-8)
    repoint(sae, optimiser, x, y, DEAD, DEAD, seed=0)
    with torch.no_grad():
        error = F.normalize(sae.scaled_target(x, y) - sae.scaled_reconstruction(sae.scaled(x)), dim=1)
    assert (F.cosine_similarity(sae.W_dec[DEAD].unsqueeze(1), error[[5, 300]].unsqueeze(0), dim=2) < 0.9999).all()


def test_in_a_transcoder_with_k_features_a_token_massive_ones_are_like_others():
    """No more than k fire there, and less would be read of ordinary tokens."""
    sae, seen, (x, y) = transcoder("topk"), MassiveTokens(WIDTH), rows(600, {5: 0, 300: 1}, 0)
    y[[5, 300]] *= 1000
    optimiser = build_optimiser(sae, lr=0.01, betas=(0.9, 0.999), eps=1e-8)
    with torch.no_grad():
        error = F.normalize(sae.scaled_target(x, y) - sae.scaled_reconstruction(sae.scaled(x)), dim=1)
    repoint(sae, optimiser, x, y, DEAD, DEAD, seed=0, massive=seen)
    assert not seen.directions.any()
    with torch.no_grad():
        assert (F.cosine_similarity(sae.W_dec[DEAD].unsqueeze(1), error[[5]].unsqueeze(0), dim=2) > 0.9999).any()


@pytest.mark.parametrize("architecture", mostly_slow(["batch_topk", "jumprelu"], quick=["batch_topk"]))
def test_massive_tokens_do_not_outweigh_what_is_explained_of_all_others(tmp_path, architecture):
    """With those directions left in, more than 100 features fire on each, and nearly no variance is explained."""
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


def far_out(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Ordinary tokens, of which every two thousandth is far out in one direction; and which these are."""
    x, massive = rows(count, {}, seed)[0], torch.arange(count) % 2000 == 1999
    x[massive] += 100 * directions()[0]
    return x, massive


@pytest.mark.parametrize("revival", mostly_slow(["repoint", "resample"], quick=["repoint"]))
@pytest.mark.parametrize("architecture", mostly_slow(["topk", "batch_topk", "jumprelu"], quick=["topk"]))
def test_one_feature_of_an_autoencoder_stands_for_rare_massive_tokens_and_is_not_taken_for_dead(
    tmp_path, architecture, revival
):
    """Else many features share them, or one is pointed elsewhere in the midst: a window is half of their distance."""
    size = {"steps": 150, "train_batch_tokens": 256, "n_features": 512, "dead_feature_window": 1024}
    options = {"hook_point": "before", "shuffle_window_tokens": 0, "init_tokens": 8192, "learning_rate": 1e-3}
    sparsity = {"target_l0": 8} if architecture == "jumprelu" else {"k": 8}
    revived = {"revival": revival, **({"resample_every": 10_000} if revival == "resample" else {})}
    given = {"activations": {"before": far_out(40_000, 0)[0]}}
    run = trainer(tmp_path, inputs=given, architecture=architecture, **size, **options, **sparsity, **revived)
    sae = run.train().sae.eval()
    x, massive = far_out(8000, 99)
    with torch.no_grad():
        error, features = (sae(x).reconstruction - x).square().sum(1), sae.encode(x)[massive]
    assert (features[:, 0] > 5 * features[:, 1:].amax(1)).all()
    assert error[massive].mean() < 20 * error[~massive].mean()  # 2,000 times the variance of ordinary ones is there


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
