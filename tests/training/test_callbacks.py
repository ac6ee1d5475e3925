from types import SimpleNamespace

import pytest
from transformers import TrainerCallback, TrainerControl, TrainerState

from hfsae.training.callbacks import CallbackHandler, Clock, HealthWarnings, ProgressBar
from tests.training.tiny import arguments

LOG = {"l0": 32.0, "explained_variance": 0.9, "dormant_fraction": 0.01}


def state(step=60, max_steps=100, main=True):
    return TrainerState(global_step=step, max_steps=max_steps, is_world_process_zero=main)


def warn(callback, step=60, main=True, **figures):
    log = {**LOG, **figures}
    callback.on_log(arguments("unused"), state(step, main=main), TrainerControl(), saes_log={"a": log})


def test_callbacks_may_be_objects_or_classes_and_share_one_control():
    class Stopper(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = True

    class Witness(TrainerCallback):
        seen = None

        def on_step_end(self, args, state, control, **kwargs):
            self.seen = (control.should_training_stop, kwargs)

    witness, control = Witness(), TrainerControl()
    CallbackHandler([Stopper, witness])("on_step_end", arguments("unused"), state(), control, model={})
    assert control.should_training_stop and witness.seen == (True, {"model": {}})


@pytest.mark.parametrize("figures", [{"l0": 1.0}, {"explained_variance": 0.1}, {"dormant_fraction": 0.9}])
def test_a_figure_out_of_its_range_is_said_once_in_words_with_the_step_and_the_sae(caplog, figures):
    callback = HealthWarnings()
    warn(callback, **figures)
    warn(callback, step=70, **figures)
    (message,) = caplog.messages
    assert message.startswith("step 60, a: ")


def test_healthy_figures_an_early_step_and_other_processes_say_nothing(caplog):
    callback = HealthWarnings()
    warn(callback)
    warn(callback, step=49, dormant_fraction=0.9)
    warn(callback, main=False, dormant_fraction=0.9)
    assert caplog.messages == []


def test_the_progress_bar_counts_tokens_from_where_the_run_begins(capfd):
    bar = ProgressBar()
    events = (arguments("unused", disable_tqdm=False), state(step=50, max_steps=100), TrainerControl())
    bar.on_train_begin(*events, run=SimpleNamespace(tokens_per_step=1000))
    bar.on_log(*events, saes_log={"": LOG})
    bar.on_step_end(*events)
    bar.on_train_end(*events)
    shown = capfd.readouterr().err
    assert "50.0k/100k" in shown and "51.0k/100k" in shown and "EV=0.9" in shown


@pytest.mark.parametrize(("disabled", "main"), [(True, True), (False, False)])
def test_the_progress_bar_is_shown_by_one_process_and_not_where_it_is_off(capfd, disabled, main):
    bar = ProgressBar()
    events = (arguments("unused", disable_tqdm=disabled), state(main=main), TrainerControl())
    bar.on_train_begin(*events, run=SimpleNamespace(tokens_per_step=1000))
    bar.on_step_end(*events)
    bar.on_train_end(*events)
    assert capfd.readouterr().err == ""


def test_the_clock_tells_tokens_per_second_since_its_last_reading(monkeypatch):
    now = iter([10.0, 12.0, 13.0])
    monkeypatch.setattr("hfsae.training.callbacks.time.perf_counter", lambda: next(now))
    clock = Clock(tokens=500)
    assert clock.rate(1500) == 500
    assert clock.rate(1750) == 250
