import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from transformers import GPT2Config, GPT2LMHeadModel

from hfsae import SAE, JumpReLUSAEConfig, StandardSAEConfig
from hfsae.parallel.launching import refuse_other_sharding, start_accelerator
from hfsae.run_inputs.user_inputs import UserInputs
from hfsae.training.checkpoint import claim_output_dir
from hfsae.training.setup import prepare_run
from tests.data.tiny import language_model, pythia_like
from tests.training.tiny import ARCHITECTURES, BATCH, arguments, stop_at, text, trainer


def prepare(folder, *, resuming=False, saes=None, model=None, **options):
    args = arguments(folder, **options)
    accelerator = start_accelerator(args)
    claim_output_dir(args, accelerator, None)
    inputs = UserInputs(model or language_model(), saes, text(), None, pythia_like(), None)
    return prepare_run(args, inputs, accelerator, resuming=resuming)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_fresh_sae_starts_from_the_first_tokens_which_are_trained_on_all_the_same(tmp_path, architecture):
    run = prepare(tmp_path, architecture=architecture, init_tokens=3 * BATCH)
    sae, (place,) = run.learners[""].sae, run.hook_points[""].names
    batches = [run.next_batches(step)[0][place] for step in range(3)]
    first = torch.cat(batches)
    assert sae.input_scale.item() == pytest.approx(16**0.5 / first.norm(dim=1).mean().item(), rel=1e-5)
    again = prepare(tmp_path, architecture=architecture, resuming=True)
    assert torch.equal(again.next_batches(0)[0][place], batches[0])
    assert again.learners[""].sae.input_scale == 1  # a checkpoint will say what it is


def test_weights_are_drawn_by_the_seed_alone(tmp_path):
    saes = {name: StandardSAEConfig(d_in=16, n_features=48) for name in ("a", "b")}
    run = prepare(tmp_path, saes=saes)
    torch.manual_seed(123)
    other = prepare(tmp_path, saes={"b": saes["b"]})
    weights = [run.learners["a"], run.learners["b"], other.learners["b"]]
    assert all(torch.equal(learner.sae.W_dec, weights[0].sae.W_dec) for learner in weights)
    assert not torch.equal(prepare(tmp_path, saes=saes, seed=1).learners["a"].sae.W_dec, weights[0].sae.W_dec)


def test_an_sae_is_made_as_the_arguments_say(tmp_path):
    options = {"n_features": None, "expansion_factor": 4.0, "architecture_options": {"bandwidth": 0.25}}
    config = prepare(tmp_path, architecture="jumprelu", **options).learners[""].sae.config
    assert isinstance(config, JumpReLUSAEConfig) and (config.n_features, config.bandwidth) == (64, 0.25)


def test_training_weights_are_float32_whatever_the_language_model(tmp_path):
    run = prepare(tmp_path, model=language_model().bfloat16())
    assert all(parameter.dtype == torch.float32 for parameter in run.learners[""].sae.parameters())


def test_an_sae_whose_checkpoints_do_not_fit_on_the_disk_is_refused(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10_000, 9_000, 1_000))
    with pytest.raises(OSError, match="has 1.00 kB free, but 57.60 kB are needed for its checkpoints"):
        prepare(tmp_path)


def test_more_processes_than_accelerate_has_joined_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RuntimeError, match="2 processes were asked for, but Accelerate sees 1.*launch with `torchrun"):
        start_accelerator(arguments(tmp_path))


def test_steps_that_a_launcher_or_another_run_adds_up_change_no_gradient_and_stay(tmp_path):
    """Each gradient was divided by what `accelerate launch` was told, so that fewer were clipped."""
    options = {"steps": 4, "adam_epsilon": 1.0}
    plain = trainer(tmp_path / "plain", **options).train().saes[""].state_dict()
    users = Accelerator(cpu=True, gradient_accumulation_steps=64)
    try:
        beside = trainer(tmp_path / "beside", **options).train().saes[""].state_dict()
        torch.testing.assert_close(beside, plain, rtol=0, atol=0)
        assert users.gradient_accumulation_steps == 64
    finally:
        users.gradient_state.plugin_kwargs = {"num_steps": 1}


