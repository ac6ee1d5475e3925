import inspect
import json
import re
import subprocess
import sys
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import pytest

import hfsae
from hfsae import SAETrainingArguments
from hfsae.arguments.sae_settings import revival_of
from hfsae.arguments.training_arguments import OPTIONS, SECRET
from hfsae.autoencoder.registry import architecture_names, architectures, config_class_of
from hfsae.data import TokenBlocks, default_window_tokens
from hfsae.data.text_source import ARGUMENTS, READING
from hfsae.hub.sections import HOUSEKEEPING

NAMES = [option.name for option in fields(SAETrainingArguments)]


def source_of_the_package() -> str:
    files = Path(hfsae.__file__).parent.rglob("*.py")
    return "\n".join(path.read_text() for path in files if path.name != "training_arguments.py")


@pytest.mark.parametrize("name", NAMES)
def test_every_argument_is_read_somewhere_and_explained(name):
    # Arguments that name a text are fields of one value, which reads them or hands them to whoever cuts blocks.
    field = next((field for field, argument in ARGUMENTS.items() if argument == name), name)
    handed_on = field in READING and field in inspect.signature(TokenBlocks).parameters
    read = re.search(rf"\b(?:args|own)\.{name}\b|\bself\.{field}\b", source_of_the_package())
    assert handed_on or read, f"nothing reads {name}"
    option = next(option for option in fields(SAETrainingArguments) if option.name == name)
    assert option.metadata["help"].endswith(".") and option.metadata["group"]


def test_the_help_of_architecture_names_every_one():
    named = set(re.findall(r"\w+", OPTIONS["architecture"].metadata["help"]))
    assert {name for name, one in architectures().items() if one.__module__.startswith("hfsae.")} <= named


@pytest.mark.parametrize("transcoder", [False, True])
@pytest.mark.parametrize("name", [name for name in architecture_names() if "layer" not in name])
def test_dead_features_come_back_as_the_help_says(name, transcoder):
    auxk, resample, repoint = OPTIONS["revival"].metadata["help"].partition("'auto': ")[2].split(", ")
    assert resample.endswith("(not transcoders)") and repoint == "repoint else."
    if transcoder and (name == "matching_pursuit" or "crosscoder" in name):
        pytest.skip("there is none")
    rule = name.removesuffix("crosscoder").removesuffix("_") or "batch_topk"
    resampled = rule in resample.split() and not transcoder
    sizes = {"source_names": ["a", "b"], "source_widths": [4, 4]} if "crosscoder" in name else {"d_in": 4}
    sizes |= {"subtract_b_dec": False, "target_hook_point": "b.output"} if transcoder else {}
    sae = hfsae.SAE.from_config(config_class_of(name)(n_features=64, hook_point="a.output", **sizes))
    assert revival_of(sae, "auto") == ("auxk" if rule in auxk.split() else "resample" if resampled else "repoint")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("expansion_factor", 0), ("n_features", 0), ("k", 0), ("target_l0", 0.0), ("init_tokens", 0),
        ("training_tokens", -1), ("train_batch_tokens", 0), ("gradient_accumulation_steps", 0),
        ("lm_batch_sequences", 0), ("calibration_tokens", -1), ("adam_epsilon", 0.0), ("dead_feature_window", 0),
        ("resample_every", 0), ("feature_sampling_window", 0), ("logging_steps", 0), ("save_total_limit", 0),
        ("sparsity_coefficient", -1.0), ("shuffle_window_tokens", -1), ("prefetch_batches", -1), ("eval_tokens", -1),
        ("lr_start", -1.0), ("lr_end", -1.0), ("warmup_steps", -1), ("max_grad_norm", -1.0), ("auxk_alpha", -1.0),
        ("save_steps", -1), ("seed", -1), ("sparsity_warmup_fraction", 1.5), ("lr_decay_fraction", -0.1),
        ("calibration_share", 0.0), ("evaluation_share", 1.0),
        ("adam_beta1", 1.0), ("adam_beta2", -0.1), ("context_length", 1), ("learning_rate", 0.0),
        ("learning_rate", float("nan")), ("learning_rate", float("inf")), ("learning_rate", "quick"),
        ("lr_scheduler_type", "cosin"), ("revival", "auxkk"), ("decoder_center", "median"), ("model_dtype", "int8"),
        ("activation_dtype", "float16"), ("architecture_options", "[1]"), ("architecture_options", "{"),
        ("kl_tokens", "a"), ("training_tokens", "many"), ("save_minutes", [1]),
        ("seed", 1.5), ("train_batch_tokens", 100.5), ("k", "4"), ("k", True), ("save_steps", 2.5), ("n_features", []),
        ("adam_epsilon", float("inf")), ("warmup_steps", float("inf")), ("expansion_factor", float("nan")),
        ("bf16", "false"), ("streaming", None), ("use_cpu", 1), ("output_dir", 3), ("dataset_name", ["a", "b"]),
        ("exclude_positions", 0), ("exclude_positions", "0"), ("exclude_positions", [0.5]),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=rf"^{name} "):
        SAETrainingArguments(**{name: value})


