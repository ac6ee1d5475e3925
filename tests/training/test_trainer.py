import json
import os
import signal

import pytest
import torch
from datasets import Dataset, load_dataset
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback

from hfsae import (
    SAE,
    BatchTopKSAE,
    BatchTopKSAEConfig,
    GatedSAEConfig,
    JumpReLUSAEConfig,
    SAETrainer,
    SAETrainingArguments,
    TopKSAE,
    TopKSAEConfig,
)
from hfsae.data import DatasetTooSmallError, NonFiniteActivationsError
from hfsae.training.checkpoint import last_checkpoint
from tests.data.tiny import language_model, llama_like, pythia_like
from tests.training.tiny import ARCHITECTURES, BATCH, At, make_sae, sparse_rows, stop_at, text, trainer

RESIDUAL = "transformer.h.1.output"
MLP = "transformer.h.0.mlp.output"


def names(folder):
    return {path.name for path in folder.iterdir()}


def count_passes(model):
    """Counts how often the language model's first block runs."""
    passes = []
    model.transformer.h[0].register_forward_pre_hook(lambda *_: passes.append(1))
    return passes


# -- one SAE and many -------------------------------------------------------------------------------------------------
def test_one_sae_is_trained_and_saved_with_its_card_and_its_log(tmp_path):
    output = trainer(tmp_path, logging_steps=4).train()
    assert output.completed and output.steps == 12 and list(output.saes) == [""]
    assert {"config.json", "model.safetensors", "README.md", "training_log.jsonl", "checkpoint-12"} <= names(tmp_path)
    saved = SAE.from_pretrained(tmp_path)
    assert isinstance(saved, TopKSAE) and saved.config.hook_point == RESIDUAL
    rows = sparse_rows(10)
    assert torch.equal(saved(rows).reconstruction, output.sae(rows).reconstruction)
    logged = [json.loads(line) for line in (tmp_path / "training_log.jsonl").read_text().splitlines()]
    assert logged == output.log_history and [entry["step"] for entry in logged] == [4, 8, 12]
    assert [entry["tokens"] for entry in logged] == [4 * BATCH, 8 * BATCH, 12 * BATCH]


@pytest.mark.parametrize("steps, logged", [(3, [1, 2, 3]), (250, [*range(2, 251, 2)])])
def test_a_short_run_logs_enough_for_a_curve(tmp_path, steps, logged):
    inputs = {"activations": sparse_rows(32 * steps)}
    output = trainer(tmp_path, steps=steps, train_batch_tokens=32, logging_steps=None, inputs=inputs).train()
    assert [entry["step"] for entry in output.log_history] == logged


def test_training_explains_more_of_held_out_activations_than_the_start_does(tmp_path):
    rows, fresh = sparse_rows(4000), sparse_rows(500, seed=1)
    before = make_sae("topk", rows[:64])
    options = {"steps": 100, "train_batch_tokens": 128, "learning_rate": 0.01}
    output = trainer(tmp_path, inputs={"activations": rows}, callbacks=[stop_at(99)], **options).train()

    def error(sae):
        return (sae(fresh).reconstruction - fresh).square().sum().item()

    assert error(output.sae) < 0.65 * error(before)


def test_saes_of_many_architectures_and_places_share_one_pass_of_the_language_model(tmp_path):
    options = {"n_features": 48, "d_in": 16}
    saes = {
        "wide": TopKSAEConfig(d_in=16, n_features=64, k=3, hook_point=RESIDUAL),
        "narrow": TopKSAEConfig(d_in=16, n_features=32, k=3, hook_point=RESIDUAL),
        "gated": GatedSAEConfig(**options, hook_point="mlp_out.0"),
        "mine": SAE.from_config(JumpReLUSAEConfig(**options, hook_point=MLP)),
    }
    passes = {}
    for case, trained in (("many", saes), ("one", {"wide": saes["wide"]})):
        model = language_model()
        passes[case] = count_passes(model)
        inputs = {"model": model, "saes": trained}
        output = trainer(tmp_path / case, inputs=inputs, callbacks=[stop_at(5)]).train()
        assert list(output.saes) == list(trained)
    assert len(passes["many"]) == len(passes["one"]) > 0
    assert (saes["mine"].W_dec - saes["mine"].encoder.weight).abs().max() > 0  # the object itself was trained


