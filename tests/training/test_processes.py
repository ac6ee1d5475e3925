"""Training in two processes, launched as users launch it."""

import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hfsae import SAE, load_saes
from hfsae.evaluation.saved_set import SET_FILE
from hfsae.identity import weights_sha256
from hfsae.training.checkpoint import last_checkpoint
from tests.data.tiny import language_model
from tests.processes import free_port
from tests.training.tiny import ARCHITECTURES, contents, make_sae, stop_at, trainer
from tests.training.two_processes import (
    CASES,
    HALF,
    LAYERED,
    ON_GPUS,
    PER_TOKEN,
    SEVERAL,
    SPREAD,
    STEPS,
    go_on_with_more,
    train_alike,
    train_joined,
    train_layers,
    train_models,
    train_several_alike,
    train_transcoder,
    train_wide,
)

pytestmark = pytest.mark.slow

LAUNCHERS = {
    "torchrun": "torch.distributed.run --nproc_per_node {processes} --master_port {port}",
    "accelerate": "accelerate.commands.launch --multi_gpu --num_processes {processes} --num_machines 1 "
    "--mixed_precision no --dynamo_backend no --main_process_port {port}",
    "forked": "tests.forked {processes}",
}


def ended(
    launcher: str, folder: Path, *cases: str, on_gpus: bool = False, processes: int = 2
) -> subprocess.CompletedProcess[str]:
    launching = LAUNCHERS[launcher].format(processes=processes, port=free_port()).split()
    command = [sys.executable, "-m", *launching, "-m", "tests.training.two_processes", str(folder), *cases]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    environment |= {ON_GPUS: "1"} if on_gpus else {}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=500)


def launch(launcher: str, folder: Path, *cases: str, on_gpus: bool = False, processes: int = 2) -> Path:
    done = ended(launcher, folder, *cases, on_gpus=on_gpus, processes=processes)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder in which two processes have trained every case."""
    folder = tmp_path_factory.mktemp("torchrun")
    go_on_with_more(folder / "begun-alone")
    language_model().save_pretrained(folder / "lm")
    return launch("torchrun", folder, *CASES, *SPREAD)


@pytest.fixture(scope="module")
def by_accelerate(tmp_path_factory):
    """A folder of a few cases whose processes `accelerate launch` has started, and which leave no thread of gloo's."""
    return launch("accelerate", tmp_path_factory.mktemp("accelerate"), "text-topk", "alike-topk", "several-spread")


