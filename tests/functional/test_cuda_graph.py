"""A step that is replayed, against one that is not. What needs a GPU is skipped where there is none."""

from collections.abc import Iterator

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from hfsae import (
    SAE,
    GatedSAEConfig,
    JumpReLUSAEConfig,
    MatchingPursuitSAEConfig,
    MatryoshkaSAEConfig,
    StandardSAEConfig,
    TopKSAEConfig,
)
from hfsae.architectures import config_class_of
from hfsae.autoencoder.strategies import is_replayable
from hfsae.functional.cuda_graph import RecordedStep
from hfsae.training.learner import Learner
from tests.training.tiny import arguments, make_learner

pytestmark = pytest.mark.usefixtures("accelerate_starts_anew")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

D_IN, N_FEATURES, BATCH = 64, 512, 256
# Some at a time, so that one step after another works on 0, 64, 128 and again 64 dead features.
DEAD = (0, 40, 100, 60)
STEPS_WITH_EACH = 5


def make(architecture: str) -> SAE:
    torch.manual_seed(0)
    sources = {"source_names": ["a", "b"], "source_widths": [D_IN // 2] * 2} if "crosscoder" in architecture else {}
    return SAE.from_config(config_class_of(architecture)(d_in=D_IN, n_features=N_FEATURES, k=8, **sources)).cuda()


def batches(seed: int, count: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(BATCH, D_IN, generator=generator).cuda() for _ in range(count)]


def run(learner: Learner, accumulation: int = 1) -> Iterator[dict[str, float]]:
    """Trains with ever other features dead; gives the log after each part."""
    for part, n_dead in enumerate(DEAD):
        for step in range(part * STEPS_WITH_EACH, (part + 1) * STEPS_WITH_EACH):
            learner.firing.tokens_since_fired.zero_()
            learner.firing.tokens_since_fired[:n_dead] = learner.plan.dead_window
            learner.step(batches(step, accumulation), step)
        yield learner.pop_log(step)


def on_gpu(architecture: str = "topk", **options) -> Learner:
    sizes = {"train_batch_tokens": BATCH, "training_tokens": 1000 * BATCH}
    return Learner("", make(architecture), arguments("unused", learning_rate=1e-3, **sizes, **options), Accelerator())


@needs_gpu
@pytest.mark.parametrize("accumulation", [1, 2])
# Of so few features sparse products pay in float32 alone: both paths are here.
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("architecture", ["topk", "abs_topk", "batch_topk", "matryoshka", "crosscoder"])
def test_replayed_steps_give_the_bits_of_steps_launched_one_by_one(
    monkeypatch, architecture: str, bf16: bool, accumulation: int
):
    monkeypatch.setattr("hfsae.training.learner._DEAD_REFRESH_STEPS", 1)
    options = {"bf16": bf16, "gradient_accumulation_steps": accumulation}
    replayed = on_gpu(architecture, **options)
    logs = list(run(replayed, accumulation))
    records = replayed._replay._records
    assert {key for _, key in records} == {0, 64, 128} and all(record.graph for record in records.values())
    assert "auxk" not in logs[0] and all(log["auxk"] > 0 for log in logs[1:])
    monkeypatch.setattr(Learner, "_can_replay", property(lambda _: False))
    plain = on_gpu(architecture, **options)
    assert list(run(plain, accumulation)) == logs and not plain._replay._records
    for name, tensor in plain.weights().items():
        assert torch.equal(tensor, replayed.weights()[name]), name


@needs_gpu
@pytest.mark.parametrize("architecture", ["topk", "batch_topk"])
def test_what_a_transcoder_is_to_write_is_replayed_with_what_it_reads(monkeypatch, architecture: str):
    sizes = {"d_in": D_IN, "n_features": N_FEATURES, "k": 8}
    config = config_class_of(architecture)(**sizes, target_hook_point="b", subtract_b_dec=False)
    ends = []
    for can_replay in (True, False):
        monkeypatch.setattr(Learner, "_can_replay", property(lambda _, can=can_replay: can))
        torch.manual_seed(0)
        sae = SAE.from_config(config).cuda()
        sizes = {"train_batch_tokens": BATCH, "training_tokens": 1000 * BATCH}
        learner = Learner("", sae, arguments("unused", learning_rate=1e-3, **sizes), Accelerator())
        for step in range(8):
            learner.step(batches(step), step, batches(100 + step))
        assert bool(learner._replay._records) == can_replay
        ends.append(learner.weights())
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())


@needs_gpu
def test_a_batch_with_too_few_positive_pre_activations_is_launched_kernel_by_kernel(monkeypatch):
    learners = []
    for can_replay in (True, False):
        monkeypatch.setattr(Learner, "_can_replay", property(lambda _, can=can_replay: can))
        learners.append(on_gpu("batch_topk", revival="none"))
        for step in range(12):
            # The same rows a thousand times as small in every third step, and with them all that is positive.
            learners[-1].sae.encoder.bias.data.fill_(-1.0 if step % 3 == 2 else 0.0)
            rows = [1e-3 * batch if step % 3 == 2 else batch for batch in batches(step)]
            learners[-1].step(rows, step)
    records = learners[0]._replay._records
    assert len(records) == 1 and next(iter(records.values())).calls == 8
    assert all(torch.equal(tensor, learners[1].weights()[name]) for name, tensor in learners[0].weights().items())


@needs_gpu
def test_a_loaded_state_is_trained_on_and_not_the_tensors_of_before():
    learner = on_gpu(revival="none")
    for step in range(5):
        learner.step(batches(step), step)
    weights, state = {k: v.clone() for k, v in learner.weights().items()}, learner.state_dict()
    state["tensors"] = {name: tensor.clone() for name, tensor in state["tensors"].items()}
    ends = []
    for _ in range(2):
        learner.load_state_dict(weights, state)
        for step in range(5, 12):
            learner.step(batches(step), step)
        ends.append({k: v.clone() for k, v in learner.weights().items()})
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())
    assert not torch.equal(ends[0]["W_dec"], weights["W_dec"])


