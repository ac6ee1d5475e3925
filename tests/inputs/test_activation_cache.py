"""Training from an activation cache, against training from the language model."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from hfsae import SAETrainer
from hfsae.data import CachedActivations
from hfsae.hooks import HookPointError
from hfsae.inputs.activation_cache import cache_activations
from tests.data.tiny import language_model, language_model_without_weights, pythia_like
from tests.training.tiny import arguments, contents, stop_at, text, trainer

STEPS = 12
PLACES = "resid_post.1, mlp_out.0"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a language model and a text, and the options that name them."""
    folder = tmp_path_factory.mktemp("place")
    language_model().save_pretrained(folder / "lm")
    pythia_like().save_pretrained(folder / "lm")
    text().to_json(folder / "text.jsonl")
    return {"model_name_or_path": str(folder / "lm"), "dataset_name": str(folder / "text.jsonl"), "hook_point": PLACES}


@pytest.fixture(scope="module")
def cache(place, tmp_path_factory):
    """A cache of both places, as training reads it by default."""
    folder = tmp_path_factory.mktemp("cache")
    cache_activations(arguments(folder, steps=STEPS, **place), shard_rows=100)
    return folder


def train(folder, place, **options):
    callbacks = options.pop("callbacks", ())
    return SAETrainer(args=arguments(folder, steps=STEPS, **{**place, **options}), callbacks=callbacks).train()


def weights(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("model.safetensors")}


def cache_contents(folder: Path) -> dict[str, Any]:
    """The bytes of all files; of the description what it says, but for where it lies, which its digest tells too."""
    found: dict[str, Any] = {path.name: path.read_bytes() for path in folder.iterdir()}
    said = json.loads(found.pop("cache.json"))
    assert Path(said["made_from"].pop("folder")) == folder
    lines = found.pop("SHA256SUMS").decode().splitlines() if "SHA256SUMS" in found else []
    return {**found, "description": said, "sums": [line for line in lines if not line.endswith("cache.json")]}


# -- the same as from the language model ------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"activation_dtype": "float32", "architecture": "batch_topk"},
        {"shuffle_window_tokens": 3 * 32, "gradient_accumulation_steps": 2},
        {"shuffle_window_tokens": 0, "exclude_positions": [0, 3], "prepend_bos": True},
        {"streaming": True, "mix_documents": False},
    ],
    ids=["bfloat16", "float32", "windows", "in-order", "streaming"],
)
def test_an_sae_trained_from_the_cache_is_that_trained_from_the_language_model(place, tmp_path, options):
    options = {**place, **options}
    cache_activations(arguments(tmp_path / "cache", steps=STEPS, **options), shard_rows=100)
    direct = train(tmp_path / "direct", options, eval_tokens=100)
    cached = train(tmp_path / "cached", options, eval_tokens=100, activation_cache=str(tmp_path / "cache"))
    assert weights(tmp_path / "cached") == weights(tmp_path / "direct") and len(weights(tmp_path / "direct")) == 4
    assert cached.metrics == direct.metrics and direct.metrics["resid_post.1"]["n_tokens"] > 0
    for name, sae in direct.saes.items():
        ours, theirs = cached.saes[name].config.to_dict(), sae.config.to_dict()
        differing = {field for field in ours if ours[field] != theirs[field]}
        assert differing <= {"training"}
        assert ours["training"]["dataset"] == theirs["training"]["dataset"] == place["dataset_name"]


def test_without_evaluation_no_language_model_and_no_text_are_needed(place, cache, tmp_path):
    moved = {"hook_point": "resid_post.-2"}
    sae = train(tmp_path, moved, activation_cache=str(cache)).sae
    assert sae.config.base_model == place["model_name_or_path"]
    assert (sae.config.hook_point, sae.config.context_length) == ("transformer.h.1.output", 12)
    assert sae.config.training["portable_name"] == "resid_post.1"
    assert sae.config.exclude_positions == [0] and sae.config.prepend_bos is False


def test_objects_can_be_cached_and_evaluated_on_too(tmp_path):
    inputs = {"train_dataset": text(), "processing_class": pythia_like()}
    cache_activations(arguments(tmp_path / "cache"), language_model(), **inputs)
    cached = trainer(tmp_path / "run", activation_cache=str(tmp_path / "cache"), eval_tokens=100)
    direct = trainer(tmp_path / "direct", eval_tokens=100)
    assert cached.train().metrics == direct.train().metrics


