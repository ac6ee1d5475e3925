"""What a trainer offers besides `train`: its state, its callbacks, single steps, evaluation, saving and publishing."""

import pytest
import torch
from transformers import TrainerCallback, TrainerState

from hfsae import SAE, SAETrainer, TopKSAEConfig
from hfsae.training.callbacks import HealthWarnings, ProgressBar
from tests.circles import tensors_in_circles
from tests.training.tiny import ARCHITECTURES, BATCH, At, arguments, sparse_rows, stop_at, text, trainer

RESIDUAL = "transformer.h.1.output"


def weights(sae):
    return {name: tensor.clone() for name, tensor in sae.state_dict().items()}


def equal(before, after):
    return before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


# -- from birth -------------------------------------------------------------------------------------------------------
def test_a_trainer_has_a_state_and_callbacks_before_anything_is_loaded(tmp_path):
    fresh = trainer(tmp_path / "run", inputs={"model": "not/loaded"}, callbacks=[stop_at(1)])
    assert isinstance(fresh.state, TrainerState) and fresh.state.global_step == 0 and fresh.state.log_history == []
    assert [type(callback) for callback in fresh.callbacks] == [ProgressBar, HealthWarnings, At]
    assert fresh.control.should_training_stop is False and not (tmp_path / "run").exists()


def test_its_saes_are_there_when_they_are_asked_for(tmp_path):
    fresh = trainer(tmp_path, inputs={"saes": {"a": {"k": 2}, "b": {"architecture": "gated"}}})
    assert list(fresh.saes) == ["a", "b"] and fresh.saes["a"].config.k == 2
    assert fresh.saes["a"] is fresh.saes["a"] and fresh.saes["a"].config.hook_point == RESIDUAL
    assert fresh.saes["a"].input_scale != 1  # started from the first activations


def test_looking_at_the_saes_changes_nothing_of_the_run(tmp_path):
    looked = trainer(tmp_path / "looked")
    _ = looked.saes
    ends = [weights(one.train().sae) for one in (looked, trainer(tmp_path / "not"))]
    assert equal(*ends)


def test_callbacks_are_added_and_removed_by_object_or_class(tmp_path):
    class Counter(TrainerCallback):
        steps = 0

        def on_step_end(self, args, state, control, **kwargs):
            Counter.steps += 1

    fresh, once = trainer(tmp_path, steps=3), stop_at(1)
    fresh.add_callback(Counter)
    fresh.add_callback(once)
    fresh.remove_callback(ProgressBar)
    fresh.remove_callback(once)
    fresh.remove_callback(once)  # is not there any more
    assert fresh.train().completed and Counter.steps == 3
    assert [type(callback) for callback in fresh.callbacks] == [HealthWarnings, Counter]


# -- single steps -----------------------------------------------------------------------------------------------------
def test_steps_by_hand_and_then_a_run_end_as_a_run_alone(tmp_path):
    by_hand = trainer(tmp_path / "hand", steps=6, gradient_accumulation_steps=2)
    losses = [by_hand.training_step()[""] for _ in range(3)]
    assert by_hand.state.global_step == 3 and all(loss > 0 for loss in losses)
    output, alone = by_hand.train(), trainer(tmp_path / "alone", steps=6, gradient_accumulation_steps=2).train()
    assert output.steps == alone.steps == 6 and equal(weights(output.sae), weights(alone.sae))


def test_a_step_trains_on_the_batch_that_it_is_given(tmp_path):
    rows, fresh = sparse_rows(40 * BATCH), sparse_rows(500, seed=1)
    by_hand = trainer(tmp_path, steps=60, learning_rate=0.01, inputs={"activations": rows[: 4 * BATCH].repeat(50, 1)})
    before = (by_hand.saes[""](fresh).reconstruction - fresh).square().sum().item()
    losses = [by_hand.training_step(batch)[""] for batch in rows.split(BATCH)]
    assert by_hand.state.global_step == 40 and losses[-1] < losses[0]
    assert (by_hand.saes[""].eval()(fresh).reconstruction - fresh).square().sum().item() < before


def test_the_loss_of_every_sae_is_told_by_name_and_a_transcoder_gets_its_target(tmp_path):
    rows = {"before": sparse_rows(400), "after": sparse_rows(400, seed=1)}
    own = {"a": {"hook_point": "before"}, "b": {"hook_point": "before", "target_hook_point": "after"}}
    by_hand = trainer(tmp_path, inputs={"activations": rows, "saes": own})
    losses = by_hand.training_step({name: part[:BATCH] for name, part in rows.items()})
    assert list(losses) == ["a", "b"] and all(loss > 0 for loss in losses.values())


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (torch.zeros(BATCH - 1, 16), rf"shape \(31, 16\): expected \({BATCH}, d_in\)"),
        ({"resid_post.2": torch.zeros(BATCH, 16)}, f"trained on activations of {RESIDUAL}"),
        ([[0.0] * 16] * BATCH, f"trained on activations of {RESIDUAL}"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(tmp_path, batch, message):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path).training_step(batch)