def test_an_accelerator_that_rounds_is_refused_in_a_sentence(tmp_path):
    script = (
        "from accelerate import Accelerator; from hfsae import SAETrainingArguments\n"
        "from hfsae.parallel.launching import start_accelerator\n"
        "Accelerator(cpu=True, mixed_precision='bf16')\n"
        "start_accelerator(SAETrainingArguments(output_dir='unused', use_cpu=True))\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=300)
    assert "ValueError: an Accelerator of this process has mixed_precision='bf16', which holds for all" in done.stderr


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED", "MEGATRON_LM"])
def test_another_way_of_cutting_models_is_refused(kind):
    with pytest.raises(ValueError, match=f"by {kind}, and hfsae cuts SAEs itself: .*sae_placement='shard'"):
        refuse_other_sharding(DistributedType(kind))


def test_the_width_of_an_sae_is_that_of_the_place(tmp_path):
    model = GPT2LMHeadModel(GPT2Config(vocab_size=44, n_positions=64, n_embd=16, n_layer=2, n_head=2))
    run = prepare(tmp_path, model=model, hook_point="mlp_act.0, attn_out.1")
    assert {name: learner.sae.config.d_in for name, learner in run.learners.items()} == {
        "mlp_act.0": 64,
        "attn_out.1": 16,
    }


@pytest.mark.slow
def test_accelerate_launch_on_a_cpu_that_would_start_one_process_is_refused(tmp_path):
    """It says nothing of the processes it does not start."""
    script = tmp_path / "start.py"
    script.write_text(
        "from hfsae.parallel.launching import start_accelerator\n"
        "from hfsae import SAETrainingArguments\n"
        "start_accelerator(SAETrainingArguments(output_dir='unused', use_cpu=True))\n"
    )
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([*launch, str(script)], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode != 0 and "2 processes were asked for, but Accelerate sees 1" in done.stderr
    assert subprocess.run([sys.executable, str(script)], env=environment, timeout=300).returncode == 0


# -- starting from a published SAE ------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder with a trained SAE."""
    folder = tmp_path_factory.mktemp("published")
    trainer(folder, steps=3, architecture="batch_topk", eval_tokens=100).train()
    return folder


def test_training_goes_on_from_a_published_sae(tmp_path, published):
    options = {"init_from": str(published), "learning_rate": 1e-9, "eval_tokens": 0}
    output = trainer(tmp_path, steps=2, **options).train()
    before, sae = SAE.from_pretrained(published), output.sae
    torch.testing.assert_close(sae.W_dec, before.W_dec, atol=1e-6, rtol=0)
    assert type(sae) is type(before) and torch.equal(sae.input_scale, before.input_scale)
    assert sae.config.metrics is None and sae.config.training["init_from"] == str(published)
    assert sae.config.training["steps"] == 2


def test_training_goes_on_with_a_fine_tuned_model(tmp_path, published):
    model, tokens = language_model(), torch.randint(1, 40, (4, 12), generator=torch.Generator().manual_seed(0))
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(5):
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    tuned = str(tmp_path / "tuned")
    model.save_pretrained(tuned)
    options = {"init_from": str(published), "eval_tokens": 100, "learning_rate": 1e-9}
    sae = trainer(tmp_path / "run", steps=2, inputs={"model": tuned}, **options).train().sae
    torch.testing.assert_close(sae.W_dec, SAE.from_pretrained(published).W_dec, atol=1e-6, rtol=0)
    assert sae.config.base_model == tuned and sae.config.training["init_from"] == str(published)
    measured, before = sae.config.metrics, SAE.from_pretrained(published).config.metrics
    assert measured["explained_variance"] != before["explained_variance"]  # of the activations of the tuned model
    assert SAE.from_pretrained(tmp_path / "run").config.base_model == tuned


def test_it_can_lie_in_a_folder_of_a_repository_at_a_commit(hub, tmp_path, published):
    before = SAE.from_pretrained(published)
    commit = before.push_to_hub("tester/zoo", subfolder="deep/one").oid
    before.push_to_hub("tester/zoo", subfolder="deep/one", commit_message="Later")
    options = {"init_from": f"tester/zoo/deep/one@{commit}", "learning_rate": 1e-9}
    sae = trainer(tmp_path, steps=1, **options).train().sae
    torch.testing.assert_close(sae.W_dec, before.W_dec, atol=1e-6, rtol=0)
    assert sae.config.training["init_commit"] == commit


def test_saes_of_a_sweep_can_start_from_one_each(tmp_path, published):
    saes = {"on": {"init_from": str(published), "learning_rate": 1e-9}, "anew": {"architecture": "batch_topk"}}
    output = trainer(tmp_path, steps=2, inputs={"saes": saes}).train()
    before = SAE.from_pretrained(published).W_dec
    assert torch.allclose(output.saes["on"].W_dec, before, atol=1e-6)
    assert not torch.allclose(output.saes["anew"].W_dec, before, atol=1e-2)


@pytest.fixture(scope="module")
def quadratic(tmp_path_factory):
    """A folder with a JumpReLU SAE that was trained as those of Gemma Scope 2."""
    folder = tmp_path_factory.mktemp("quadratic")
    options = {"architecture": "jumprelu", "architecture_options": {"sparsity": "l0_quadratic"}, "target_l0": 6.0}
    trainer(folder, steps=60, **options).train()
    return folder


def test_a_penalty_is_that_of_the_sae_it_starts_from(tmp_path, quadratic):
    """No architecture needs to be named, and λ may not be fixed where that SAE's loss cannot have it."""
    start = {"init_from": str(quadratic)}
    fixed = "sparsity='l0_quadratic' is the distance to a number .* give target_l0 in its place"
    with pytest.raises(ValueError, match=fixed):
        trainer(tmp_path, steps=2, sparsity_coefficient=1.0, **start).train()
    with pytest.raises(ValueError, match=f"SAE 'a': {fixed}"):
        trainer(tmp_path, steps=2, inputs={"saes": {"a": {"sparsity_coefficient": 1.0, **start}}}).train()
    with pytest.raises(ValueError, match="ask for sparsity='l0', but .* has 'l0_quadratic': leave it out"):
        trainer(tmp_path, steps=2, target_l0=6.0, architecture_options={"sparsity": "l0"}, **start).train()
    assert not list(tmp_path.iterdir())
    again = {"architecture_options": {"sparsity": "l0_quadratic"}, "target_l0": 6.0, "logging_steps": 1}
    output = trainer(tmp_path, steps=2, learning_rate=1e-9, **again, **start).train()
    torch.testing.assert_close(output.sae.threshold, SAE.from_pretrained(quadratic).threshold, atol=1e-6, rtol=0)
    first = output.log_history[0]
    # λ (mean L0 / target − 1)², whose λ rises over the first step.
    expected = first["sparsity_coefficient"] * (first["l0"] / 6 - 1) ** 2
    assert output.sae.config.sparsity == "l0_quadratic" and first["sparsity"] == pytest.approx(expected, rel=1e-2)


def test_a_run_from_such_an_sae_is_resumed_bit_for_bit(tmp_path, quadratic):
    options = {"init_from": str(quadratic), "target_l0": 6.0, "steps": 12}
    whole = trainer(tmp_path / "whole", **options).train()
    trainer(tmp_path / "parts", callbacks=[stop_at(5)], save_steps=5, **options).train()
    parts = trainer(tmp_path / "parts", resume_from_checkpoint="last", **options).train()
    for name, tensor in whole.sae.state_dict().items():
        assert torch.equal(tensor, parts.sae.state_dict()[name]), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "gated"}, "architecture is 'gated', but .* has 'batch_topk'"),
        ({"n_features": 64}, "n_features is 64, but .* has 48"),
        ({"hook_point": "mlp_act.1"}, "have 64 dimensions"),
        ({"architecture_options": {"dense": 1}}, "ask for dense=1, but .* has None: leave it out"),
        ({"target_l0": 5.0}, "target_l0 steers a sparsity penalty, which batch_topk has not"),
    ],
)
def test_what_is_asked_for_must_be_what_was_published(tmp_path, published, options, message):
    options = {"n_features": None, "expansion_factor": 16, **options}
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, init_from=str(published), **options).train()