def test_a_cache_serves_other_seeds_saes_and_orders_of_rows(place, cache, tmp_path):
    trained = [
        train(tmp_path / str(seed), {"hook_point": "mlp_out.0"}, activation_cache=str(cache), seed=seed, k=2 + seed)
        for seed in range(2)
    ]
    assert not torch.equal(*(output.sae.W_dec for output in trained))


def test_a_run_longer_than_the_cache_reads_it_again_and_says_so(cache, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="hfsae"):
        options = {"activation_cache": str(cache), "training_tokens": 40 * 32, "hook_point": "mlp_out.0"}
        assert train(tmp_path, {}, **options).steps == 40
    assert "reads 1,280 tokens and the cache holds 384" in caplog.text


@pytest.mark.parametrize("stop", [1, 7])
def test_a_run_from_a_cache_goes_on_bit_by_bit(cache, tmp_path, stop):
    def part(name, until, **options):
        train(tmp_path / name, {}, callbacks=[stop_at(until)], **options)
        return contents(tmp_path / name / f"checkpoint-{until}")

    options = {"activation_cache": str(cache), "hook_point": PLACES, "training_tokens": 13 * 32}
    whole = part("whole", STEPS, **options)
    part("broken", stop, **options)
    assert part("broken", STEPS, resume_from_checkpoint="last", **options) == whole


# -- several processes ------------------------------------------------------------------------------------------------
def test_a_cache_holds_the_windows_that_a_run_fills(place, cache):
    """The last window is filled whole even where the run ends within it."""
    assert CachedActivations(cache).description.rows == STEPS * 32
    assert json.loads((cache / "cache.json").read_text())["made_from"]["arguments"]["hook_point"] == PLACES


