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


def test_all_processes_of_one_are_that_one():
    alone = evaluate_sae(make_sae(), language_model(), batches(), disable_tqdm=True)
    assert evaluate_sae(make_sae(), language_model(), batches(), disable_tqdm=True, all_processes=True) == alone