def test_what_comes_out_is_shown_in_a_line_and_as_a_table_of_figures(tmp_path):
    output = trainer(tmp_path, inputs={"saes": {"a": {"k": 3}, "b": {"k": 4}}}, eval_tokens=100).train()
    assert repr(output) == f"TrainOutput(completed after {output.steps} steps: a, b)"
    html = output._repr_html_()
    assert "loss recovered" in html and f"{output.metrics['b']['explained_variance']:.3f}" in html


def test_an_sae_in_a_run_of_many_ends_equal_to_the_same_sae_alone(tmp_path):
    configs = {
        "topk": TopKSAEConfig(d_in=16, n_features=64, k=3, hook_point=RESIDUAL),
        "gated": GatedSAEConfig(d_in=16, n_features=48, hook_point=RESIDUAL),
    }
    together = trainer(tmp_path / "together", inputs={"saes": configs}, callbacks=[stop_at(8)]).train().saes
    for name, config in configs.items():
        alone = trainer(tmp_path / name, inputs={"saes": config}, callbacks=[stop_at(8)]).train().sae
        for key, tensor in alone.state_dict().items():
            assert torch.equal(tensor, together[name].state_dict()[key]), f"{name} {key}"


def test_a_wildcard_trains_an_sae_at_every_place_and_saves_each_in_a_folder(tmp_path):
    output = trainer(tmp_path, steps=2, hook_point="resid_post.*").train()
    assert list(output.saes) == ["resid_post.0", "resid_post.1", "resid_post.2"]
    for layer in range(3):
        saved = SAE.from_pretrained(tmp_path / f"resid_post.{layer}")
        assert saved.config.hook_point == f"transformer.h.{layer}.output"
    with pytest.raises(ValueError, match="the run trained 3 SAEs: resid_post.0"):
        _ = output.sae


def test_what_training_writes_into_a_config_is_not_written_into_that_of_the_user(tmp_path):
    config = TopKSAEConfig(d_in=16, n_features=64, k=3)
    output = trainer(tmp_path, inputs={"saes": {"a": config, "b": config}}, callbacks=[stop_at(1)]).train()
    assert config.hook_point is None
    assert output.saes["a"].config.hook_point == RESIDUAL and output.saes["a"].config is not output.saes["b"].config


def test_the_config_tells_what_a_user_has_to_know(tmp_path):
    options = {"exclude_positions": [0, 1], "prepend_bos": True}
    config = trainer(tmp_path, callbacks=[stop_at(1)], **options).train().sae.config
    assert (config.context_length, config.prepend_bos, config.exclude_special_tokens) == (12, True, True)
    assert config.exclude_positions == [0, 1]


def test_a_model_and_its_text_are_found_by_name(tmp_path):
    language_model().save_pretrained(tmp_path / "lm")
    pythia_like().save_pretrained(tmp_path / "lm")
    text().to_json(tmp_path / "text.jsonl")
    named = trainer(
        tmp_path / "run",
        inputs={"model": str(tmp_path / "lm"), "train_dataset": None, "processing_class": None},
        dataset_name=str(tmp_path / "text.jsonl"),
        callbacks=[stop_at(3)],
    )
    objects = trainer(tmp_path / "objects", callbacks=[stop_at(3)])
    assert torch.equal(named.train().sae.W_dec, objects.train().sae.W_dec)


def test_a_llama_is_trained_on_as_a_gpt2_is(tmp_path):
    sizes = {"vocab_size": 44, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, max_position_embeddings=32))
    inputs = {"model": model, "processing_class": llama_like()}
    sae = trainer(tmp_path, inputs=inputs, hook_point="mlp_act.-1", callbacks=[stop_at(3)]).train().sae
    assert (sae.config.hook_point, sae.config.d_in) == ("model.layers.1.mlp.down_proj.input", 32)
    assert sae.config.prepend_bos is True


