"""Several processes, each with its share of the documents, collect what one process collects."""

import multiprocessing
from pathlib import Path

import pytest
import torch
import torch.distributed as distributed

from hfsae.analysis import FeatureCollection, collect_features
from tests.analysis.tiny import setting, texts

PROCESSES = 2


def _in_process(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=PROCESSES)
    try:
        collect_features(*setting(), texts(), all_processes=True, disable_tqdm=True).save(folder / str(rank))
    finally:
        distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_collect_together_what_one_collects_alone(tmp_path):
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_in_process, args=(rank, tmp_path)) for rank in range(PROCESSES)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=120)
        assert worker.exitcode == 0
    alone = collect_features(*setting(), texts(), disable_tqdm=True)
    for rank in range(PROCESSES):
        together = FeatureCollection.load(tmp_path / str(rank))
        assert together.about == alone.about
        for name, tensor in alone.tensors().items():
            torch.testing.assert_close(together.tensors()[name], tensor, rtol=1e-4, atol=1e-4, msg=name)


def test_all_processes_of_one_are_that_one():
    alone, together = (
        collect_features(*setting(), texts(), all_processes=flag, disable_tqdm=True) for flag in (False, True)
    )
    assert list(alone) == list(together)
