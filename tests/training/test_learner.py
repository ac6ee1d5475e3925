import json

import pytest
import torch
from safetensors.torch import load, save

from hfsae.functional import DensePattern, SparsePattern, cuda_graph
from hfsae.functional.encode import CPU_BREAK_EVEN
from hfsae.training.learner import Learner
from tests.training.tiny import ARCHITECTURES, BATCH, D_IN, make_learner, make_sae, sparse_rows

TRAINED_WITH_COEFFICIENT = ("standard", "jumprelu", "gated")


def train(learner, steps, *, begin=0, accumulation=1):
    for step in range(begin, begin + steps):
        learner.step([sparse_rows(BATCH, seed=100 * step + i) for i in range(accumulation)], step)
    return learner


def half_dead(sae):
    """Silences every second feature: below every threshold, or at 0 where the size of either sign counts."""
    if sae.config.architecture == "abs_topk":
        sae.encoder.weight.data[::2] = 0
    sae.encoder.bias.data[::2] = 0 if sae.config.architecture == "abs_topk" else -100
    return sae


def tensors(learner):
    """Weights, optimiser state and counters by name."""
    weights = {f"weights.{name}": tensor.detach().clone() for name, tensor in learner.sae.state_dict().items()}
    return {**weights, **{name: tensor.clone() for name, tensor in learner.state_dict()["tensors"].items()}}


def assert_equal(learner, other):
    mine, theirs = tensors(learner), tensors(other)
    assert mine.keys() == theirs.keys()
    assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []
    # As JSON, where an average that has seen nothing yet equals another one.
    assert json.dumps(learner.state_dict()["values"]) == json.dumps(other.state_dict()["values"])


# -- one step ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("architecture", ["standard", "topk", "gated"])
def test_two_micro_batches_take_the_step_of_one_double_batch(architecture):
    """Of those whose choice of features and loss are per token; batch_topk chooses in each micro-batch."""
    # Unclipped: a gradient of the wrong length shows in Adam's moments.
    options = {"revival": "none", "learning_rate": 0.01, "sparsity_coefficient": 0.5, "max_grad_norm": 0}
    rows = sparse_rows(2 * BATCH, seed=7)
    halves = make_learner(make_sae(architecture), gradient_accumulation_steps=2, **options)
    whole = make_learner(make_sae(architecture), train_batch_tokens=2 * BATCH, **options)
    for step in range(3):
        halves.step([rows[:BATCH], rows[BATCH:]], step)
        whole.step([rows], step)
    mine, theirs = tensors(halves), tensors(whole)
    for name in mine:
        assert torch.allclose(mine[name].float(), theirs[name].float(), rtol=1e-4, atol=1e-6), name
    assert torch.equal(halves.firing.tokens_since_fired, whole.firing.tokens_since_fired)
    mine, theirs = halves.pop_log(2), whole.pop_log(2)
    assert mine["loss"] == pytest.approx(theirs["loss"]) and mine["l0"] == pytest.approx(theirs["l0"])


@pytest.mark.parametrize("shift", [0.0, -1.0, -100.0], ids=["enough", "few", "none"])
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("architecture", ["batch_topk", "matryoshka", "crosscoder"])
def test_a_step_whose_entries_were_found_before_it_is_the_same_step(architecture, accumulation, shift, monkeypatch):
    """As where a GPU replays the rest; where fewer are positive than the budget, it would not."""
    options = {"source_names": ["a", "b"], "source_widths": [8, D_IN - 8]} if architecture == "crosscoder" else {}
    known, ends = [], []
    for beforehand in (True, False):
        monkeypatch.setattr(Learner, "_can_replay", property(lambda _, found=beforehand: found))
        monkeypatch.setattr(cuda_graph, "_CALLS_BEFORE", 1000)  # nothing is recorded on a CPU
        sae = half_dead(make_sae(architecture, **options))
        sae.encoder.bias.data += shift
        if beforehand:
            sae.register_forward_pre_hook(lambda _, args, given: known.append(given["state"].picked), with_kwargs=True)
        revived = {"revival": "auxk", "dead_feature_window": 40}
        ends.append(make_learner(sae, gradient_accumulation_steps=accumulation, **revived))
        train(ends[-1], 6, accumulation=accumulation)
    assert_equal(*ends)
    assert len(known) == 6 * accumulation and {len(one.pre) == one.most for one in known} == {shift == 0}
    assert (ends[0]._replay._records != {}) == (shift == 0)