@pytest.mark.parametrize(
    ("name", "value", "plain"),
    [
        ("training_tokens", 1e9, 1_000_000_000),
        ("train_batch_tokens", np.int64(64), 64),
        ("auxk_alpha", np.float32(0.5), 0.5),
        ("learning_rate", np.float64(0.25), 0.25),
        ("output_dir", Path("runs") / "x", "runs/x"),
        ("model_name_or_path", Path("models"), "models"),
        ("dataset_name", Path("data.jsonl"), "data.jsonl"),
        ("exclude_positions", range(2), [0, 1]),
        ("exclude_positions", np.array([0, 3]), [0, 3]),
    ],
)
def test_what_python_calls_otherwise_is_taken_as_files_hold_it(name, value, plain):
    args = SAETrainingArguments(**{name: value})
    assert getattr(args, name) == plain and type(getattr(args, name)) is type(plain)
    assert SAETrainingArguments(**json.loads(json.dumps(args.stored()))).stored() == args.stored()


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_grad_norm", 0), ("warmup_steps", 0), ("save_steps", 0), ("eval_tokens", 0), ("prefetch_batches", 0),
     ("shuffle_window_tokens", 0), ("sparsity_coefficient", 0.0), ("lr_decay_fraction", 0), ("lr_end", 0.0)],
)  # fmt: skip
def test_zero_is_taken_where_it_switches_something_off(name, value):
    assert getattr(SAETrainingArguments(**{name: value}), name) == 0


def test_what_cards_leave_out_is_told_where_the_argument_is_declared():
    """The cards stand below the training, and so have a list of their own."""
    left_out = {name for name, option in OPTIONS.items() if not option.metadata["on_card"]}
    assert left_out == HOUSEKEEPING | SECRET


