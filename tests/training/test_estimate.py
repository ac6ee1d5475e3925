import pytest
import torch
from transformers import GPT2Config

from hfsae.data import ActivationStream, TensorActivations
from hfsae.training.estimate import SAENeeds, estimate, measured_flops_per_second
from hfsae.training.learner import Learner
from tests.data.tiny import language_model
from tests.training.tiny import ARCHITECTURES, arguments, make_sae, sparse_rows
from tests.training.tiny import make_learner as learner_of


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


def test_the_window_and_the_language_model_are_counted():
    found = needs_of(shuffle_window_tokens=320, hook_point="resid_post.*", activation_dtype="bfloat16")
    assert found.window_bytes == 3 * 320 * 16 * 2 and len(found.saes) == 3
    stream = ActivationStream(
        TensorActivations({"a": torch.zeros(400, 16)}, chunk_rows=50), batch_tokens=32, window_tokens=320
    )
    assert 3 * sum(b.numel() * b.element_size() for b in stream._buffers.values()) == found.window_bytes
    model = language_model()
    assert found.model_parameters == sum(p.numel() for p in model.parameters())
    assert found.model_bytes == 4 * found.model_parameters


def test_work_grows_with_the_depth_of_the_place_and_the_width_of_the_sae():
    shallow, deep = needs_of(hook_point="resid_post.0"), needs_of(hook_point="resid_post.2")
    assert deep.model_flops_per_token == 3 * shallow.model_flops_per_token
    narrow, wide = needs_of(n_features=128, k=2), needs_of(n_features=256, k=2)
    assert wide.saes[""].flops_per_token == 2 * narrow.saes[""].flops_per_token
    assert wide.seconds(1e9) > narrow.seconds(1e9) and narrow.seconds(2e9) == narrow.seconds(1e9) / 2


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
    assert "too much" not in found.report(10**9, 1e9) and "too much" in found.report(1000, 1e9)
    rows = {line[:18].strip() for line in found.report(10**9, 1e9).splitlines()}
    assert {"language model", "SAEs", "optimiser state", "shuffled window", "peak memory", "hours, a guess"} <= rows


def test_the_speed_of_this_machine_is_a_plausible_number():
    assert 1e8 < measured_flops_per_second(torch.device("cpu"), seconds=0.01) < 1e15