# -- what does not fit ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context_length": 13}, "context_length was 12 and is 13"),
        ({"prepend_bos": True}, "prepend_bos was False and is True"),
        ({"exclude_special_tokens": False}, "exclude_special_tokens was True and is False"),
        ({"exclude_positions": []}, r"exclude_positions was \[0\] and is \[\]"),
        ({"activation_dtype": "float32"}, "activation_dtype was 'bfloat16' and is 'float32'"),
        ({"model_name_or_path": "tester/other"}, "model_name_or_path was .* and is 'tester/other'"),
        ({"dataset_name": "tester/other"}, "dataset_name was .* and is 'tester/other'"),
        ({"dataset_split": "test", "mix_documents": False}, "dataset_split .*; mix_documents was True and is False"),
        ({"hook_point": "resid_post.0"}, r"holds transformer\.h\.1\.output.*, not transformer\.h\.0\.output"),
        ({"hook_point": "resid_post.7"}, "no layer 7"),
    ],
)
def test_a_cache_that_was_made_for_another_run_is_refused_by_name(place, cache, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        train(tmp_path, place, activation_cache=str(cache), **options)


def test_a_text_that_has_changed_is_refused_before_it_is_measured_on(place, cache, tmp_path):
    changed = Dataset.from_dict({"text": [*text()["text"][:-1], "w1 w2 w3"]})
    trainer = SAETrainer(
        args=arguments(tmp_path, activation_cache=str(cache), eval_tokens=100, hook_point="mlp_out.0"),
        train_dataset=changed,
    )
    with pytest.raises(ValueError, match="made from another text"):
        trainer.train()


def test_another_model_is_refused_before_it_is_measured_with(cache, tmp_path):
    options = {"activation_cache": str(cache), "eval_tokens": 100, "hook_point": "mlp_out.0"}
    inputs = {"model": language_model(n_layer=2), "train_dataset": text(), "processing_class": pythia_like()}
    with pytest.raises(ValueError, match="made with another language model"):
        SAETrainer(args=arguments(tmp_path, **options), **inputs).train()


@pytest.mark.parametrize(
    "said, odd",
    [
        ({"base_model": {"repo": "org/lm"}}, "base_model"),
        ({"base_model": {"name": "org/lm", "branch": "main"}}, "base_model"),
        ({"base_model": "org/lm"}, "base_model"),
        ({"arguments": None}, "arguments"),
        ({"arguments": {"model_name_or_path": "org/lm"}}, "context_length"),
        ({"model_config": ["gpt2"], "text_digest": None}, "model_config, text_digest"),
        ({"model_config": {}}, "says of its language model"),
        ({"model_config": {"model_type": "nothing-known"}}, "says of its language model"),
    ],
)
def test_a_cache_that_another_version_wrote_is_told_from_one_that_can_be_read(place, cache, tmp_path, said, odd):
    folder = Path(shutil.copytree(cache, tmp_path / "cache"))
    description = json.loads((folder / "cache.json").read_text())
    description["made_from"] |= said
    (folder / "cache.json").write_text(json.dumps(description))
    (folder / "SHA256SUMS").unlink()
    with pytest.raises((OSError, ValueError), match=odd) as caught:
        train(tmp_path / "sae", place, activation_cache=str(folder), eval_tokens=0)
    assert str(folder) in str(caught.value)


def test_no_cache_and_a_folder_with_another_are_refused(place, cache, tmp_path):
    with pytest.raises(FileNotFoundError, match="no activation cache in"):
        train(tmp_path / "run", place, activation_cache=str(tmp_path))
    with pytest.raises(FileExistsError, match=r"arguments\.seed was 0 and is 1"):
        cache_activations(arguments(cache, steps=STEPS, seed=1, **place), shard_rows=100)
    with pytest.raises(ValueError, match="or activations of your own"):
        SAETrainer(args=arguments(tmp_path, activation_cache=str(cache)), activations=torch.zeros(9, 16))


def test_a_mistake_costs_no_loading_of_a_language_model(place, tmp_path):
    options = {**place, "model_name_or_path": str(language_model_without_weights(tmp_path / "lm"))}
    with pytest.raises(HookPointError, match="no layer 7"):
        cache_activations(arguments(tmp_path / "cache", **{**options, "hook_point": "resid_post.7"}))
    with pytest.raises(ValueError, match="no text to train on"):
        cache_activations(arguments(tmp_path / "cache", **{**options, "dataset_name": None}))
    with pytest.raises(OSError, match="model.safetensors"):
        cache_activations(arguments(tmp_path / "cache", **options))


def test_a_folder_may_be_written_over_on_request(place, tmp_path):
    for steps in (3, 4):
        cache_activations(arguments(tmp_path, steps=steps, overwrite_output_dir=True, **place))
    assert CachedActivations(tmp_path).description.rows == 4 * 32


# -- killed -----------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_a_cache_whose_writer_is_killed_again_and_again_ends_with_the_same_bytes(place, tmp_path):
    rows = 40 * 32
    options = arguments(tmp_path, steps=rows // 32, **place).given()
    del options["output_dir"]
    (tmp_path / "config.yaml").write_text(json.dumps(options))
    write = (
        "import sys\nfrom hfsae.inputs.activation_cache import cache_activations\n"
        "from hfsae.arguments.command_options import parse_training_arguments\n"
        "from tests.training.killed import kill_at_rename\n"
        "number, after = map(int, sys.argv[1:3])\n"
        "kill_at_rename(number, after=bool(after))\n"
        "cache_activations(parse_training_arguments(sys.argv[3:]), shard_rows=20)\n"
    )

    def run(folder, *, dies_at_rename=0, after=False):
        """The writer's exit code; renames are counted from 1."""
        moment = [str(dies_at_rename), str(int(after))]
        command = [sys.executable, "-c", write, *moment, str(tmp_path / "config.yaml"), "--output_dir", str(folder)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
        return subprocess.run(command, env=environment, timeout=300).returncode

    def shards(folder):
        return len(list(folder.glob("rows-*.safetensors")))

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run(whole) == 0
    # A shard takes several: its rows, and the digests of all files so far.
    assert run(killed, dies_at_rename=12, after=False) == -signal.SIGKILL
    before = shards(killed)
    assert run(killed, dies_at_rename=12, after=True) == -signal.SIGKILL
    assert 0 < before < shards(killed) < shards(whole)
    assert run(killed) == 0
    ends = cache_contents(killed)
    assert all(name.endswith(".part") for name in ends.keys() - cache_contents(whole).keys())
    assert {name: ends[name] for name in cache_contents(whole)} == cache_contents(whole)
