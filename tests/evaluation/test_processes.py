"""Several processes, each with its share of the text, measure what one process measures on all of it."""

import json
from pathlib import Path

import pytest
import torch

from hfsae.evaluation import as_columns, evaluate_sae, reduce_sums
from tests.evaluation.tiny import WIDTH, batches, language_model, make_sae
from tests.processes import PROCESSES, in_two_processes

CALIBRATION = torch.linspace(-1, 1, 30 * WIDTH).reshape(30, WIDTH)


def _measure(rank: int, folder: Path) -> None:
    reduced = reduce_sums({"v": torch.tensor([1.0, rank]), "n": torch.tensor(rank + 1)})
    share = batches(4)[rank::PROCESSES]
    shared = {"all_processes": True, "baselines": True, "disable_tqdm": True}
    given = evaluate_sae(make_sae(), language_model(), share, calibration=CALIBRATION, **shared)
    own = evaluate_sae(make_sae(), language_model(), share, **shared)
    result = {"reduced": as_columns(reduced), "given": given, "own": own}
    (folder / f"{rank}.json").write_text(json.dumps(result))


@pytest.mark.slow
def test_two_processes_measure_together_what_one_measures_alone(tmp_path):
    in_two_processes(_measure, tmp_path)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(PROCESSES))
    assert first["reduced"] == second["reduced"] == {"v": [[2, 1]], "n": [3]}
    assert first["given"] == second["given"] and first["own"] == second["own"]
    alone = evaluate_sae(
        make_sae(), language_model(), batches(4), calibration=CALIBRATION, baselines=True, disable_tqdm=True
    )
    for name, value in alone.items():
        if isinstance(value, float):
            assert first["given"][name] == pytest.approx(value, rel=1e-6), name
    assert first["given"]["density"] == alone["density"]
    assert first["given"]["protocol"]["n_sequences"] == alone["protocol"]["n_sequences"]
    assert first["given"]["baselines"]["pca"]["kl"] == pytest.approx(alone["baselines"]["pca"]["kl"], rel=1e-6)


def _fail_alone(rank: int, folder: Path) -> None:
    """The second process's SAE fails in the middle of a measurement, then its text in another."""
    sae = make_sae()
    if rank:
        sae.forward = lambda *_: 1 / 0
    shared = {"all_processes": True, "disable_tqdm": True}
    for number, data in enumerate([batches(2), batches(2) if rank == 0 else []]):
        for calibration in (CALIBRATION, None):
            try:
                evaluate_sae(
                    sae if not number else make_sae(), language_model(), data, calibration=calibration, **shared
                )
            except Exception as error:
                with (folder / f"{rank}.txt").open("a") as file:
                    file.write(f"{type(error).__name__}: {error}\n")


@pytest.mark.slow
def test_a_process_that_fails_does_not_keep_the_others_waiting(tmp_path):
    in_two_processes(_fail_alone, tmp_path)
    first, second = ((tmp_path / f"{rank}.txt").read_text().splitlines() for rank in range(PROCESSES))
    assert len(first) == len(second) == 4
    assert first == [f"RuntimeError: process 1 failed: {error}" for error in second]
    assert second[0] == "ZeroDivisionError: division by zero" and "no token that counts" in second[2]


def test_all_processes_of_one_are_that_one():
    alone = evaluate_sae(make_sae(), language_model(), batches(), disable_tqdm=True)
    assert evaluate_sae(make_sae(), language_model(), batches(), disable_tqdm=True, all_processes=True) == alone