def test_a_run_goes_from_the_dense_path_to_the_sparse_one_by_itself_as_it_gets_sparser():
    options = {"sparsity_coefficient": 20.0, "learning_rate": 0.03, "revival": "none"}
    learner, paths = make_learner(make_sae("standard", penalty="l1"), steps=40, **options), []
    learner.sae.register_forward_hook(lambda sae, args, output: paths.append(type(output.features.pattern)))
    train(learner, 1)
    l0 = learner.pop_log(0)["l0"]
    train(learner, 39, begin=1)
    assert paths[0] is DensePattern and l0 > CPU_BREAK_EVEN * 48
    assert set(paths[-20:]) == {SparsePattern}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_sae_in_company_ends_equal_bit_for_bit_to_the_same_sae_alone(architecture):
    options = {"steps": 12, "dead_feature_window": 40}
    company = [make_learner(half_dead(make_sae(name)), **options) for name in (*ARCHITECTURES, architecture)]
    for step in range(8):
        for learner in company:
            learner.step([sparse_rows(BATCH, seed=step)], step)
    alone = make_learner(half_dead(make_sae(architecture)), **options)
    for step in range(8):
        alone.step([sparse_rows(BATCH, seed=step)], step)
    assert_equal(company[-1], alone)


def test_a_clipped_gradient_does_not_depend_on_the_loss_of_others():
    gentle, wild = make_learner(make_sae("topk")), make_learner(make_sae("topk"))
    rows = sparse_rows(BATCH, seed=3)
    for step in range(4):
        gentle.step([rows], step)
        wild.step([rows * 1000], step)
    alone = make_learner(make_sae("topk"))
    for step in range(4):
        alone.step([rows], step)
    assert_equal(gentle, alone)


def test_training_in_bfloat16_keeps_parameters_in_float32_and_the_forward_of_the_sae():
    sae = make_sae("topk")
    learner = train(make_learner(sae, bf16=True, steps=30, learning_rate=0.01), 30)
    exact = train(make_learner(make_sae("topk"), steps=30, learning_rate=0.01), 30)
    assert all(parameter.dtype == torch.float32 for parameter in sae.parameters())
    assert "forward" not in vars(sae)
    assert not torch.equal(sae.W_dec, exact.sae.W_dec)
    assert learner.pop_log(29)["mse"] == pytest.approx(exact.pop_log(29)["mse"], rel=0.05)


# -- the plan ---------------------------------------------------------------------------------------------------------
def test_schedules_count_optimiser_steps_whatever_the_accumulation():
    options = {"lr_scheduler_type": "cosine", "lr_decay_fraction": 0, "warmup_steps": 2, "learning_rate": 1.0}
    once = make_learner(make_sae("topk"), steps=10, **options)
    thrice = make_learner(make_sae("topk"), steps=10, gradient_accumulation_steps=3, **options)
    assert thrice.plan.total_steps == once.plan.total_steps == 10
    assert [thrice.learning_rate(step) for step in range(10)] == [once.learning_rate(step) for step in range(10)]
    assert thrice.learning_rate(9) == pytest.approx(0.1)


def test_the_optimiser_steps_with_the_rate_of_the_schedule():
    learner = make_learner(make_sae("jumprelu"), steps=20, warmup_steps=5, learning_rate=0.1)
    for step in range(8):
        learner.step([sparse_rows(BATCH)], step)
        assert {group["lr"] for group in learner.optimiser.param_groups} == {learner.learning_rate(step)}
    assert learner.learning_rate(0) < learner.learning_rate(4) < learner.learning_rate(7) == 0.1


@pytest.mark.parametrize(
    ("given", "end"),
    [({}, 0.1), ({"lr_start": 0.5}, 0.05), ({"lr_start": 0.0}, 0.0), ({"lr_end": 0.3, "lr_start": 0.5}, 0.3)],
)
def test_the_floor_is_a_tenth_of_the_start_where_that_is_given_and_of_the_peak_where_not(given, end):
    options = {"lr_scheduler_type": "linear", "lr_decay_fraction": 0, "learning_rate": 1.0}
    learner = make_learner(make_sae("topk"), steps=10, **options, **given)
    assert learner.learning_rate(9) == pytest.approx(end)