def test_no_step_is_taken_behind_the_last_or_after_the_run(tmp_path):
    by_hand = trainer(tmp_path, steps=1)
    by_hand.training_step()
    with pytest.raises(ValueError, match="all 1 steps of the run are taken"):
        by_hand.training_step()
    assert by_hand.train().completed
    with pytest.raises(RuntimeError, match="make another SAETrainer"):
        by_hand.training_step()


def test_a_loss_that_is_no_number_is_refused_with_the_step(tmp_path):
    by_hand = trainer(tmp_path, inputs={"activations": sparse_rows(400)})
    by_hand.training_step()
    with pytest.raises(FloatingPointError, match="found after step 2"):
        by_hand.training_step(torch.full((BATCH, 16), 1e30))


def test_a_batch_that_is_not_finite_costs_no_weights(tmp_path):
    by_hand, other = trainer(tmp_path / "a"), trainer(tmp_path / "b")
    for value in (torch.nan, torch.inf):
        with pytest.raises(ValueError, match="hold what is no finite number: no step was taken"):
            by_hand.training_step(torch.full((BATCH, 16), value))
    assert by_hand.state.global_step == 0
    assert by_hand.training_step() == other.training_step()


# -- evaluation -------------------------------------------------------------------------------------------------------
def test_it_measures_before_and_after_training_on_the_text_of_the_run(tmp_path):
    one = trainer(tmp_path, steps=100, train_batch_tokens=64, learning_rate=0.01, eval_tokens=200)
    before = one.evaluate()[""]
    output = one.train()
    after = one.evaluate()[""]
    recorded = output.metrics[""]
    assert after["explained_variance"] == pytest.approx(recorded["explained_variance"], abs=1e-12)
    assert before["explained_variance"] < after["explained_variance"]
    assert before["n_tokens"] == after["n_tokens"] == recorded["n_tokens"] and "baselines" in before


def test_another_text_can_be_measured_on(tmp_path):
    other = text(20)
    one = trainer(tmp_path / "one", eval_tokens=10_000)
    of_its_own = trainer(tmp_path / "other", eval_tokens=10_000, inputs={"eval_dataset": other})
    measured, wanted = one.evaluate(other)[""], of_its_own.evaluate()[""]
    assert measured["explained_variance"] == pytest.approx(wanted["explained_variance"], abs=1e-12)
    assert measured["n_tokens"] == wanted["n_tokens"] != one.evaluate()[""]["n_tokens"]
    assert measured["protocol"]["dataset"] is None


def test_measuring_in_the_midst_of_training_tells_the_callbacks_and_changes_nothing(tmp_path):
    told = []

    class Listener(TrainerCallback):
        def on_evaluate(self, args, state, control, metrics, **kwargs):
            told.append((state.global_step, "explained_variance" in metrics[""]))

    options = {"steps": 6, "eval_tokens": 200, "architecture": "batch_topk"}
    measured = trainer(tmp_path / "measured", callbacks=[Listener], **options)
    measured.add_callback(At(3, lambda **_: measured.evaluate()))
    ends = [weights(one.train().sae) for one in (measured, trainer(tmp_path / "not", **options))]
    assert equal(*ends) and told == [(3, True)]


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        (
            {"activations": sparse_rows(400)},
            {"eval_tokens": 100},
            "there is no language model: activations were given",
        ),
        (None, {"eval_tokens": 0}, "eval_tokens is 0"),
    ],
)
def test_what_cannot_be_measured_is_refused(tmp_path, inputs, options, message):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, inputs=inputs, **options).evaluate()


# -- saving -----------------------------------------------------------------------------------------------------------
def test_what_is_saved_is_loaded_again_before_during_and_after_training(tmp_path):
    one, rows = trainer(tmp_path / "run", steps=4, eval_tokens=100), sparse_rows(10)

    def saved(folder):
        one.save_model(folder)
        loaded = SAE.from_pretrained(folder)
        assert torch.equal(loaded(rows).reconstruction, one.saes[""].eval()(rows).reconstruction)
        return loaded

    assert saved(tmp_path / "before").config.training["steps"] == 0
    one.training_step()
    during = saved(tmp_path / "during")
    assert during.config.training["steps"] == 1 and during.config.metrics is None
    output = one.train()
    after = saved(tmp_path / "after")
    assert after.config.metrics == output.metrics[""] and (tmp_path / "after" / "metrics.json").is_file()
    assert after.config.training["folder"] == str(tmp_path / "after")


