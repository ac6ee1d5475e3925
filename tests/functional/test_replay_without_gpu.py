"""Steps that are recorded and replayed on a CPU, kernels in Triton's interpreter: the bits of steps that are not."""

import importlib
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

pytest.importorskip("triton")

from hfsae import SAE
from hfsae.autoencoder.strategies import is_replayable
from hfsae.functional import SparsePattern, blockwise, cuda_graph, entries, not_a_number, patterns, selection
from hfsae.training import optimisation
from hfsae.training.learner import Learner
from tests.architectures.variants import VARIANTS
from tests.functional.tape import Tape, keep_launches
from tests.training.tiny import arguments

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="where there is a GPU, it replays graphs")

BATCH = 6
encoder = importlib.import_module("hfsae.functional.encode")
# What keeps the interpreter's work small: sparse products pay for 2 of 16 features.
SIZES = {"n_features": 16, "k": 2, "dtype": torch.float32}
# Each form that is replayed, and what else may be asked of it.
REPLAYED = {
    name: partial(variant.make, **SIZES)
    for name, variant in VARIANTS.items()
    if is_replayable(sae := variant.make()) and not sae.compares_features
}
TRANSCODER = {"target_hook_point": "b", "subtract_b_dec": False, "skip": True}
FORMS = {
    **REPLAYED,
    "groupmax": partial(REPLAYED["topk"], activation="groupmax"),
    "aligned topk": partial(REPLAYED["topk"], aligned=True),
    "batch_topk transcoder": partial(REPLAYED["batch_topk"], **TRANSCODER),
}


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch) -> None:
    """What asks where a tensor lies hears what it hears on a GPU."""
    for module in (blockwise, encoder, entries, not_a_number, optimisation, patterns, selection):
        monkeypatch.setattr(module, "serves", lambda *tensors: all(x.dtype != torch.float64 for x in tensors))
    monkeypatch.setattr(selection, "_equal_in_order", lambda pre: False)
    monkeypatch.setattr(SparsePattern, "without_zeros", lambda self, values: (self, values))
    keep_launches(monkeypatch)


@pytest.fixture
def tapes(monkeypatch) -> list[Tape]:
    """What was recorded."""
    made: list[Tape] = []

    def recorded(run: Callable[[], Any], device: torch.device) -> tuple[Tape, Any]:
        made.append(Tape())
        return made[-1], made[-1].record(run)

    monkeypatch.setattr(cuda_graph, "_recorded", recorded)
    return made


def learner_of(sae: SAE, **options: Any) -> Learner:
    sizes = {"train_batch_tokens": BATCH, "training_tokens": 1000 * BATCH, "learning_rate": 1e-2}
    learner = Learner("", sae, arguments("unused", **sizes, **options), Accelerator(cpu=True))
    for group in learner.optimiser.param_groups:
        group["lr"] = torch.tensor(group["lr"])  # as on a GPU, where it may change between replays
    return learner


def rows_of(sae: SAE, seed: int) -> list[Tensor]:
    """A batch, and what a transcoder is to write."""
    generator = torch.Generator().manual_seed(seed)
    widths = [sae.config.d_in] + [sae.config.d_out] * sae.config.is_transcoder
    return [torch.randn(BATCH, width, generator=generator) for width in widths]


def train(learner: Learner, accumulation: int, dead: Sequence[int], steps_with_each: int = 4) -> list[Any]:
    """Steps with one after another number of dead features; what is known after each part."""
    logs = []
    for part, n_dead in enumerate(dead):
        for step in range(part * steps_with_each, (part + 1) * steps_with_each):
            learner.firing.tokens_since_fired.zero_()
            first = step % 3  # others in every step
            learner.firing.tokens_since_fired[first : first + n_dead] = learner.plan.dead_window
            given = [rows_of(learner.sae, step * accumulation + i) for i in range(accumulation)]
            batches, *targets = map(list, zip(*given, strict=True))
            learner.step(batches, step, *targets)
        logs.append(learner.pop_log(step))
    return logs


def check(
    make: Callable[[], SAE],
    tapes: list[Tape],
    monkeypatch,
    *,
    dead: Sequence[int] = (5,),
    accumulation: int = 1,
    **options: Any,
) -> None:
    """Trains with replays and without."""
    options |= {"gradient_accumulation_steps": accumulation}
    replayed, plain = (learner_of(make(), **options) for _ in range(2))
    monkeypatch.setattr(Learner, "_can_replay", property(lambda learner: learner is replayed))
    logs = train(replayed, accumulation, dead)
    assert len(tapes) == len({*dead})
    assert train(plain, accumulation, dead) == logs and not plain._replay._records
    mine, theirs = ({**one.weights(), **one.state_dict()["tensors"]} for one in (replayed, plain))
    assert [name for name in theirs if not torch.equal(mine[name], theirs[name])] == []


# A form takes the interpreter some seconds.
QUICK = ("batch_topk",)


@pytest.mark.parametrize(
    "form", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FORMS]
)
def test_replays_give_the_bits_of_steps_launched_one_by_one(form: str, tapes, monkeypatch):
    check(FORMS[form], tapes, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["topk", "batch_topk", "matryoshka"])
@pytest.mark.parametrize("options", [{"bf16": True}, {"accumulation": 2}, {"dead": (0, 5, 0)}], ids=str)
def test_so_they_do_in_bfloat16_over_several_batches_and_as_features_die(
    form: str, options: dict[str, Any], tapes, monkeypatch
):
    check(FORMS[form], tapes, monkeypatch, **options)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["topk", "hierarchical-topk", "abs_topk", "batch_topk", "matryoshka"])
def test_so_they_do_where_products_are_dense(form: str, tapes, monkeypatch):
    monkeypatch.setattr(encoder, "_break_even", lambda x: 0.0)
    check(FORMS[form], tapes, monkeypatch)


@pytest.mark.slow
def test_so_they_do_where_the_largest_are_screened(tapes, monkeypatch):
    monkeypatch.setattr(encoder, "screens", lambda *_: True)
    check(FORMS["topk"], tapes, monkeypatch)


@pytest.mark.parametrize(
    ("operation", "refused"),
    [
        (lambda x: x.sum().item(), True),
        (lambda x: x[x > 0], True),
        (lambda x: (x > 0).nonzero(), True),
        (lambda x: x.long().repeat_interleave(x.long()), True),
        (lambda x: x * torch.tensor([2.0, 3.0]), True),
        (lambda x: bool((x > 0).all()), True),
        (lambda x: x.index_put_((x.long(),), torch.tensor(2.0)), True),
        (lambda x: x[x.long()], False),
        (lambda x: x[1:].fill_(torch.tensor(2.0)), False),
        (lambda x: torch.where(x > 1, x, 0.0), False),
    ],
)
def test_a_tape_refuses_what_asks_the_device(operation: Callable[[Tensor], object], refused: bool):
    x, tape = torch.tensor([0.0, 1.0]), Tape()
    with pytest.raises(AssertionError, match="asks the device") if refused else nullcontext():
        tape.record(lambda: operation(x))


def test_a_tape_does_with_other_numbers_what_it_did_with_the_first():
    x, tape, scale = torch.tensor([1.0, 2.0]), Tape(), 3.0
    made = tape.record(lambda: x.square().view(2, 1).add_(scale).sum(1))
    assert made.tolist() == [4.0, 7.0]
    tape.replay()
    x.copy_(torch.tensor([3.0, 4.0]))
    tape.replay()
    assert made.tolist() == [12.0, 19.0]