def test_the_users_model_is_left_without_hooks_and_with_its_gradients(tmp_path):
    model = language_model()
    trainer(tmp_path, inputs={"model": model}, callbacks=[stop_at(2)]).train()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


# -- activations of one's own -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["tensor", "dict", "dataset", "list", "generator"])
def test_activations_can_be_brought(tmp_path, kind):
    rows = sparse_rows(1000)
    brought = {
        "tensor": rows,
        "dict": {"here": rows},
        "dataset": Dataset.from_dict({"here": rows.tolist()}),
        "list": list(rows.split(50)),
        "generator": iter(rows.split(50)),
    }[kind]
    output = trainer(tmp_path / kind, inputs={"activations": brought}, callbacks=[stop_at(5)]).train()
    assert output.steps == 5 and output.sae.config.d_in == 16
    # The same rows in the same order, however they come.
    expected = trainer(tmp_path / "rows", inputs={"activations": rows}, callbacks=[stop_at(5)]).train()
    assert torch.equal(output.sae.W_dec, expected.sae.W_dec)


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("source", ["rows", "model"])
def test_a_run_is_the_same_where_gradients_are_off(tmp_path, around, source):
    model = language_model()

    def trained(name: str) -> SAE:
        # Rows that are made inside cannot be differentiated past.
        inputs = {"activations": sparse_rows(1000).view(1000, 16)} if source == "rows" else {"model": model}
        return trainer(tmp_path / name, inputs=inputs, callbacks=[stop_at(5)]).train().sae

    outside = trained("outside")
    with around():
        inside = trained("inside")
    assert torch.equal(inside.W_dec, outside.W_dec) and torch.equal(inside.encoder.weight, outside.encoder.weight)


def test_activations_of_several_places_train_an_sae_for_each_or_those_asked_for(tmp_path):
    brought = {"a": sparse_rows(500), "b": sparse_rows(500, 8)}
    output = trainer(tmp_path / "all", inputs={"activations": brought}, callbacks=[stop_at(1)]).train()
    assert {name: sae.config.d_in for name, sae in output.saes.items()} == {"a": 16, "b": 8}
    config = TopKSAEConfig(d_in=8, n_features=16, k=2, hook_point="b")
    inputs = {"activations": brought, "saes": {"only": config}}
    assert list(trainer(tmp_path / "one", inputs=inputs, callbacks=[stop_at(1)]).train().saes) == ["only"]
    config = TopKSAEConfig(d_in=8, n_features=16, k=2, hook_point="c")
    with pytest.raises(ValueError, match="SAE 'only' reads 'c', but the activations given are of a, b"):
        trainer(tmp_path / "other", inputs={"activations": brought, "saes": {"only": config}}).train()


def test_activations_that_end_too_early_are_an_error_that_says_when(tmp_path):
    few = iter(sparse_rows(5 * BATCH).split(BATCH))
    with pytest.raises(
        ValueError, match="the activations ended at step 5 of 12: bring more, or lower training_tokens"
    ):
        trainer(tmp_path, inputs={"activations": few}).train()
    with pytest.raises(ValueError, match="fewer activations than one batch of 32 tokens"):
        trainer(tmp_path, inputs={"activations": iter([sparse_rows(20)])}).train()


def test_a_model_and_activations_together_are_refused():
    with pytest.raises(ValueError, match="or activations of your own, not both"):
        SAETrainer(language_model(), activations=sparse_rows(10))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((SAETrainingArguments(),), r"the arguments second: SAETrainer\(args=args\)"),
        ((None, "gpt2"), r"the arguments second: SAETrainer\(args=args\)"),
        ((TopKSAEConfig(d_in=8, n_features=16, k=2),), r"SAEs are given as SAETrainer\(saes=\.\.\.\)"),
        ((torch.nn.Linear(2, 2),), "expected a Hugging Face language model"),
        ((pythia_like(),), "expected a Hugging Face language model"),
    ],
)
def test_a_first_argument_of_the_wrong_kind_says_what_is_wrong(given, message):
    with pytest.raises(TypeError, match=message):
        SAETrainer(*given)