def test_several_saes_are_saved_by_name_and_by_default_into_the_folder_of_the_run(tmp_path):
    one = trainer(tmp_path, inputs={"saes": {"a": {"k": 2}, "b": {"k": 3}}})
    one.save_model()
    assert [SAE.from_pretrained(tmp_path / name).config.k for name in ("a", "b")] == [2, 3]


def test_a_run_goes_on_in_the_folder_into_which_it_saved_its_saes(tmp_path):
    one, untouched = trainer(tmp_path / "run", steps=2), trainer(tmp_path / "other", steps=2)
    one.save_model()
    with pytest.raises(FileExistsError, match="holds another run"):
        trainer(tmp_path / "run", steps=2).train()
    output = one.train()
    assert output.completed and equal(weights(SAE.from_pretrained(tmp_path / "run")), weights(output.sae))
    assert equal(weights(output.sae), weights(untouched.train().sae))
    with pytest.raises(FileExistsError, match="holds another run"):
        one.train()


def test_figures_of_other_weights_are_not_saved_with_an_sae(tmp_path):
    trainer(tmp_path / "first", steps=2, eval_tokens=100).train()
    begun = SAE.from_pretrained(tmp_path / "first")
    assert begun.config.metrics is not None
    one = trainer(tmp_path / "second", steps=2, inputs={"saes": begun})
    one.training_step()
    one.save_model(tmp_path / "saved")
    assert SAE.from_pretrained(tmp_path / "saved").config.metrics is None


# -- publishing -------------------------------------------------------------------------------------------------------
def test_a_trained_sae_is_pushed_with_its_card_and_its_figures(hub, tmp_path):
    one = trainer(tmp_path, steps=2, eval_tokens=100, hub_model_id="tester/mine")
    output = one.train()
    info = one.push_to_hub("By hand")
    assert info is not None and "tester/mine" in str(info.repo_url)
    assert SAE.from_pretrained("tester/mine").config.metrics["l0"] == output.metrics[""]["l0"]


def test_an_sae_that_is_not_trained_to_the_end_is_saved_and_pushed(hub, tmp_path):
    one = trainer(tmp_path, hub_model_id="tester/begun", inputs={"saes": TopKSAEConfig(d_in=16, n_features=32, k=2)})
    one.training_step()
    one.push_to_hub()
    assert equal(weights(SAE.from_pretrained("tester/begun")), weights(one.saes[""]))


def test_a_destination_that_cannot_be_one_is_refused_at_once(tmp_path):
    with pytest.raises(ValueError, match="a/b/c"):
        SAETrainer(args=arguments(tmp_path, push_to_hub=True, hub_model_id="a/b/c"))


# -- again ------------------------------------------------------------------------------------------------------------
def test_training_again_is_a_run_of_its_own(tmp_path):
    one = trainer(tmp_path, steps=3)
    first = weights(one.train().sae)
    with pytest.raises(FileExistsError, match="holds another run"):
        one.train()
    one.args.overwrite_output_dir = True
    again = one.train()
    assert again.completed and again.steps == 3 and equal(first, weights(again.sae))


def test_a_run_that_was_looked_at_goes_on_from_a_checkpoint(tmp_path):
    whole = trainer(tmp_path / "whole", steps=6).train()
    stopped = trainer(tmp_path / "run", steps=6, callbacks=[stop_at(3)]).train()
    assert not stopped.completed
    resumed = trainer(tmp_path / "run", steps=6)
    assert resumed.saes[""].input_scale != 1
    output = resumed.train(resume_from_checkpoint=True)
    assert output.steps == 6 and equal(weights(output.sae), weights(whole.sae))


def test_the_state_knows_the_best_checkpoint(tmp_path):
    options = {"metric_for_best_model": "loss", "logging_steps": 1, "save_steps": 2, "save_total_limit": None}
    one = trainer(tmp_path, steps=4, **options)
    output = one.train()
    assert one.state.best_model_checkpoint == str(output.best_checkpoint)
    logged = {entry["step"]: entry["loss"] for entry in one.state.log_history}
    assert one.state.best_metric == pytest.approx(min(logged[2], logged[4]))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_steps_and_measures_leave_nothing_in_memory(tmp_path, architecture):
    one = trainer(tmp_path, steps=20, architecture=architecture, eval_tokens=200, shuffle_window_tokens=BATCH)
    for _ in range(2):
        one.training_step()
    one.evaluate()
    with tensors_in_circles() as left:
        for _ in range(4):
            one.training_step()
        one.evaluate()
    assert not left
