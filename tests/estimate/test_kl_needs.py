"""What a KL finish is said to cost."""

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hfsae.data import TokenBatch
from hfsae.estimate.kl_needs import kl_needs
from hfsae.estimate.machine import Machine
from hfsae.estimate.run_needs import estimate
from hfsae.hooks import HookPoint
from hfsae.in_model import SAEHookPoints
from hfsae.kl_finish.divergence import DivergenceMeter
from tests.data.tiny import language_model
from tests.training.tiny import arguments

MACHINE = Machine.told(1e9)
POINTS = {f"{layer}": SAEHookPoints(f"transformer.h.{layer}.output") for layer in (0, 1)}


def wide_model():
    return language_model(n_embd=64, n_layer=4, n_head=2, vocab_size=96)


def test_operations_are_those_that_the_passes_take():
    """But for attention, of which half the context is counted."""
    model = wide_model()
    ids = torch.randint(1, 40, (2, 48))
    batch = TokenBatch(ids, torch.ones_like(ids), torch.ones_like(ids, dtype=torch.bool))
    places = {name: (HookPoint.parse(one.reads),) * 2 for name, one in POINTS.items()}
    meter = DivergenceMeter(model, places, batch, sequences=9, longest=48, autocast=False)
    with FlopCounterMode(display=False) as counter:
        reading = meter.read(batch)
        for name in places:
            meter.of_one(reading, name, torch.zeros(96, 64))
    found = kl_needs(arguments("unused", kl_tokens=0.5, context_length=48), model, POINTS, 1)
    assert 96 * found.flops_per_token == pytest.approx(counter.get_total_flops(), rel=0.1)


def test_hours_and_memory_have_the_finish_in_them():
    told = {"steps": 100, "hook_point": "resid_post.1", "n_features": 48}
    plain, finished = (estimate(arguments("unused", kl_tokens=kl, **told), model=wide_model()) for kl in (0, 0.25))
    assert plain.kl is None and plain.kl_seconds(MACHINE) == 0 and "KL finish" not in plain.report(10**9, MACHINE)
    assert finished.kl[0] == 25
    before = plain.seconds(MACHINE)
    assert finished.seconds(MACHINE) == pytest.approx(0.75 * before + finished.kl_seconds(MACHINE))
    assert finished.kl_seconds(MACHINE) > 0.25 * before
    assert finished.model_workspace_bytes == 2 * plain.model_workspace_bytes  # blocks 2 and 3
    assert "of them KL finish" in finished.report(10**9, MACHINE)


def test_a_set_stands_in_the_model_in_one_pass():
    each = {name: dataclasses.replace(one, writes=f"transformer.h.{name}.mlp.output") for name, one in POINTS.items()}
    args = arguments("unused", kl_tokens=0.5)
    together = kl_needs(args, wide_model(), each, 1).flops_per_token
    alone = [kl_needs(args, wide_model(), {name: one}, 1).flops_per_token for name, one in each.items()]
    assert together == alone[0] > alone[1]  # in one pass from the lowest place on


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"activation_cache": "somewhere"}, "an activation cache has neither"),
        ({"architecture": "crosscoder", "hook_point": "resid_post.0+resid_post.1"}, "crosscoders"),
    ],
)
def test_what_cannot_have_one_is_told_so_too(options, says):
    with pytest.raises(ValueError, match=says):
        estimate(arguments("unused", kl_tokens=0.5, **options), model=language_model())