QUADRATIC = {
    "architecture": "jumprelu",
    "architecture_options": {"sparsity": "l0_quadratic"},
    "sparsity_coefficient": 1.0,
}


# -- what does not fit ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hook_point": "resid_post.7"}, "there is no layer 7"),
        ({"hook_point": "resid_pots.1"}, "no hook point 'resid_pots.1'; the nearest are: resid_post"),
        ({"k": 49}, "no topk SAE: k must be between 1 and n_features=48, got 49"),
        (
            {"k": 49, "inputs": {"model": "not/loaded"}},
            "no topk SAE: k must be between 1 and n_features=48, got 49",
        ),
        (
            {"inputs": {"model": "not/loaded", "saes": {"a": {"k": 8}, "b": {"n_features": 24, "k": 30}}}},
            "SAE 'b': these options make no topk SAE: k must be between 1 and n_features=24, got 30",
        ),
        (
            {"architecture": "topkk", "inputs": {"model": "not/loaded"}},
            "unknown architecture 'topkk'; there are abs_topk, .*crosscoder, gated, jumprelu",
        ),
        (
            {"target_l0": 8, "inputs": {"model": "not/loaded"}},
            "target_l0 steers a sparsity penalty, which topk has not: its k says how many",
        ),
        (
            {
                "architecture": "gated",
                "target_l0": 8,
                "inputs": {"model": "not/loaded", "saes": BatchTopKSAEConfig(d_in=8, n_features=16, k=2)},
            },
            "target_l0 steers a sparsity penalty, which batch_topk has not",
        ),
        (
            {"inputs": {"model": "x/y", "saes": {"a": {"architecture": "gated"}, "b": {"sparsity_coefficient": 2}}}},
            "SAE 'b': sparsity_coefficient steers a sparsity penalty, which topk has not",
        ),
        (
            {**QUADRATIC, "inputs": {"model": "not/loaded"}},
            "'l0_quadratic' is the distance to a number of active features, which sparsity_coefficient leaves open",
        ),
        (
            {
                "sparsity_coefficient": 1.0,
                "inputs": {"model": "x/y", "saes": JumpReLUSAEConfig(d_in=8, n_features=16, sparsity="l0_quadratic")},
            },
            "sparsity='l0_quadratic' is the distance .* give target_l0",
        ),
        (
            {"inputs": {"model": "x/y", "saes": {"a": {"architecture": "gated"}, "b": QUADRATIC}}},
            "SAE 'b': sparsity='l0_quadratic' is the distance",
        ),
        ({"lr_end": 1e-5, "inputs": {"model": "x/y"}}, "the rate of topk is constant: give lr_scheduler_type too"),
        ({"architecture_options": {"multi_topkk": True}}, "no field 'multi_topkk'. Did you mean 'multi_topk'"),
        ({"architecture_options": {"multi_topk": "yes"}}, "no topk SAE: .*'multi_topk' expected bool"),
        ({"context_length": 65}, "context_length is 65, but the language model's context is 64"),
        ({"report_to": "tensorbord"}, "tensorbord"),
        ({"report_to": "comet_ml"}, "report_to names comet_ml, which is not installed"),
        ({"inputs": {"saes": TopKSAEConfig(d_in=8, n_features=16, k=2)}}, "d_in=8, but .* have 16 dimensions"),
        ({"inputs": {"saes": {"a": TopKSAEConfig(d_in=8, n_features=16, k=2)}}}, "SAE 'a' has d_in=8"),
        ({"inputs": {"train_dataset": None}}, "no text to train on: give dataset_name"),
        ({"inputs": {"model": None}}, "no language model"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_first_step(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path / "run", **change).train()
    assert not (tmp_path / "run").exists()


def test_text_shorter_than_a_batch_is_refused(tmp_path):
    short = torch.arange(1, 29).view(7, 4)
    with pytest.raises(DatasetTooSmallError, match="fill 1 of the 4 blocks of 12 tokens in a batch"):
        trainer(tmp_path, inputs={"train_dataset": short}).train()


@pytest.mark.parametrize("trace", ["a checkpoint", "a trained SAE"])
def test_a_folder_that_holds_another_run_is_not_written_over_unless_asked(tmp_path, trace):
    trainer(tmp_path, steps=2, callbacks=[stop_at(1)] if trace == "a checkpoint" else []).train()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(FileExistsError, match="holds another run .*resume with resume_from_checkpoint='last'"):
        trainer(tmp_path).train()
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    output = trainer(tmp_path, overwrite_output_dir=True, callbacks=[stop_at(3)]).train()
    assert output.steps == 3 and {name for name in names(tmp_path) if "checkpoint" in name} == {"checkpoint-3"}


def test_what_a_killed_process_left_is_cleared_away(tmp_path):
    for half_written in (tmp_path / ".unfinished-checkpoint-4" / "saes", tmp_path / ".saving-x"):
        half_written.mkdir(parents=True)
        (half_written / "model.safetensors").touch()
    trainer(tmp_path, callbacks=[stop_at(1)]).train()
    assert names(tmp_path) == {"checkpoint-1"}


# -- numbers that are none --------------------------------------------------------------------------------------------
def test_activations_that_stop_being_numbers_end_the_run_with_the_place_and_the_step(tmp_path):
    model = language_model()
    spoil = At(4, lambda **_: model.transformer.h[0].mlp.c_fc.weight.detach().fill_(torch.nan))
    message = rf"step 4: NaN or infinity at {RESIDUAL}.*The last good checkpoint is .*checkpoint-4"
    with pytest.raises(NonFiniteActivationsError, match=message):
        trainer(tmp_path, inputs={"model": model}, callbacks=[spoil], save_steps=2).train()
    assert names(tmp_path) == {"checkpoint-2", "checkpoint-4"}
    resumed = trainer(tmp_path, callbacks=[stop_at(6)], save_steps=2).train(resume_from_checkpoint=True)
    assert resumed.steps == 6 and resumed.sae.W_dec.isfinite().all()


def test_a_loss_that_stops_being_a_number_ends_the_run_with_the_sae_and_the_step(tmp_path):
    saes = {
        "fine": TopKSAEConfig(d_in=16, n_features=48, k=2, hook_point=MLP),
        "wild": TopKSAEConfig(d_in=16, n_features=48, k=2, hook_point=RESIDUAL),
    }

    def spoil(saes, **_):
        saes["wild"].encoder.weight.data.fill_(torch.nan)

    message = rf"the loss of SAE 'wild' at {RESIDUAL} is not a number, found after step 6.*checkpoint-4"
    with pytest.raises(FloatingPointError, match=message):
        trainer(tmp_path, inputs={"saes": saes}, callbacks=[At(5, spoil)], save_steps=2).train()
    assert names(tmp_path) == {"checkpoint-2", "checkpoint-4"}


def test_an_absurd_learning_rate_ends_the_run(tmp_path):
    with pytest.raises(FloatingPointError, match="Try a lower learning_rate. There is no checkpoint yet"):
        trainer(tmp_path, learning_rate=1e30, revival="none", architecture="standard").train()
    assert names(tmp_path) == set()


# -- callbacks --------------------------------------------------------------------------------------------------------
class Recorder(TrainerCallback):
    """Notes every event with the step it came after, and asks for what it was told to ask for."""

    def __init__(self, **asks):
        self.events, self._asks, self.logs = [], asks, []

    def _note(self, event, state):
        self.events.append((event, state.global_step))

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        assert isinstance(args, SAETrainingArguments) and isinstance(model[""], SAE)
        self._note("train_begin", state)

    def on_step_begin(self, args, state, control, **kwargs):
        self._note("step_begin", state)

    def on_step_end(self, args, state, control, **kwargs):
        self._note("step_end", state)
        for ask, step in self._asks.items():
            if state.global_step == step:
                setattr(control, ask, True)

    def on_log(self, args, state, control, logs=None, **kwargs):
        self._note("log", state)
        self.logs.append(logs)

    def on_save(self, args, state, control, **kwargs):
        self._note("save", state)

    def on_train_end(self, args, state, control, **kwargs):
        self._note("train_end", state)


def test_events_come_as_in_transformers_and_what_a_callback_asks_for_is_done(tmp_path):
    recorder = Recorder(should_log=1, should_save=2, should_training_stop=3)
    output = trainer(tmp_path, callbacks=[recorder]).train()
    assert recorder.events == [
        ("train_begin", 0),
        *[("step_begin", 0), ("step_end", 1), ("log", 1)],
        *[("step_begin", 1), ("step_end", 2), ("save", 2)],
        *[("step_begin", 2), ("step_end", 3), ("log", 3), ("save", 3)],
        ("train_end", 3),
    ]
    assert (output.steps, output.completed) == (3, False)
    assert names(tmp_path) == {"checkpoint-2", "checkpoint-3"}
    assert [entry["step"] for entry in output.log_history] == [1, 3] and recorder.logs == output.log_history


def test_logs_and_checkpoints_come_as_often_as_asked_and_at_the_end(tmp_path):
    recorder = Recorder(should_training_stop=7)
    trainer(tmp_path, callbacks=[recorder], logging_steps=3, save_steps=2, save_total_limit=3).train()
    assert [step for event, step in recorder.events if event == "log"] == [3, 6, 7]
    assert [step for event, step in recorder.events if event == "save"] == [2, 4, 6, 7]
    assert names(tmp_path) == {"checkpoint-4", "checkpoint-6", "checkpoint-7"}


def test_checkpoints_come_by_minutes_too(tmp_path):
    recorder = Recorder(should_training_stop=3)
    trainer(tmp_path, callbacks=[recorder], save_minutes=1e-9).train()
    assert [step for event, step in recorder.events if event == "save"] == [1, 2, 3]
    trainer(tmp_path / "seldom", callbacks=[stop_at(3)], save_minutes=60).train()
    assert names(tmp_path / "seldom") == {"checkpoint-3"}


def test_the_best_checkpoint_by_a_named_metric_is_kept_beside_the_newest(tmp_path):
    options = {"save_steps": 2, "logging_steps": 1, "save_total_limit": 1, "metric_for_best_model": "learning_rate"}
    output = trainer(tmp_path, warmup_steps=0, greater_is_better=True, **options).train()
    assert output.best_checkpoint == tmp_path / "checkpoint-2"
    assert {name for name in names(tmp_path) if "checkpoint" in name} == {"checkpoint-2", "checkpoint-12"}
    stored = json.loads((tmp_path / "checkpoint-12" / "run.json").read_text())["best"]
    assert stored["step"] == 2 and stored["metric"] == "learning_rate"


def test_what_is_best_is_remembered_over_an_interruption(tmp_path):
    options = {"save_steps": 1, "logging_steps": 1, "save_total_limit": 1, "metric_for_best_model": "learning_rate"}
    options |= {"greater_is_better": True, "warmup_steps": 0, "lr_scheduler_type": "linear"}
    trainer(tmp_path, callbacks=[stop_at(4)], **options).train()
    output = trainer(tmp_path, callbacks=[stop_at(6)], **options).train(resume_from_checkpoint=True)
    assert output.best_checkpoint == tmp_path / "checkpoint-1" and names(tmp_path) == {"checkpoint-1", "checkpoint-6"}


def test_a_metric_that_is_not_logged_cannot_choose_the_best(tmp_path):
    with pytest.raises(ValueError, match="metric_for_best_model='loss_recovered' is not logged; there are .*, l0, "):
        trainer(tmp_path, callbacks=[stop_at(1)], metric_for_best_model="loss_recovered").train()


def test_a_shard_that_vanishes_ends_the_run_with_the_last_checkpoint_whole(tmp_path):
    for shard in range(2):
        text().select(range(150 * shard, 150 * shard + 150)).to_json(tmp_path / f"{shard}.jsonl")
    gone = At(3, lambda **_: (tmp_path / "1.jsonl").unlink())
    streamed = load_dataset("json", data_files=str(tmp_path / "*.jsonl"), split="train", streaming=True)
    inputs = {"train_dataset": streamed}
    options = {"save_steps": 2, "steps": 400, "prefetch_batches": 1, "shuffle_window_tokens": 0}
    with pytest.raises(
        OSError, match=r"step \d+: the text could not be read on: .*1.jsonl.*The last good checkpoint is"
    ):
        trainer(tmp_path / "run", inputs=inputs, callbacks=[gone], **options).train()
    newest = last_checkpoint(tmp_path / "run")
    assert SAE.from_pretrained(newest / "saes").W_dec.isfinite().all()
    assert json.loads((newest / "run.json").read_text())["step"] == int(newest.name.split("-")[1])


def test_the_log_of_many_saes_names_each(tmp_path):
    saes = {name: TopKSAEConfig(d_in=16, n_features=48, k=2) for name in ("a", "b")}
    entry = trainer(tmp_path, inputs={"saes": saes}, callbacks=[stop_at(1)]).train().log_history[-1]
    assert {"step", "tokens", "tokens_per_second", "a/mse", "b/mse", "a/l0", "b/dormant_fraction"} <= entry.keys()
    assert "mse" not in entry


def test_trackers_get_the_log(tmp_path):
    output = trainer(tmp_path, report_to="tensorboard", run_name="mine", callbacks=[stop_at(2)]).train()
    written = b"".join(path.read_bytes() for path in tmp_path.glob("mine/**/events.out.tfevents.*"))
    assert all(key.encode() in written for key in output.log_history[-1])


# -- stopping ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_writes_a_checkpoint_and_returns(tmp_path, number):
    handler = signal.getsignal(number)
    output = trainer(tmp_path, callbacks=[At(3, lambda **_: os.kill(os.getpid(), number))]).train()
    assert (output.steps, output.completed, output.metrics) == (3, False, {})
    assert names(tmp_path) == {"checkpoint-3"}
    assert signal.getsignal(number) == handler


def test_ctrl_c_during_the_last_step_leaves_a_run_that_is_complete(tmp_path):
    output = trainer(tmp_path, steps=2, callbacks=[At(2, lambda **_: os.kill(os.getpid(), signal.SIGINT))]).train()
    assert output.completed and (tmp_path / "model.safetensors").exists()


@pytest.fixture
def heard_in_the_background():
    """A job in the background is deaf to Ctrl-C; a test of it is not."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_before_the_first_step_ends_at_once_since_nothing_is_there_to_save(tmp_path, heard_in_the_background):
    def batches():
        os.kill(os.getpid(), signal.SIGINT)
        while True:
            yield torch.randn(32, 16)

    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "run", inputs={"activations": batches()}, eval_tokens=0).train()
    assert not (tmp_path / "run").exists()


def test_ctrl_c_after_the_last_step_ends_at_once_since_the_checkpoint_is_there(tmp_path, heard_in_the_background):
    class Interrupting(BatchTopKSAE):
        def calibrate(self, batches):
            os.kill(os.getpid(), signal.SIGINT)

    sae = Interrupting(BatchTopKSAEConfig(d_in=16, n_features=48, k=4, hook_point="resid_post.1"))
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, inputs={"saes": sae}).train()
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-12"


# -- schedules, as they reach the optimiser ---------------------------------------------------------------------------
def test_the_learning_rate_reaches_its_end_whatever_the_accumulation(tmp_path):
    options = {"lr_scheduler_type": "linear", "lr_decay_fraction": 0, "lr_end": 1e-4, "learning_rate": 1e-2}
    recorder = Recorder(should_training_stop=12)
    trainer(tmp_path, callbacks=[recorder], gradient_accumulation_steps=3, logging_steps=1, **options).train()
    assert recorder.logs[-1]["learning_rate"] == pytest.approx(1e-4) and len(recorder.logs) == 12


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_bfloat16_and_float32_runs_can_follow_each_other_in_one_process(tmp_path, architecture):
    for bf16 in (True, False):
        options = {"architecture": architecture, "bf16": bf16, "callbacks": [stop_at(2)]}
        sae = trainer(tmp_path / str(bf16), **options).train().sae
        assert sae.W_dec.dtype == torch.float32 and "forward" not in vars(sae)