@pytest.mark.parametrize(("warmup_steps", "steps"), [(0.25, 5), (7, 7), (0, 0), (500, 19)])
def test_a_warm_up_is_a_number_of_steps_or_a_share_of_the_run_and_ends_before_it(warmup_steps, steps):
    assert make_learner(make_sae("topk"), steps=20, warmup_steps=warmup_steps).plan.warmup_steps == steps


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_l0_is_steered_to_k_unless_told_otherwise(architecture):
    def plan(**options):
        return make_learner(make_sae(architecture), **options).plan

    has_penalty = architecture in TRAINED_WITH_COEFFICIENT
    assert plan().target_l0 == (4.0 if has_penalty else None)
    assert (plan().sparsity_coefficient > 0) == has_penalty
    if has_penalty:
        assert plan(target_l0=7).target_l0 == 7
        held = plan(sparsity_coefficient=0.3)
        assert (held.target_l0, held.sparsity_coefficient) == (None, 0.3)
        with pytest.raises(ValueError, match="target_l0 asks for 1e\\+06 active features, but the SAE has"):
            plan(target_l0=1e6)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_features_are_revived_in_the_way_of_the_architecture_unless_told_otherwise(architecture):
    plan = make_learner(make_sae(architecture), steps=100).plan
    others = {"standard": "resample", "abs_topk": "auxk", "matching_pursuit": "auxk"}
    assert plan.revival == others.get(architecture, "repoint")
    assert bool(plan.resample_steps) == (plan.revival == "resample")
    assert make_learner(make_sae(architecture), revival="none").plan.revival == "none"


def test_resampling_ends_by_half_time():
    plan = make_learner(make_sae("standard"), steps=100).plan
    assert sorted(plan.resample_steps) == [10, 20, 30, 40, 50]
    own = make_learner(make_sae("standard"), steps=100, resample_every=15 * BATCH, dead_feature_window=50).plan
    assert sorted(own.resample_steps) == [15, 30, 45] and own.dead_window == 50


