"""Several processes, each with its share of the documents, collect what one process collects."""

from pathlib import Path

import pytest
import torch

from hfsae.analysis import FeatureCollection, collect_features
from tests.analysis.tiny import setting, texts
from tests.processes import PROCESSES, in_two_processes


def _collect(rank: int, folder: Path) -> None:
    collect_features(*setting(), texts(), all_processes=True, disable_tqdm=True).save(folder / str(rank))


@pytest.mark.slow
def test_two_processes_collect_together_what_one_collects_alone(tmp_path):
    in_two_processes(_collect, tmp_path)
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
