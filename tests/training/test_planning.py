"""What a run refuses before a weight of its language model is loaded."""

import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from hfsae import SAE, SAETrainer, SAETrainingArguments, TopKSAEConfig
from tests.data.tiny import language_model, language_model_without_weights, pythia_like
from tests.training.tiny import text

SETS = {"hook_point": "mlp_in.0+mlp_in.1", "target_hook_point": "mlp_out.0+mlp_out.1"}
TRANSCODER = {"hook_point": "mlp_in.0", "target_hook_point": "mlp_out.0"}


@pytest.fixture(scope="module")
def without_its_weights(tmp_path_factory) -> Path:
    return language_model_without_weights(tmp_path_factory.mktemp("model"))


def training(model: Any, output_dir: Path, saes: Any = None, **options: Any) -> SAETrainer:
    options = {"hook_point": "resid_post.0", "n_features": 48, "k": 4, "use_cpu": True, **options}
    options |= {"training_tokens": 4096, "train_batch_tokens": 256, "context_length": 32, "disable_tqdm": True}
    args = SAETrainingArguments(output_dir=str(output_dir), model_name_or_path=str(model), **options)
    return SAETrainer(args=args, saes=saes, train_dataset=text())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"hook_point": "resid_post.7"}, "resid_post.7"),
        ({"hook_point": "resid_post.0+resid_post.1"}, "choose a crosscoder"),
        ({"architecture_options": {"alligned": True}}, "alligned"),
        ({"architecture": "gated", "architecture_options": {"aligned": True}}, "these options make no gated SAE"),
        ({"architecture": "matching_pursuit", **TRANSCODER}, "these options make no matching_pursuit SAE"),
        ({"n_features": None, "expansion_factor": 0.1}, "these options make no topk SAE: k must be between 1 and"),
        ({"architecture": "abs_topk", "revival": "repoint"}, "revival='repoint' sets how far features rise"),
        ({"revival": "resample", **TRANSCODER}, "revival='resample' points features at activations"),
        ({"architecture": "jumprelu", "target_l0": 99}, "99"),
        ({"architecture": "crosscoder", "hook_point": "resid_post.0+resid_post.1", "kl_tokens": 0.5}, "one place"),
        ({"architecture": "topk_cross_layer_transcoder", "kl_tokens": 0.5, **SETS}, "kl_tokens puts a"),
    ],
)
def test_what_cannot_be_costs_no_loading_of_a_language_model(without_its_weights, tmp_path, options, says):
    with pytest.raises(ValueError, match=says):
        training(without_its_weights, tmp_path / "run", **options).train()


@pytest.mark.parametrize("d_in", [15, 17])
def test_an_sae_of_another_width_costs_none_either(without_its_weights, tmp_path, d_in):
    config = TopKSAEConfig(d_in=d_in, n_features=48, k=4, hook_point="resid_post.0")
    for item in (config, SAE.from_config(config)):
        with pytest.raises(ValueError, match=f"d_in={d_in}, but the activations at .* have 16 dimensions"):
            training(without_its_weights, tmp_path / "run", item).train()


def test_nor_do_several_models(without_its_weights, tmp_path):
    options = {"compare_model_name_or_path": str(without_its_weights), "architecture": "crosscoder"}
    with pytest.raises(ValueError, match="sparsity"):
        training(without_its_weights, tmp_path / "run", architecture_options={"sparsity": "none"}, **options).train()
    with pytest.raises(OSError, match="model.safetensors"):
        training(without_its_weights, tmp_path / "run", **options).train()


def test_nor_do_checkpoints_that_find_no_room(without_its_weights, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10_000, 9_000, 1_000))
    with pytest.raises(OSError, match="has 1.00 kB free"):
        training(without_its_weights, tmp_path / "run").train()


def test_nor_do_a_text_and_a_tokenizer_that_are_missing(without_its_weights, tmp_path):
    run = training(without_its_weights, tmp_path / "run")
    with pytest.raises(ValueError, match="no text to train on"):
        SAETrainer(args=run.args).train()
    bare = shutil.copytree(without_its_weights, tmp_path / "bare")
    for file in bare.glob("*token*"):
        file.unlink()
    with pytest.raises((OSError, ValueError), match="tokenizer"):
        training(bare, tmp_path / "run").train()


def test_what_can_be_is_told_by_the_weights(without_its_weights, tmp_path):
    with pytest.raises(OSError, match="model.safetensors"):
        training(without_its_weights, tmp_path / "run").train()


def test_a_place_that_an_adapter_alone_has_is_not_missed_before_it_is_there(tmp_path):
    language_model().save_pretrained(tmp_path / "model")
    pythia_like().save_pretrained(tmp_path / "model")
    model = peft.get_peft_model(
        type(language_model()).from_pretrained(tmp_path / "model"),
        peft.LoraConfig(r=4, target_modules=["mlp.c_proj"], fan_in_fan_out=True, task_type="CAUSAL_LM"),
    )
    model.save_pretrained(tmp_path / "adapter")
    place = next(name for name, _ in model.get_base_model().named_modules() if name.endswith("lora_A.default"))
    output = training(tmp_path / "adapter", tmp_path / "run", hook_point=f"{place}.output", k=2, eval_tokens=0).train()
    assert output.configs[""].d_in == 4 and torch.isfinite(output.saes[""].W_dec).all()