def test_the_arguments_are_there_without_torch():
    code = """
import sys
sys.modules["hfsae_cli"] = sys
import hfsae.arguments.training_arguments
heavy = {"torch", "transformers", "datasets", "accelerate", "numpy", "huggingface_hub.errors"}
print(*sorted(heavy & set(sys.modules)))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""


def test_a_coefficient_cannot_be_both_held_and_steered():
    with pytest.raises(ValueError, match="give one of the two"):
        SAETrainingArguments(target_l0=32, sparsity_coefficient=1.0)


def test_a_run_holds_at_least_one_step():
    with pytest.raises(ValueError, match="training_tokens=100 is less than one step of 64 tokens × 2"):
        SAETrainingArguments(training_tokens=100, train_batch_tokens=64, gradient_accumulation_steps=2)


def test_steps_are_counted_over_accumulation_and_processes():
    args = SAETrainingArguments(training_tokens=4096, train_batch_tokens=64, gradient_accumulation_steps=2)
    assert args.total_steps == 32
    assert args.total_steps_on(4) == 8
    assert args.total_steps_on(1000) == 1


def test_the_defaults_go_together():
    args = SAETrainingArguments()
    window = default_window_tokens(args.training_tokens, args.train_batch_tokens)
    assert window >= args.train_batch_tokens
    assert args.given() == {}


def test_given_tells_what_is_not_the_default_in_values_that_json_can_hold():
    args = SAETrainingArguments(k=8, exclude_positions=[0, 1], architecture_options='{"multi_topk": true}', seed=0)
    expected = {"k": 8, "exclude_positions": [0, 1], "architecture_options": {"multi_topk": True}}
    assert json.loads(json.dumps(args.given())) == expected
    assert SAETrainingArguments(**args.given()) == args


def test_a_run_goes_on_with_equal_arguments_and_with_others_that_change_no_number():
    before = json.loads(json.dumps(asdict(SAETrainingArguments(k=8))))
    SAETrainingArguments(k=8).refuse_difference(before)
    SAETrainingArguments(k=8, output_dir="elsewhere", logging_steps=1, save_steps=7).refuse_difference(before)


def test_a_run_does_not_go_on_with_arguments_that_change_numbers():
    before = json.loads(json.dumps(asdict(SAETrainingArguments(k=8))))
    with pytest.raises(ValueError, match="seed was 0 and is 1") as refusal:
        SAETrainingArguments(k=16, seed=1, save_steps=7).refuse_difference(before)
    assert "k was 8 and is 16" in str(refusal.value) and "save_steps" not in str(refusal.value)


def test_an_argument_that_the_version_of_a_run_did_not_know_was_at_its_default():
    """A run of 27 November went on with a KL finish that it was not begun with, and nothing was said."""
    before = json.loads(json.dumps(asdict(SAETrainingArguments(k=8))))
    del before["kl_tokens"], before["kl_weight"]
    SAETrainingArguments(k=8).refuse_difference(before)
    with pytest.raises(ValueError, match="kl_tokens was 0 and is 5000"):
        SAETrainingArguments(k=8, kl_tokens=5000).refuse_difference(before)


def test_an_option_that_the_version_of_a_run_had_at_another_default_may_be_told():
    """The SAE of the checkpoint says what it was: matryoshka's balance was 1, and could not be told on resuming."""
    before = json.loads(json.dumps(asdict(SAETrainingArguments(architecture="matryoshka"))))
    options = {"prefix_balance": 1}
    SAETrainingArguments(architecture="matryoshka", architecture_options=options).refuse_difference(before)
    before["architecture_options"] = {"prefix_balance": 0.5}
    with pytest.raises(ValueError, match="architecture_options.prefix_balance was 0.5 and is 1"):
        SAETrainingArguments(architecture="matryoshka", architecture_options=options).refuse_difference(before)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"training_tokens": 65_536}, 8192),
        ({"training_tokens": 500_000}, 31_250),
        ({"training_tokens": 100_000_000}, 65_536),
        ({"training_tokens": 65_536, "calibration_tokens": 100_000}, 100_000),
    ],
)
def test_what_is_read_for_calibration_is_sized_to_the_run_unless_it_is_told(options, expected):
    assert SAETrainingArguments(**options).tokens_for_calibration == expected


def test_repr_shows_what_differs_from_the_defaults_and_makes_it_again():
    assert repr(SAETrainingArguments()) == "SAETrainingArguments()"
    args = SAETrainingArguments(k=7, output_dir="x", architecture_options={"penalty": "l1"}, hub_token="hf_secret")
    assert repr(args) == "SAETrainingArguments(output_dir='x', k=7, architecture_options={'penalty': 'l1'})"
    assert eval(repr(args)).stored() == args.stored()
