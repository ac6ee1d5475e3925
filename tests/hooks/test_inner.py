"""The model inside of wrappers, real ones where torch, peft or accelerate make them."""

import copy
import warnings
from importlib.metadata import version

import pytest
import torch
from accelerate import Accelerator
from peft import IA3Config, LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from torch import nn
from torch.distributed import destroy_process_group, init_process_group
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel
from transformers import PreTrainedModel

from hfsae.hooks import inner_model
from tests.hooks.families import build

ADAPTERS = {
    "lora": LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"),
    "ia3": IA3Config(target_modules=["k_proj"], feedforward_modules=[], task_type="CAUSAL_LM"),
    "prefix": PrefixTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"),
    "prompt": PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"),
}


@pytest.fixture
def model() -> PreTrainedModel:
    return copy.deepcopy(build("llama"))  # adapters change it


def test_a_hugging_face_model_is_itself(model):
    assert inner_model(model) is model
    assert inner_model(model.model) is model.model


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_peft_model(model, adapter):
    assert inner_model(get_peft_model(model, ADAPTERS[adapter])) is model


def test_a_compiled_model_and_a_wrapper_in_a_wrapper(model):
    assert inner_model(torch.compile(model, backend="eager")) is model
    assert inner_model(torch.compile(get_peft_model(model, ADAPTERS["lora"]), backend="eager")) is model


def test_what_accelerate_prepared(model):
    assert inner_model(Accelerator(cpu=True).prepare(model)) is model


def test_an_averaged_model_is_the_copy_that_runs(model):
    averaged = AveragedModel(model)
    assert inner_model(averaged) is averaged.module


def test_distributed_data_parallel(model, tmp_path):
    init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        assert inner_model(DistributedDataParallel(model)) is model
    finally:
        destroy_process_group()


class Envoy:
    """As nnsight 0.8 wraps a model: its `_module`, and its parts under their own names."""

    def __init__(self, module: nn.Module, **parts: "Envoy"):
        self._module = module
        self.__dict__ |= parts


def test_the_outermost_model_is_taken_where_its_parts_are_reached_too(model):
    assert inner_model(Envoy(model, model=Envoy(model.model))) is model


def test_a_wrapper_that_has_not_loaded_its_weights_is_refused(model):
    waiting = Envoy(model)
    waiting.dispatched = False
    with pytest.raises(ValueError, match=r"call its dispatch\(\) first"):
        inner_model(waiting)


def test_data_parallel_is_refused_with_the_way_out(model):
    with pytest.raises(ValueError, match=r"pass the model inside, model\.module"):
        inner_model(nn.DataParallel(model))


@pytest.mark.parametrize("adapter", ["lora", "prefix", "prompt"])
def test_a_release_of_peft_that_generates_without_what_was_learnt_is_told_of(model, adapter):
    adapted = get_peft_model(model, ADAPTERS[adapter]).eval()
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=3, generator=torch.Generator().manual_seed(0))
        by_hand = torch.tensor([[5, 9, 13, 7]])
        generated = adapted.generate(input_ids=by_hand, max_new_tokens=8, min_new_tokens=8, do_sample=False)
        for _ in range(8):
            logits = adapted(input_ids=by_hand, use_cache=False).logits[:, -1:]
            logits[..., model.generation_config.eos_token_id] = -torch.inf
            by_hand = torch.cat([by_hand, logits.argmax(-1)], dim=1)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert inner_model(adapted) is model
    told = [str(warning.message) for warning in told if "does not know the cache" in str(warning.message)]
    assert bool(told) is not torch.equal(generated, by_hand)
    if told:
        assert f"peft {version('peft')}" in told[0] and f"transformers {version('transformers')}" in told[0]


class Circle(nn.Module):
    def __init__(self):
        super().__init__()
        self.__dict__["model"] = self


@pytest.mark.parametrize("stranger", [nn.Linear(2, 2), Circle(), "gpt2", None, PreTrainedModel])
def test_anything_else_is_refused(stranger):
    with pytest.raises(TypeError, match=r"expected a Hugging Face language model .*there is none inside"):
        inner_model(stranger)
