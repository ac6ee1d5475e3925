"""What lies in a checkpoint, name by name, and that the layout of an earlier build is gone on from."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hfsae.storage import SUMS, seal, sum_up
from tests.training.tiny import contents, stop_at, trainer

N, D = 48, 16
MATRICES = {"W_dec": [N, D], "b_dec": [D], "encoder.bias": [N], "encoder.weight": [N, D]}
WEIGHTS = {**MATRICES, "input_scale": []}
STATE = {
    "firing.fired": [N],
    "firing.tokens_since_fired": [N],
    "massive": [1, 8, D],
    **{
        f"optimiser.{name}.{moment}": shape for name, shape in MATRICES.items() for moment in ("exp_avg", "exp_avg_sq")
    },
    **{f"optimiser.{name}.step": [] for name in MATRICES},
}
STREAM_SETTINGS = {
    "batch_size",
    "context_length",
    "mix_documents",
    "prepend_bos",
    "rank",
    "seed",
    "shuffle",
    "world_size",
}
# What the build before the modules of training were renamed did not write yet.
LATER_ARGUMENTS, LATER_COEFFICIENT = {"compare_model_name_or_path"}, {"first", "l0"}
LATER_TENSOR, LATER_IN_STREAM, LATER_IN_RUN = "massive", "mixed_tokens", {"dataset_commit", "digests"}
# An earlier build mixed no blocks, and goes on so.
OPTIONS = {"steps": 13, "shuffle_documents": False}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    trainer(tmp_path / "run", **OPTIONS, callbacks=[stop_at(4)]).train()
    return tmp_path / "run"


def shapes(file: Path) -> dict[str, list[int]]:
    with safe_open(file, framework="pt") as tensors:
        return {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}


def read(file: Path) -> dict:
    return json.loads(file.read_text())


def test_a_checkpoint_holds_these_files_tensors_and_values(run: Path):
    checkpoint = run / "checkpoint-4"
    files = {path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*") if path.is_file()}
    inside = {"config.json", "model.safetensors", "state.safetensors", "state.json", SUMS}
    assert files == {SUMS, "run.json", "stream-rank-0.json", *(f"saes/{name}" for name in inside)}
    assert shapes(checkpoint / "saes/model.safetensors") == WEIGHTS
    assert shapes(checkpoint / "saes/state.safetensors") == STATE
    state = read(checkpoint / "saes/state.json")
    assert state.keys() == {"coefficient", "firing", "last_resampling", "starts"}
    assert state["coefficient"].keys() == {"log_coefficient", "quick", "slow", *LATER_COEFFICIENT}
    arguments = {"arguments", "own_arguments"}
    told = {"best", "folder", "log_history", "processes", "saes", "seconds", "step", "text_seed", "tokens"}
    assert read(checkpoint / "run.json").keys() == arguments | told | LATER_IN_RUN
    stream = read(checkpoint / "stream-rank-0.json")
    assert stream.keys() == {"batch", "first_row", "window"}
    assert stream["first_row"]["source"]["settings"].keys() == STREAM_SETTINGS


def test_a_checkpoint_of_an_earlier_build_is_gone_on_from_bit_by_bit(run: Path):
    shutil.copytree(run, run.parent / "older")
    checkpoint = run.parent / "older" / "checkpoint-4"
    before, state = read(checkpoint / "run.json"), read(checkpoint / "saes/state.json")
    tensors, stream = load_file(checkpoint / "saes/state.safetensors"), read(checkpoint / "stream-rank-0.json")
    del tensors[LATER_TENSOR], stream["first_row"]["source"][LATER_IN_STREAM]
    save_file(tensors, checkpoint / "saes/state.safetensors")
    (checkpoint / "stream-rank-0.json").write_text(json.dumps(stream))
    for name in LATER_IN_RUN:
        del before[name]
    for name in LATER_ARGUMENTS:
        del before["arguments"][name]
    for name in LATER_COEFFICIENT:
        del state["coefficient"][name]
    (checkpoint / "run.json").write_text(json.dumps(before))
    (checkpoint / "saes/state.json").write_text(json.dumps(state))
    seal(checkpoint / "saes")
    sum_up(checkpoint, [name for name in contents(checkpoint)] + ["run.json", f"saes/{SUMS}"])
    for folder in (run, run.parent / "older"):
        again = trainer(folder, **OPTIONS, callbacks=[stop_at(8)])
        assert again.train(resume_from_checkpoint=True).steps == 8
    ends = [contents(folder / "checkpoint-8") for folder in (run, run.parent / "older")]
    assert ends[0] == ends[1] and len(ends[0]) == 5
