"""SAEs of every architecture cut over two and over four processes, against the same in one."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from hfsae import SAE
from tests.training.test_processes import launch
from tests.training.tiny import contents, sparse_rows, stop_at, trainer
from tests.training.two_processes import (
    BUDGET,
    CUT,
    LAYERED,
    LAYERS_OF_TEXT,
    SHARDED,
    SKIPPING,
    STEPS,
    as_dealt,
    rows_of_layers,
    train_cut,
    train_layers,
    train_transcoder,
)

pytestmark = pytest.mark.slow


# Each of the four has a quarter of a core or so: they train what differs most.
IN_FOUR = ("cut-groupmax", "cut-batch_topk", "cut-matryoshka", "cut-jumprelu", "cut-gated", "cut-topk")
IN_FOUR += (f"cut-{LAYERED[0]}",)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder by number of processes in which so many have trained their cases."""
    folders = {processes: tmp_path_factory.mktemp(f"cut-{processes}") for processes in (2, 4)}
    launch("forked", folders[2], *SHARDED)
    launch("forked", folders[4], *IN_FOUR, processes=4)
    return folders


def checkpoints(folder, steps):
    """Weights, moments and counts of a checkpoint."""
    saes = folder / f"checkpoint-{steps}" / "saes"
    return {
        name: tensor for file in ("model", "state") for name, tensor in load_file(saes / f"{file}.safetensors").items()
    }


@pytest.mark.parametrize(
    "processes, case", [*((2, case) for case in SHARDED if case[4:] in (*CUT, *LAYERED)), *((4, c) for c in IN_FOUR)]
)
def test_it_takes_the_steps_of_a_whole_one(trained, tmp_path, processes, case):
    """Clipped, in two batches a step, with features that die and come back; half-way and at the end."""
    folder = trained[processes] / case
    rows = as_dealt(sparse_rows(2000), processes)  # resampling draws tokens by their places in a batch
    name = case.removeprefix("cut-")
    if name in LAYERED:
        layers = {end: as_dealt(rows, processes) for end, rows in rows_of_layers().items()}
        alone = train_layers(tmp_path, name, processes=1, inputs={"activations": layers})
    else:
        alone = train_cut(tmp_path, name, processes=1, inputs={"activations": rows})
    for step in (STEPS // 2, STEPS):
        whole, found = checkpoints(tmp_path, step), checkpoints(folder, step)
        assert whole.keys() == found.keys()
        for name, tensor in whole.items():
            assert torch.allclose(found[name], tensor, rtol=0, atol=1e-5), (step, name)
    stored = json.loads((folder / f"checkpoint-{STEPS}" / "run.json").read_text())
    for metric, value in alone.log_history[-1].items():
        if metric != "tokens_per_second":
            assert stored["log_history"][-1][metric] == pytest.approx(value, rel=1e-4, abs=1e-5), metric


@pytest.mark.parametrize("processes, case", [*((2, case) for case in SHARDED), *((4, case) for case in IN_FOUR)])
def test_all_processes_end_with_the_same_whole_sae(trained, processes, case):
    found = [json.loads((trained[processes] / f"{case}-rank-{rank}.json").read_text()) for rank in range(processes)]
    assert all(other == found[0] for other in found)


def test_a_transcoder_with_a_skip_connection(trained, tmp_path):
    train_transcoder(tmp_path, processes=1, **SKIPPING)
    alone, found = (
        SAE.from_pretrained(place / f"checkpoint-{STEPS}" / "saes").state_dict()
        for place in (tmp_path, trained[2] / "cut-transcoder")
    )
    assert found["W_skip"].abs().max() > 0
    for name, tensor in alone.items():
        assert torch.allclose(found[name], tensor, rtol=0, atol=1e-5), name


@pytest.mark.parametrize("case, options", [("in-two-parts", BUDGET), ("layers-in-two-parts", LAYERS_OF_TEXT)])
def test_a_run_goes_on_bit_by_bit_and_in_one_process(trained, tmp_path, case, options):
    folder = trained[2] / f"cut-{case}"
    whole, broken = (contents(folder / name / "checkpoint-12") for name in ("whole", "broken"))
    assert whole == broken
    shutil.copytree(folder / "whole", tmp_path / "run")
    options = {"dead_feature_window": 100, "sae_placement": "shard", **options}
    output = trainer(tmp_path / "run", callbacks=[stop_at(30)], **options).train(resume_from_checkpoint=True)
    assert output.steps == 30 and all(parameter.isfinite().all() for parameter in output.sae.parameters())
