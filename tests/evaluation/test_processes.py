"""Several processes, each with its share of the text, measure what one process measures on all of it."""

import json
import multiprocessing
from pathlib import Path

import pytest
import torch
import torch.distributed as distributed

from hfsae.evaluation import as_columns, evaluate_sae, reduce_sums
from tests.evaluation.tiny import WIDTH, batches, language_model, make_sae

PROCESSES = 2
CALIBRATION = torch.linspace(-1, 1, 30 * WIDTH).reshape(30, WIDTH)


def _in_process(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=PROCESSES)
    try:
        reduced = reduce_sums({"v": torch.tensor([1.0, rank]), "n": torch.tensor(rank + 1)})
        share = batches(4)[rank::PROCESSES]
        shared = {"all_processes": True, "baselines": True, "disable_tqdm": True}
        given = evaluate_sae(make_sae(), language_model(), share, calibration=CALIBRATION, **shared)
        own = evaluate_sae(make_sae(), language_model(), share, **shared)
        result = {"reduced": as_columns(reduced), "given": given, "own": own}
        (folder / f"{rank}.json").write_text(json.dumps(result))
    finally:
        distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_measure_together_what_one_measures_alone(tmp_path):
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_in_process, args=(rank, tmp_path)) for rank in range(PROCESSES)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=120)
        assert worker.exitcode == 0
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