@needs_gpu
def test_records_follow_the_shapes_of_their_inputs():
    replay: RecordedStep[Tensor] = RecordedStep()
    for size in (3, 5, 3):
        for value in range(5):
            x = torch.full((size,), float(value), device="cuda")
            assert torch.equal(replay(lambda inputs: inputs[0] * 2, [x]), x * 2)


@needs_gpu
def test_two_learners_that_take_the_memory_in_turn_do_not_disturb_each_other():
    together = [on_gpu(revival="none") for _ in range(2)]
    alone = on_gpu(revival="none")
    for step in range(8):
        for learner in together:
            learner.step(batches(step), step)
    for step in range(8):
        alone.step(batches(step), step)
    for learner in together:
        assert all(torch.equal(tensor, learner.weights()[name]) for name, tensor in alone.weights().items())


def test_only_steps_that_are_all_alike_are_replayed_and_on_a_cpu_none():
    """What the batch decides, how much is active, is found out by asking the device."""
    for config in (GatedSAEConfig, JumpReLUSAEConfig, MatchingPursuitSAEConfig, StandardSAEConfig):
        assert not is_replayable(SAE.from_config(config(d_in=4, n_features=64)))
    layers = {"source_names": ["a", "b"], "source_widths": [4, 4]}
    for architecture in ("topk_cross_layer_transcoder", "cross_layer_transcoder"):
        assert not is_replayable(SAE.from_config(config_class_of(architecture)(**layers, n_features=64, k=2)))
    sae = SAE.from_config(TopKSAEConfig(d_in=4, n_features=8, k=2))
    assert is_replayable(sae) and not make_learner(sae)._can_replay


@pytest.mark.parametrize("orthogonality", [0.0, 0.5])
def test_what_holds_other_features_against_each_other_in_every_step_is_not_replayed(orthogonality: float):
    config = MatryoshkaSAEConfig(d_in=4, n_features=64, k=2, orthogonality=orthogonality)
    learner = make_learner(SAE.from_config(config))
    learner._device = torch.device("cuda")
    assert learner._can_replay == (orthogonality == 0)