@pytest.mark.parametrize(
    ("steps", "window", "why"),
    [
        (20, 4 * BATCH, "four steps of a short run"),
        (100, 5 * BATCH, "a twentieth of a run in which features fire seldom"),
        (2000, 256 * 48 // 4, "256 firings of the average feature"),
        (100_000, 100_000 * BATCH // 64, "1/64 of a long run"),
    ],
)
def test_the_dead_feature_window_fits_the_run(steps: int, window: int, why: str):
    assert make_learner(make_sae("topk"), steps=steps).plan.dead_window == window, why


@pytest.mark.parametrize(
    ("architecture", "revival", "part"),
    [("topk", "repoint", 20), ("topk", "auxk", 10), ("topk", "resample", 10), ("standard", "repoint", 10)],
)
def test_features_that_are_repointed_are_dead_sooner(architecture: str, revival: str, part: int):
    plan = make_learner(make_sae(architecture), steps=100, revival=revival, k=4).plan
    assert plan.dead_window == 100 * BATCH // part


# -- dead features ----------------------------------------------------------------------------------------------------
def test_auxk_is_paid_only_while_something_is_dead():
    learner = make_learner(make_sae("topk"), steps=100, dead_feature_window=2 * BATCH, revival="auxk")
    for step in range(2):
        learner.step([sparse_rows(BATCH, seed=step)], step)
    assert not learner.firing.dead.any() or learner.firing.tokens_since_fired.max() == 2 * BATCH
    assert "auxk" not in learner.pop_log(1)
    learner.sae.encoder.bias.data[:5] = -100  # never fires again
    for step in range(2, 6):
        learner.step([sparse_rows(BATCH, seed=step)], step)
    assert learner.firing.dead[:5].all()
    assert learner.pop_log(5)["auxk"] > 0


def test_auxk_can_be_switched_off():
    learner = make_learner(make_sae("topk"), steps=100, dead_feature_window=1, revival="none")
    learner.sae.encoder.bias.data[:5] = -100
    assert "auxk" not in train(learner, 4).pop_log(3)


def test_resampled_features_fire_again_and_the_rate_warms_up_anew():
    learner = make_learner(make_sae("standard"), steps=100, learning_rate=0.001, warmup_steps=0, lr_decay_fraction=0)
    learner.sae.encoder.bias.data[:5] = -100
    train(learner, 10)
    assert learner.firing.dead[:5].all() and learner.learning_rate(9) == 0.001
    learner.step([sparse_rows(BATCH, seed=10)], 10)
    assert not learner.firing.dead.any()
    assert learner.sae.encoder.bias[:5].abs().max() < 0.01  # at 0, and one small step
    assert learner.learning_rate(10) == pytest.approx(0.001 / 51) and learner.learning_rate(60) == 0.001
    assert train(learner, 10, begin=11).firing.tokens_since_fired[:5].min() < BATCH


def test_a_feature_that_fires_in_either_micro_batch_is_alive():
    learner = make_learner(make_sae("topk"), gradient_accumulation_steps=2, dead_feature_window=1, revival="none")
    first, second = sparse_rows(BATCH, seed=1), sparse_rows(BATCH, seed=2)
    fires = [learner.sae.encode(rows).gt(0).any(0) for rows in (first, second)]
    assert (fires[0] != fires[1]).any()
    learner.step([first, second], 0)
    assert torch.equal(learner.firing.tokens_since_fired == 0, fires[0] | fires[1])
    assert set(learner.firing.tokens_since_fired.tolist()) <= {0, 2 * BATCH}


# -- the log ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_log_tells_what_the_steps_since_the_last_one_gave(architecture):
    learner = train(make_learner(make_sae(architecture)), 2)
    log = learner.pop_log(1)
    expected = {"loss", "mse", "l0", "explained_variance", "dormant_fraction", "learning_rate"}
    assert expected <= log.keys() and all(isinstance(value, float) for value in log.values())
    assert ("sparsity_coefficient" in log) == (architecture in TRAINED_WITH_COEFFICIENT)
    assert log["learning_rate"] == learner.learning_rate(1)
    again = train(learner, 2, begin=2).pop_log(3)
    assert again["mse"] != log["mse"]


def test_explained_variance_in_the_log_is_pooled_and_about_the_mean():
    learner = make_learner(make_sae("topk"), learning_rate=1e-12, revival="none")
    batches = [sparse_rows(BATCH, seed=1), 3 * sparse_rows(BATCH, seed=2) + 5]
    error = variance = 0.0
    for step, rows in enumerate(batches):
        error += (learner.sae(rows).reconstruction - rows).square().sum().item()
        variance += (rows - rows.mean(0)).square().sum().item()
        learner.step([rows], step)
    assert learner.pop_log(1)["explained_variance"] == pytest.approx(1 - error / variance, rel=1e-4)


def test_a_loss_that_is_not_a_number_is_noticed():
    learner = make_learner(make_sae("topk"))
    learner.step([sparse_rows(BATCH)], 0)
    assert learner.is_finite()
    learner.sae.W_dec.data[0, 0] = torch.nan
    learner.step([sparse_rows(BATCH)], 1)
    learner.step([sparse_rows(BATCH)], 2)
    assert not learner.is_finite()


# -- saving and going on ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("stop", [1, 5, 9])
def test_a_learner_goes_on_from_its_saved_state_bit_by_bit(architecture, stop):
    """Features die, are revived and resampled, and λ is steered on both sides of the stop."""
    options = {"steps": 12, "dead_feature_window": 40, "resample_every": 2 * BATCH}
    whole = train(make_learner(half_dead(make_sae(architecture)), **options), 12)
    assert "auxk" in whole.pop_log(11) or whole.state_dict()["values"]["last_resampling"] == 6
    before = train(make_learner(half_dead(make_sae(architecture)), **options), stop)
    weights, state = save(before.sae.state_dict()), before.state_dict()
    stored = {"tensors": load(save(state["tensors"])), "values": json.loads(json.dumps(state["values"]))}
    after = make_learner(make_sae(architecture, rows=sparse_rows(100, seed=5)), **options)
    after.load_state_dict(load(weights), stored)
    assert_equal(train(after, 12 - stop, begin=stop), whole)
