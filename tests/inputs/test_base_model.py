"""The language model of a run, and what its SAEs record of it."""

import logging

import pytest
import torch
import transformers as hf
from huggingface_hub import HfApi
from peft import PeftModel, PrefixTuningConfig, PromptTuningConfig
from transformers import QuantoConfig

from hfsae.inputs.base_model import BaseModel, _on_own, open_base_model
from hfsae.language_model import Origin
from tests import models_on_disk
from tests.data.tiny import language_model, pythia_like
from tests.training.tiny import arguments


def opened(model=None, tokenizer=None, args=None) -> BaseModel:
    return open_base_model(args or arguments("unused"), model, tokenizer, torch.device("cpu"))


def test_a_model_object_is_taken_as_it_is():
    model = language_model()
    loaded = opened(model, pythia_like())
    assert loaded.model is model and loaded.origin is None
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_model_is_loaded_from_a_folder_with_its_tokenizer(tmp_path):
    language_model().save_pretrained(tmp_path)
    pythia_like().save_pretrained(tmp_path)
    args = arguments("unused", model_name_or_path=str(tmp_path), model_dtype="bfloat16")
    loaded = opened(args=args)
    assert loaded.tokenizer("w3").input_ids == pythia_like()("w3").input_ids
    assert loaded.origin == Origin(str(tmp_path))
    assert loaded.model.dtype == torch.bfloat16 and not loaded.model.training


def test_a_model_of_the_hub_is_loaded_and_recorded_at_one_commit(hub, tmp_path):
    language_model().save_pretrained(tmp_path)
    pythia_like().save_pretrained(tmp_path)
    HfApi().create_repo("tester/lm")
    first = HfApi().upload_folder(repo_id="tester/lm", folder_path=tmp_path).oid
    later = HfApi().upload_file(path_or_fileobj=b"later", path_in_repo="notes.txt", repo_id="tester/lm").oid
    for revision, commit in ((None, later), ("main", later), (first, first)):
        args = arguments("unused", model_revision=revision)
        loaded = opened("tester/lm", args=args)
        assert loaded.origin == Origin("tester/lm", commit)


def test_a_run_without_a_model_is_refused():
    with pytest.raises(ValueError, match="no language model: give model_name_or_path"):
        opened()


@pytest.fixture(scope="module")
def llama_folder(tmp_path_factory):
    return models_on_disk.save(models_on_disk.llama(), tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def adapter_folder(tmp_path_factory, llama_folder):
    return models_on_disk.save_adapter(tmp_path_factory.mktemp("adapter"), llama_folder)


@pytest.fixture
def adapted(llama_folder, adapter_folder):
    return PeftModel.from_pretrained(hf.AutoModelForCausalLM.from_pretrained(llama_folder), adapter_folder)


def test_an_adapter_by_name_is_recorded_with_its_base_model(llama_folder, adapter_folder):
    loaded = opened(str(adapter_folder))
    assert loaded.origin == Origin(str(llama_folder), adapter=str(adapter_folder))
    assert isinstance(loaded.model, hf.LlamaForCausalLM) and loaded.tokenizer is not None
    assert any("lora_A" in name for name, _ in loaded.model.named_parameters())


def test_an_adapter_in_a_model_object_is_recorded_where_it_is_named(adapted, llama_folder, adapter_folder, caplog):
    loaded = opened(adapted, args=arguments("unused", model_name_or_path=str(adapter_folder)))
    assert loaded.model is adapted.get_base_model()
    assert loaded.origin == Origin(str(llama_folder), adapter=str(adapter_folder)) and not caplog.records


@pytest.mark.parametrize("named", [False, True])
def test_an_adapter_that_nobody_can_find_again_is_not_passed_over(adapted, llama_folder, caplog, named):
    """To record the base model alone would have its SAE used with another model than it was trained on."""
    args = arguments("unused", model_name_or_path=str(llama_folder)) if named else None
    with caplog.at_level(logging.WARNING):
        loaded = opened(adapted, args=args)
    assert loaded.origin is None and "Save it (model.save_pretrained('my-adapter'))" in caplog.text
    assert loaded.tokenizer is not None


def test_a_merged_adapter_is_no_adapter(adapted, llama_folder, caplog):
    assert opened(adapted.merge_and_unload()).origin == Origin(str(llama_folder)) and not caplog.records


@pytest.mark.parametrize("kind", [PromptTuningConfig, PrefixTuningConfig])
def test_a_learnt_prompt_is_entered_by_peft_alone(llama_folder, tmp_path, kind):
    learnt = kind(num_virtual_tokens=3, task_type="CAUSAL_LM")
    folder = models_on_disk.save_adapter(tmp_path, llama_folder, learnt)
    assert isinstance(opened(str(folder)).model, PeftModel)


def test_wrappers_are_taken_off(llama_folder):
    model = hf.AutoModelForCausalLM.from_pretrained(llama_folder)
    assert opened(torch.compile(model, backend="eager")).model is model
    with pytest.raises(ValueError, match=r"model\.module"):
        opened(torch.nn.DataParallel(model))
    with pytest.raises(TypeError, match="expected a Hugging Face language model"):
        opened(torch.nn.Linear(2, 2))


def test_what_from_pretrained_is_given_is_recorded(llama_folder):
    given = {"quantization_config": {"quant_method": "quanto", "weights": "int8"}, "attn_implementation": "eager"}
    loaded = opened(str(llama_folder), args=arguments("unused", model_kwargs=given))
    assert loaded.origin == Origin(str(llama_folder), kwargs=given)
    assert type(loaded.model.model.layers[0].mlp.up_proj).__name__ == "QLinear"
    assert loaded.model.config._attn_implementation == "eager"


def test_a_model_that_was_quantised_after_loading_is_not_named(llama_folder, caplog):
    tools = pytest.importorskip("optimum.quanto")
    model = hf.AutoModelForCausalLM.from_pretrained(llama_folder)
    tools.quantize(model, weights=tools.qint8)
    tools.freeze(model)
    with caplog.at_level("WARNING"):
        loaded = opened(model)
    assert loaded.origin is None and "was quantised after it was loaded" in caplog.text
    assert loaded.tokenizer is not None


def test_the_quantisation_of_a_model_object_is_recorded(llama_folder):
    config = QuantoConfig(weights="int8")
    model = hf.AutoModelForCausalLM.from_pretrained(llama_folder, quantization_config=config)
    assert opened(model).origin == Origin(str(llama_folder), kwargs={"quantization_config": config.to_dict()})


def test_a_device_map_counts_the_devices_of_its_own_process():
    own = [torch.device("cuda", 1), torch.device("cuda", 5)]
    given = {"transformer.h.0": 0, "transformer.h.1": "cuda:1", "transformer.ln_f": "1", "lm_head": "cpu", "x": "disk"}
    placed = _on_own(given, own)["device_map"]
    assert placed == {
        "transformer.h.0": 1,
        "transformer.h.1": "cuda:5",
        "transformer.ln_f": 5,
        "lm_head": "cpu",
        "x": "disk",
    }
    with pytest.raises(ValueError, match="names device 2, but this process has 2, numbered from 0"):
        _on_own({"lm_head": 2}, own)
    assert _on_own("auto", [torch.device("cpu")]) == {"device_map": "auto"}
