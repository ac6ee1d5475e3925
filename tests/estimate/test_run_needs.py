import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config

from hfsae.data import ActivationStream, LMActivations, TensorActivations, TokenBlocks
from hfsae.estimate.machine import Machine, Work
from hfsae.estimate.run_needs import _STEP_EFFICIENCY, SAENeeds, estimate
from hfsae.inputs import streams
from hfsae.training.learner import Learner
from tests.data.tiny import language_model, pythia_like
from tests.training.tiny import ARCHITECTURES, arguments, make_sae, sparse_rows, text
from tests.training.tiny import make_learner as learner_of

MACHINE = Machine.told(1e9)


def needs_of(**options):
    return estimate(arguments("unused", **options), model=language_model())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_parameters_and_state_are_those_of_a_real_learner(architecture):
    found = needs_of(architecture=architecture).saes[""]
    learner: Learner = learner_of(make_sae(architecture))
    learner.step([sparse_rows(32)], 0)
    parameters = sum(p.numel() for p in learner.sae.parameters())
    moments = [t for m in learner.optimiser.state.values() for t in m.values() if t.ndim]
    assert found.parameters == parameters
    assert found.state_bytes == 4 * parameters * 2 + sum(t.numel() * t.element_size() for t in moments)


def test_what_a_run_refuses_is_refused_here():
    with pytest.raises(ValueError, match="sparsity_coefficient steers a sparsity penalty, which batch_topk has not"):
        needs_of(architecture="batch_topk", sparsity_coefficient=2.0)
    quadratic = {"architecture": "jumprelu", "architecture_options": {"sparsity": "l0_quadratic"}}
    with pytest.raises(ValueError, match="'l0_quadratic' is the distance to a number .* give target_l0"):
        needs_of(**quadratic, sparsity_coefficient=2.0)


def test_a_comparison_of_decoder_rows_takes_its_operations():
    """4,096 rows of 16 numbers, in groups of 512: eight products of 512 × 16 × 512."""
    sizes = {"architecture": "matryoshka", "n_features": 4096}
    without, beside = (
        needs_of(**sizes, architecture_options={"orthogonality": gamma}).saes[""].step.flops for gamma in (0, 0.1)
    )
    assert (beside - without) * _STEP_EFFICIENCY == pytest.approx(8 * 2 * 512 * 512 * 16)


def test_features_that_are_found_one_after_the_other_take_a_product_each():
    """As torch counts them in the steps themselves."""
    rows, estimated, counted = sparse_rows(32), [], []
    for k in (2, 7):
        needs = needs_of(architecture="matching_pursuit", k=k).saes[""]
        estimated.append(needs.step.flops * _STEP_EFFICIENCY)
        learner = learner_of(make_sae("matching_pursuit", k=k))
        with FlopCounterMode(display=False) as counter:
            learner.step([rows], 0)
        counted.append(counter.get_total_flops())
    assert estimated[1] - estimated[0] == counted[1] - counted[0] == 5 * 2 * 32 * 48 * 16


def test_the_window_and_the_language_model_are_counted():
    found = needs_of(shuffle_window_tokens=320, hook_point="resid_post.*", activation_dtype="bfloat16")
    assert found.window_bytes == 3 * 320 * 16 * 2 and len(found.saes) == 3
    stream = ActivationStream(
        TensorActivations({"a": torch.zeros(400, 16)}, chunk_rows=50), batch_tokens=32, window_tokens=320
    )
    assert 3 * sum(b.numel() * b.element_size() for b in stream._buffers.values()) == found.window_bytes
    model = language_model()
    assert found.model_parameters == sum(p.numel() for p in model.parameters())
    assert found.model_bytes >= 4 * found.model_parameters


@pytest.mark.parametrize("has_units", [True, False])
def test_the_copies_that_a_cpu_reads_with_are_counted(monkeypatch, has_units):
    monkeypatch.setattr(streams, "has_bfloat16_units", lambda: has_units)
    model = language_model()
    source = LMActivations(
        model,
        TokenBlocks(text(), pythia_like(), context_length=12, batch_size=4),
        "resid_post.1",
        autocast_dtype=torch.bfloat16,
    )
    next(source)
    copies = [copy for _, copy in source._precision._weights._copies.values()]
    source.close()
    found = needs_of(hook_point="resid_post.1", activation_dtype="bfloat16")
    expected = sum(copy.numel() * copy.element_size() for copy in copies) if has_units else 0
    assert found.model_bytes - 4 * found.model_parameters == expected
    assert copies and needs_of(model_dtype="float32").model_bytes == 4 * found.model_parameters


def test_work_grows_with_the_depth_of_the_place_and_the_width_of_the_sae():
    shallow, deep = needs_of(hook_point="resid_post.0"), needs_of(hook_point="resid_post.2")
    assert deep.model_flops_per_token == 3 * shallow.model_flops_per_token
    narrow, wide = needs_of(n_features=128, k=2), needs_of(n_features=256, k=2)
    assert wide.saes[""].flops_per_token == 2 * narrow.saes[""].flops_per_token
    slow = Machine.told(1e9)
    assert wide.seconds(slow) > narrow.seconds(slow) > narrow.seconds(Machine.told(2e9)) > narrow.seconds(slow) / 2


