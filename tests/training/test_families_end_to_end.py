"""Language models of many kinds by name from disk, from training to an SAE that is used again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from hfsae import SAE, SAETrainer, SAETrainingArguments, self_check
from hfsae.hooks import inner_model
from tests import models_on_disk
from tests.models_on_disk import save

INT8 = {"quantization_config": {"quant_method": "quanto", "weights": "int8"}}


def save_lora(folder: Path) -> Path:
    return models_on_disk.save_adapter(folder / "adapter", save(models_on_disk.llama(), folder / "base"))


KINDS: dict[str, tuple[Callable[[Path], Path], dict[str, Any], str]] = {
    "lora": (save_lora, {}, "LlamaForCausalLM"),
    "gguf": (models_on_disk.save_gguf, {}, "LlamaForCausalLM"),
    "llava": (lambda folder: save(models_on_disk.llava(), folder), {}, "LlavaForConditionalGeneration"),
    "bert": (lambda folder: save(models_on_disk.bert(), folder), {}, "BertForMaskedLM"),
    "esm2": (lambda folder: save(models_on_disk.esm(), folder), {}, "EsmForMaskedLM"),
    "gemma4": (lambda folder: save(models_on_disk.gemma4(), folder), {}, "Gemma4ForCausalLM"),
    "rwkv": (lambda folder: save(models_on_disk.rwkv(), folder), {}, "RwkvForCausalLM"),
    "int8": (lambda folder: save(models_on_disk.llama(), folder), {"model_kwargs": INT8}, "LlamaForCausalLM"),
}
TEXTS = [f"def f_{i}(a, b): return a * {i} + b  # line {j} of text {i * j}" for i in range(40) for j in range(12)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_on_disk_is_trained_on_measured_saved_and_found_again(kind, tmp_path):
    make, options, class_name = KINDS[kind]
    folder = make(tmp_path / "lm")
    args = SAETrainingArguments(
        model_name_or_path=str(folder),
        hook_point="resid_post.1",
        n_features=64,
        k=4,
        context_length=32,
        training_tokens=4096,
        train_batch_tokens=128,
        lm_batch_sequences=4,
        init_tokens=512,
        calibration_tokens=256,
        eval_tokens=512,
        output_dir=str(tmp_path / "sae"),
        save_steps=0,
        html_report=False,
        disable_tqdm=True,
        use_cpu=True,
        **options,
    )
    dataset = Dataset.from_dict({"text": TEXTS})
    metrics = SAETrainer(args=args, train_dataset=dataset).train().metrics[""]
    assert metrics["explained_variance"] > 0.2

    sae = SAE.from_pretrained(tmp_path / "sae")
    model = sae.load_base_model()
    assert type(inner_model(model)).__name__ == class_name and not model.training
    check = self_check(sae, model, TEXTS[:40])
    assert check.ok, str(check)
    ids = sae.load_tokenizer()(TEXTS[0], return_tensors="pt").input_ids
    with torch.no_grad(), sae.attach(model, splice=True) as run:
        spliced = model(input_ids=ids).logits
    with torch.no_grad():
        features = sae.encode(run.activations)
    assert run.features.shape == (*ids.shape, 64) and features.shape == run.features.shape
    assert not torch.allclose(spliced, model(input_ids=ids).logits, atol=1e-3)