def of_both(folder, case):
    """What the processes have written down about a case, or of what was left at their `exit`."""
    return [json.loads((folder / f"{case}-rank-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("case", CASES)
def test_both_processes_hold_the_same_weights_at_the_end(trained, case):
    first, second = of_both(trained, case)
    assert first == second


def test_the_processes_part_before_their_interpreters_end(trained, by_accelerate):
    """A gloo thread that lets go of a tensor meanwhile would abort a run whose work is done, now and then."""
    assert [left["joined"] for left in of_both(trained, "exit")] == [False, False]
    assert of_both(by_accelerate, "exit") == [{"joined": False, "gloo": []}] * 2


@pytest.mark.parametrize("architecture", PER_TOKEN)
def test_two_processes_take_the_steps_of_one_with_batches_twice_as_large(trained, tmp_path, architecture):
    alone = train_alike(tmp_path, make_sae(architecture), processes=1).sae.state_dict()
    together = SAE.from_pretrained(trained / f"alike-{architecture}" / f"checkpoint-{STEPS}" / "saes").state_dict()
    for name, tensor in alone.items():
        assert torch.allclose(together[name], tensor, rtol=0, atol=1e-5), name


@pytest.mark.parametrize(
    "case, begin",
    [
        ("models", train_models),
        ("layers", partial(train_layers, architecture=LAYERED[1], revival="none")),
    ],
)
def test_so_they_do_of_crosscoders_of_two_models_and_of_cross_layer_transcoders(trained, tmp_path, case, begin):
    alone = begin(tmp_path, processes=1).sae
    together = SAE.from_pretrained(trained / f"alike-{case}" / f"checkpoint-{STEPS}" / "saes").state_dict()
    for name, tensor in alone.state_dict().items():
        assert torch.allclose(together[name], tensor, rtol=0, atol=1e-5), name


@pytest.mark.parametrize(
    "case", [*(f"text-{name}" for name in ARCHITECTURES), "text-shard", "text-transcoder", "text-layers"]
)
def test_a_run_on_text_is_whole_and_its_files_are_written_once(trained, case):
    folder = trained / case
    assert all(found["completed"] and found["steps"] == 12 for found in of_both(trained, case))
    sae = SAE.from_pretrained(folder)
    assert sae.config.metrics["n_tokens"] > 0 and sae.config.training["n_tokens"] == 12 * 128
    assert sae.config.training["hardware"].startswith("2 × ")
    log = (folder / "training_log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log] == [4, 8, 12]
    checkpoint = folder / "checkpoint-12"
    assert {path.name for path in checkpoint.iterdir()} == {
        *("SHA256SUMS", "run.json", "saes", "stream-rank-0.json", "stream-rank-1.json")
    }
    assert not list(folder.glob(".*"))


def test_each_process_trains_its_own_as_one_process_trains_all(trained, tmp_path):
    train_several_alike(tmp_path, processes=1)
    first, second = (set(found["digests"]) for found in of_both(trained, "several-spread"))
    assert first == {"topk"} and second == {"jumprelu", "batch_topk"}  # the widest against the two others
    for name in SEVERAL:
        alone, found = (
            SAE.from_pretrained(folder / f"checkpoint-{STEPS}" / "saes" / name).state_dict()
            for folder in (tmp_path, trained / "several-spread")
        )
        for tensor, weights in alone.items():
            assert torch.allclose(found[tensor], weights, rtol=0, atol=1e-5), (name, tensor)


def test_so_they_do_of_a_crosscoder_beside_a_cross_layer_transcoder(trained, tmp_path):
    train_joined(tmp_path, processes=1)
    first, second = (set(found["digests"]) for found in of_both(trained, "joined-spread"))
    assert {*first, *second} == {"layers", "shared"} and len(first) == len(second) == 1
    for name in ("layers", "shared"):
        alone, found = (
            SAE.from_pretrained(folder / f"checkpoint-{STEPS}" / "saes" / name).state_dict()
            for folder in (tmp_path, trained / "joined-spread")
        )
        for tensor, weights in alone.items():
            assert torch.allclose(found[tensor], weights, rtol=0, atol=1e-5), (name, tensor)


def test_an_sae_cut_over_two_processes_takes_the_steps_of_a_whole_one(trained, tmp_path):
    """Clipped, in two batches a step, with dead features; weights, moments and counts, half-way and at the end."""
    alone = train_wide(tmp_path, processes=1)
    for step in (STEPS // 2, STEPS):
        folders = [folder / f"checkpoint-{step}" / "saes" for folder in (tmp_path, trained / "wide-shard")]
        assert SAE.from_pretrained(folders[1]).config.n_features == alone.sae.config.n_features
        for file in ("model.safetensors", "state.safetensors"):
            whole, cut = (load_file(folder / file) for folder in folders)
            assert whole.keys() == cut.keys()
            for name, tensor in whole.items():
                assert torch.allclose(cut[name], tensor, rtol=0, atol=1e-5), (step, name)
    last = json.loads((trained / "wide-shard" / "checkpoint-20" / "run.json").read_text())["log_history"][-1]
    assert last["auxk"] == pytest.approx(alone.log_history[-1]["auxk"], rel=1e-4) and last["auxk"] > 0
    assert last["dormant_fraction"] == alone.log_history[-1]["dormant_fraction"] > 70 / 160


def test_a_transcoder_cut_over_two_processes_takes_the_steps_of_a_whole_one(trained, tmp_path):
    train_transcoder(tmp_path, processes=1)
    alone, cut = (
        SAE.from_pretrained(folder / f"checkpoint-{STEPS}" / "saes")
        for folder in (tmp_path, trained / "transcoder-shard")
    )
    assert cut.config.is_transcoder
    for name, tensor in alone.state_dict().items():
        assert torch.allclose(cut.state_dict()[name], tensor, rtol=0, atol=1e-5), name


def test_saes_that_are_spread_beside_language_models_that_lie_where_a_map_puts_them(trained):
    """Each process has a language model of its own, in memory and on the disk."""
    mapped, unmapped = of_both(trained, "mapped"), of_both(trained, "unmapped")
    assert [set(found["digests"]) for found in mapped] == [{"after"}, {"inside"}]
    for with_map, without in zip(mapped, unmapped, strict=True):
        assert with_map["digests"] == without["digests"] and with_map["completed"]
        for name, metrics in without["metrics"].items():
            assert with_map["metrics"][name]["loss_recovered"] == pytest.approx(metrics["loss_recovered"])


def test_a_run_that_is_spread_writes_everything_about_all_its_saes_once(trained):
    folder = trained / "text-spread"
    first, second = of_both(trained, "text-spread")
    assert first["metrics"] == second["metrics"] and list(first["metrics"]) == ["wide", "resampled", "narrow"]
    for name, metrics in first["metrics"].items():
        sae = SAE.from_pretrained(folder / name)
        assert sae.config.metrics["explained_variance"] == metrics["explained_variance"]
        assert sae.config.training["n_tokens"] == 12 * 128 and (folder / name / "README.md").is_file()
        log = [json.loads(line) for line in (folder / name / "training_log.jsonl").read_text().splitlines()]
        assert [entry["step"] for entry in log] == [4, 8, 12] and all("explained_variance" in entry for entry in log)
    checkpoint = folder / "checkpoint-12"
    assert {path.name for path in (checkpoint / "saes").iterdir()} == set(first["metrics"])
    assert json.loads((checkpoint / "run.json").read_text())["saes"] == list(first["metrics"])
    state = json.loads((checkpoint / "saes" / "resampled" / "state.json").read_text())
    assert state["last_resampling"] == 6


def test_a_set_that_is_spread_is_measured_as_a_whole(trained):
    """The figures of the whole, though no process had all of its transcoders, are those of the saved ones."""
    record = json.loads((trained / "set-spread" / SET_FILE).read_text())
    saes = load_saes(trained / "set-spread")
    assert list(saes) == ["mlp_in.0", "mlp_in.1", "mlp_in.2"] and record["n_saes"] == 3
    first, second = (set(found["digests"]) for found in of_both(trained, "set-spread"))
    assert len(first) + len(second) == 3 and not first & second
    assert record["protocol"]["weights_sha256"] == {name: weights_sha256(sae) for name, sae in saes.items()}
    assert record["kl"] > 0 and record["with_errors_difference"] < 1e-4
    assert all(sae.config.metrics["n_tokens"] == record["n_tokens"] for sae in saes.values())


def test_features_were_revived_in_these_runs(trained):
    state = json.loads((trained / "resampled" / "checkpoint-12" / "saes" / "state.json").read_text())
    assert state["last_resampling"] == 6
    assert "auxk" in json.loads((trained / "text-topk" / "training_log.jsonl").read_text().splitlines()[-1])


@pytest.mark.parametrize("case", ["two-parts", "two-parts-spread", "two-parts-shard"])
def test_a_run_of_two_processes_goes_on_bit_by_bit(trained, case):
    whole, broken = (contents(trained / case / name / "checkpoint-12") for name in ("whole", "broken"))
    assert whole == broken and "stream-rank-1.json" in whole


def test_a_signal_to_one_process_stops_both_after_the_same_step_with_a_checkpoint(trained):
    found = of_both(trained, "told-to-stop")
    assert not found[0]["completed"] and found[0]["steps"] < 100
    folder = trained / "told-to-stop" / f"checkpoint-{found[0]['steps']}"
    assert SAE.from_pretrained(folder / "saes").config.n_features == 48


def test_accelerate_launch_works_too(trained, by_accelerate):
    assert of_both(by_accelerate, "alike-topk") == of_both(trained, "alike-topk")


@pytest.mark.parametrize(
    "case, saes, placement",
    [
        ("two-parts", None, "replicate"),
        ("two-parts-spread", {"a": {"k": 2}, "b": {"k": 4}}, "spread"),
        ("two-parts-shard", None, "shard"),
    ],
)
def test_a_run_of_two_processes_goes_on_in_one(trained, tmp_path, case, saes, placement):
    shutil.copytree(trained / case / "whole", tmp_path / "run")
    options = {"training_tokens": 20 * 64, "dead_feature_window": 100, "sae_placement": placement}
    going_on = trainer(tmp_path / "run", inputs={"saes": saes}, callbacks=[stop_at(30)], **options)
    output = going_on.train(resume_from_checkpoint=True)
    assert output.steps == 30 and all(sae.W_dec.isfinite().all() for sae in output.saes.values())
    assert json.loads((tmp_path / "run" / "checkpoint-30" / "run.json").read_text())["tokens"] == 30 * 32


def test_a_run_of_one_process_goes_on_in_two_and_ends_about_the_same(trained, tmp_path):
    alone = go_on_with_more(tmp_path / "alone", stop=2 * HALF)
    first, second = of_both(trained, "begun-alone")
    assert first == second and first["completed"] and first["steps"] == HALF  # each as large as two of before
    stored = json.loads((trained / "begun-alone" / f"checkpoint-{HALF}" / "run.json").read_text())
    assert stored["tokens"] == 2 * HALF * 32 and stored["processes"] == 2
    for metric in ("explained_variance", "l0"):
        assert first["metrics"][""][metric] == pytest.approx(alone.metrics[""][metric], abs=0.1), metric
    log = (trained / "begun-alone" / "training_log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log] == [HALF // 2, HALF]


def test_a_process_that_dies_ends_the_run_and_leaves_the_last_checkpoint_whole(tmp_path):
    done = ended("torchrun", tmp_path, "one-dies")
    assert done.returncode != 0 and "Signal 9 (SIGKILL)" in done.stderr
    folder = tmp_path / "one-dies"
    assert last_checkpoint(folder) == folder / "checkpoint-4"
    assert trainer(folder, save_steps=4, training_tokens=20 * 64).train(resume_from_checkpoint=True).completed


@pytest.fixture(scope="module")
def broken_off(tmp_path_factory):
    """A folder of runs that ended with an error in every process, and what the processes ended with."""
    folder = tmp_path_factory.mktemp("broken-off")
    return folder, ended("forked", folder, "nan-spread", "nan-replicate")


@pytest.mark.parametrize("placement", ["spread", "replicate"])
def test_a_loss_that_is_not_a_number_in_one_process_ends_all_with_its_name(broken_off, placement):
    folder, done = broken_off
    assert done.returncode != 0 and "FloatingPointError" in done.stderr
    first, second = ((folder / f"nan-{placement}-rank-{rank}.txt").read_text() for rank in range(2))
    assert first == second
    assert "the loss of SAE 'topk' at activations is not a number, found after step 7" in first
    assert not list(folder.glob(f"nan-{placement}-rank-*.json"))  # which a run that ends well leaves
    assert last_checkpoint(folder / f"nan-{placement}") == folder / f"nan-{placement}" / "checkpoint-4"