def test_no_weights_are_needed(tmp_path):
    GPT2Config(n_embd=768, n_layer=12, n_head=12).save_pretrained(tmp_path)
    args = arguments(tmp_path, model_name_or_path=str(tmp_path), hook_point="resid_pre.8", n_features=12288, k=32)
    found = estimate(args)
    assert found.model_parameters == 124_439_808
    assert found.saes[""].parameters == 2 * 768 * 12288 + 12288 + 768


def test_groups_keep_the_order_and_fit():
    found = estimate(
        arguments("unused"), {str(n): {"n_features": 8 * n, "k": 2} for n in (1, 2, 3, 4)}, model=language_model()
    )
    assert found.groups(found.peak_bytes) == [["1", "2", "3", "4"]]
    fewer = found.groups(found.peak_bytes - 1)
    assert [name for group in fewer for name in group] == ["1", "2", "3", "4"] and len(fewer) == 2
    with pytest.raises(MemoryError, match="training 1 needs"):
        found.groups(found.fixed_bytes)
    assert isinstance(found.saes["1"], SAENeeds)


def test_a_process_holds_its_own_saes_or_its_part_of_each():
    own = {str(n): {"n_features": 32 * n, "k": 2} for n in (1, 2, 3)}
    alone, spread, shard = (
        estimate(arguments("unused", sae_placement=placement), own, model=language_model(), processes=2)
        for placement in ("replicate", "spread", "shard")
    )
    assert len(spread.held_together) == 2
    state = sum(needs.state_bytes for needs in alone.held_together)
    assert sum(needs.state_bytes for needs in spread.held_together) == pytest.approx(state / 2, rel=0.01)
    assert sum(needs.state_bytes for needs in shard.held_together) == pytest.approx(state / 2, rel=0.01)
    assert shard.saes["3"].flops_per_token == alone.saes["3"].flops_per_token
    assert spread.groups(spread.peak_bytes) == [["1", "2", "3"]]
    with pytest.raises(MemoryError, match="spread over 2 processes need"):
        spread.groups(spread.peak_bytes - 1)


def test_the_report_says_whether_it_fits():
    found = needs_of()
    assert "too much" not in found.report(10**9, MACHINE) and "too much" in found.report(1000, MACHINE)
    rows = {line[:18].strip() for line in found.report(10**9, MACHINE).splitlines()}
    assert {"language model", "SAEs", "optimiser state", "shuffled window", "peak memory", "time, a guess"} <= rows
    seconds = found.seconds(MACHINE)
    assert seconds < 60 and f"time, a guess      {seconds:.0f} s for" in found.report(10**9, MACHINE)


@pytest.mark.parametrize("flops", [1e12, 1e15, 1e21])
@pytest.mark.parametrize("processes", [1, 4])
def test_no_machine_is_promised_what_none_could_reach(flops, processes):
    """However fast its products are, text is made of tokens, and Python and memory take their time."""
    found = estimate(arguments("unused", training_tokens=10**9), model=language_model(), processes=processes)
    rate = found.training_tokens / found.seconds(Machine.told(flops))
    assert rate < processes * 1e6  # what a tokeniser's thread makes
    a_step = 32 * processes / rate
    assert a_step > 1e-3  # that of 32 tokens calls a hundred operations, at ten microseconds or more
    cached = estimate(
        arguments("unused", training_tokens=10**9, activation_cache="unused"),
        model=language_model(),
        processes=processes,
    )
    assert 32 * processes / (cached.training_tokens / cached.seconds(Machine.told(flops))) > 1e-3


@pytest.mark.parametrize("placement", ["replicate", "spread", "shard"])
def test_no_more_is_computed_moved_and_exchanged_than_the_machine_can(placement):
    """Of a large run on eight devices: the figure stands below each of the three limits by itself."""
    own = {str(index): {"n_features": 65536, "k": 32} for index in range(8)}
    args = arguments("unused", sae_placement=placement, training_tokens=10**9, train_batch_tokens=4096)
    found, machine = estimate(args, own, model=language_model(), processes=8, device_type="cuda"), Machine.told(4e14)
    rate = found.training_tokens / found.seconds(machine)
    flops = found.model_flops_per_token + sum(sae.flops_per_token for sae in found.saes.values())
    assert rate * flops < 8 * machine.flops
    steps = rate / (4096 * 8)
    assert steps * sum(sae.state_bytes for sae in found.held_together) < machine.moved
    # Gradients of all, or the rows of the seven others.
    least = 4 * sum(sae.parameters for sae in found.saes.values()) if placement == "replicate" else 7 * 4096 * 2 * 16
    assert steps * least < machine.exchanged


def test_work_takes_what_limits_it():
    machine = Machine(flops=10.0, narrow=100.0, moved=5.0, exchanged=2.0)
    assert Work(flops=20.0).seconds(machine) == 2.0 and Work(narrow=20.0).seconds(machine) == 0.2
    assert (
        Work(flops=20.0, moved=5.0).seconds(machine) == 2.0 and Work(flops=20.0, moved=50.0).seconds(machine) == 10.0
    )
    assert (Work(exchanged=4.0) * 2 + Work(waited=1.0)).seconds(machine) == 5.0


def test_processes_share_a_cpu():
    alone, shared = (Machine.measured(torch.device("cpu"), processes, seconds=0.05) for processes in (1, 50))
    assert 1e8 < alone.flops < 1e15 and 1e7 < alone.moved < 1e13
    assert shared.flops < alone.flops / 5 and shared.narrow < alone.narrow / 5 and shared.moved < alone.moved / 5
