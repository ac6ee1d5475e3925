"""Cross-entropies and divergences in pieces against whole tables of logits."""

import numpy as np
import pytest
import torch
from torch import Tensor

from hfsae.evaluation import losses
from hfsae.evaluation.losses import prediction_losses
from tests.evaluation.longhand import log_softmax

RUNS = ("clean", "spliced", "zero")
VOCABULARY = 50


@pytest.fixture
def finals() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {run: 4 * torch.randn(150, VOCABULARY, generator=generator) for run in RUNS}


@pytest.fixture
def targets() -> Tensor:
    return torch.randint(0, VOCABULARY, (150,), generator=torch.Generator().manual_seed(1))


def test_sums_over_pieces_are_those_of_the_whole_tables(finals, targets, monkeypatch):
    monkeypatch.setattr(losses, "_CPU_PIECE", VOCABULARY)
    seen: list[int] = []

    def logits(rows: Tensor) -> Tensor:
        seen.append(len(rows))
        return rows * 2

    nats, divergences = prediction_losses(
        finals, targets, logits, VOCABULARY, clean="clean", diverging=["spliced", "zero"]
    )
    log = {run: log_softmax(2 * values.numpy()) for run, values in finals.items()}
    for run in RUNS:
        assert nats[run].item() == pytest.approx(-log[run][np.arange(150), targets.numpy()].sum(), rel=1e-6)
    for run in ("spliced", "zero"):
        expected = (np.exp(log["clean"]) * (log["clean"] - log[run])).sum()
        assert divergences[run].item() == pytest.approx(expected, rel=1e-5)
    assert sorted(set(seen)) == [22, 64], "no piece is larger than the least number of rows"


def test_tokens_that_are_ruled_out_add_nothing_and_the_others_what_they_add_alone(finals, targets):
    allowed = torch.arange(VOCABULARY) % 7 != 3
    some = targets[allowed[targets]]
    masked = {run: values[: len(some)].masked_fill(~allowed, -torch.inf) for run, values in finals.items()}
    nats, divergences = prediction_losses(
        masked, some, lambda rows: rows, VOCABULARY, clean="clean", diverging=["spliced", "zero"]
    )
    log = {run: log_softmax(values[:, allowed].double().numpy()) for run, values in masked.items()}
    for run in ("spliced", "zero"):
        expected = (np.exp(log["clean"]) * (log["clean"] - log[run])).sum()
        assert divergences[run].item() == pytest.approx(expected, rel=1e-5)
    place = allowed.cumsum(0)[some].numpy() - 1
    assert nats["zero"].item() == pytest.approx(-log["zero"][np.arange(len(some)), place].sum(), rel=1e-6)


def test_a_run_that_rules_out_what_the_clean_one_expects_diverges_without_end(finals, targets):
    ruled_out = {"clean": finals["clean"], "other": finals["clean"].clone()}
    ruled_out["other"][3, 5] = -torch.inf
    of_other = prediction_losses(ruled_out, targets, lambda rows: rows, VOCABULARY, clean="clean", diverging=["other"])
    assert of_other[1]["other"] == torch.inf


def test_an_equal_run_does_not_diverge_at_all(finals, targets):
    equal = {"clean": finals["clean"], "same": finals["clean"].clone()}
    nats, divergences = prediction_losses(
        equal, targets, lambda rows: rows, VOCABULARY, clean="clean", diverging=["same"]
    )
    assert divergences["same"] == 0 and nats["same"] == nats["clean"]


def test_half_precision_logits_are_summed_in_float64(finals, targets):
    half = {run: values.bfloat16() for run, values in finals.items()}
    nats, _ = prediction_losses(half, targets, lambda rows: rows, VOCABULARY, clean="clean", diverging=[])
    expected = -log_softmax(half["clean"].float().numpy())[np.arange(150), targets.numpy()].sum()
    assert nats["clean"].dtype == torch.float64 and nats["clean"].item() == pytest.approx(expected, rel=1e-6)


def test_no_position_gives_zero(finals, targets):
    none = {run: values[:0] for run, values in finals.items()}
    nats, divergences = prediction_losses(
        none, targets[:0], lambda rows: rows, VOCABULARY, clean="clean", diverging=["zero"]
    )
    assert nats["clean"] == divergences["zero"] == 0
