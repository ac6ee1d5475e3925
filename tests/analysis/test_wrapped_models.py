"""Steering, ablation and splices around wrappers of a language model, whose `generate` goes round their `forward`."""

import copy

import pytest
import torch
import transformers
from packaging.version import Version
from peft import IA3Config, LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from torch import Tensor, nn

from hfsae.analysis import ablate, steer
from hfsae.attachment import attach
from hfsae.hooks import HookPointError
from tests.analysis.test_interventions import STRENGTHS, added, clamped, from_column, sae_at
from tests.analysis.test_positions import cache_name, cache_of
from tests.hooks.families import build, input_ids
from tests.hooks.witness import replaced

PLACE, LENGTH, STEPS, VIRTUAL = "model.layers.0.output", 6, 4, 3
FIRST_COLUMN = {"all": 1, "last": LENGTH - 1, "generated": LENGTH}
ADAPTERS = {
    "lora": LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False),
    "ia3": IA3Config(target_modules=["k_proj"], feedforward_modules=[], task_type="CAUSAL_LM", init_ia3_weights=False),
    "prefix": PrefixTuningConfig(num_virtual_tokens=VIRTUAL, task_type="CAUSAL_LM"),
    "prompt": PromptTuningConfig(num_virtual_tokens=VIRTUAL, task_type="CAUSAL_LM"),
}
# peft 0.21.2 passes its virtual tokens under the old name of the cache, which transformers 5.24.0 renamed.
GENERATES_RIGHT = ["lora", "ia3"]
if Version(transformers.__version__) < Version("5.24"):
    GENERATES_RIGHT += ["prefix", "prompt"]


def adapted(adapter: str):
    torch.manual_seed(0)
    return get_peft_model(copy.deepcopy(build("llama")), ADAPTERS[adapter]).eval()


@torch.no_grad()
def longhand(model, ids: Tensor, change) -> Tensor:
    """The logits of each new token, every one from the whole text read anew."""
    logits = []
    with replaced(model.get_base_model(), PLACE, change):
        for _ in range(STEPS):
            logits.append(model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, -1])
            ids = torch.cat([ids, logits[-1].argmax(-1, keepdim=True)], 1)
    return torch.stack(logits, 1)


def generated(model, ids: Tensor, **options) -> Tensor:
    settings = {"max_new_tokens": STEPS, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    settings |= {"output_logits": True, "return_dict_in_generate": True}
    return torch.stack(model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **settings).logits, 1)


@pytest.mark.parametrize("positions", FIRST_COLUMN)
@pytest.mark.parametrize("adapter", GENERATES_RIGHT)
def test_a_peft_model_is_steered_and_ablated_in_generate(adapter, positions):
    model, sae, ids = adapted(adapter), sae_at(PLACE), input_ids(2, LENGTH)
    first = FIRST_COLUMN[positions] + (VIRTUAL if adapter == "prompt" else 0)
    features = dict.fromkeys(range(40), 0.0)
    expected = longhand(model, ids, from_column(first, added(sae)))
    without = longhand(model, ids, from_column(first, clamped(sae, features)))
    with steer(model, sae, STRENGTHS, positions=positions):
        torch.testing.assert_close(generated(model, ids), expected, rtol=0, atol=1e-4)
    with ablate(model, sae, list(features), positions=positions):
        torch.testing.assert_close(generated(model, ids), without, rtol=0, atol=1e-4)
    assert (expected - longhand(model, ids, lambda x: x)).abs().max() > 1e-2


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_peft_model_is_spliced_when_it_is_called(adapter):
    model, sae, ids = adapted(adapter), sae_at(PLACE), input_ids(2, LENGTH)
    first = 1 + (VIRTUAL if adapter == "prompt" else 0)

    def reconstructed(x: Tensor) -> Tensor:
        return torch.cat([x[:, :first], sae(x[:, first:]).reconstruction], 1)

    with torch.no_grad(), replaced(model.get_base_model(), PLACE, reconstructed):
        expected = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    with torch.no_grad(), attach(model, sae, splice=True):
        torch.testing.assert_close(model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits, expected)


def test_special_tokens_are_told_behind_virtual_ones():
    model, ids = adapted("prompt"), input_ids(2, LENGTH).clone()
    ids[0, 3] = 1  # BOS
    sae = sae_at(PLACE)
    sae.config.exclude_special_tokens = True
    with torch.no_grad(), attach(model, sae) as run:
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
    assert run.keep.long().tolist() == [[0, 0, 0, 0, 1, 1, 0, 1, 1], [0, 0, 0, 0, 1, 1, 1, 1, 1]]


def test_data_parallel_and_what_is_no_language_model_are_refused_in_one_sentence():
    sae = sae_at(PLACE)
    with pytest.raises(ValueError, match=r"model\.module"), attach(nn.DataParallel(build("llama")), sae):
        pass
    with pytest.raises(TypeError, match="expected a Hugging Face language model"), attach(nn.Linear(2, 2), sae):
        pass


def test_continuous_batching_runs_in_another_thread_and_is_refused():
    model = copy.deepcopy(build("llama"))
    with attach(model, sae_at(PLACE), splice=True):
        with pytest.raises(HookPointError, match="thread of its own"):
            model.generate_batch([[3, 4, 5]], max_new_tokens=2)
    assert "generate" not in vars(model) and "init_continuous_batching" not in vars(model)


class GeneratesByItself(nn.Module):
    """A wrapper that never calls its model's `generate`, as TransformerLens' bridge."""

    def __init__(self, model):
        super().__init__()
        self.original_model = model

    @torch.no_grad()
    def generate(self, ids: Tensor, use_cache: bool) -> Tensor:
        output = self.original_model(ids, use_cache=use_cache)
        for _ in range(STEPS):
            ids = torch.cat([ids, output.logits[:, -1:].argmax(-1)], 1)
            if use_cache:
                inputs = {"input_ids": ids[:, -1:], cache_name(self.original_model): cache_of(output)}
            else:
                inputs = {"input_ids": ids}
            output = self.original_model(**inputs, use_cache=use_cache)
        return ids[:, -STEPS:]


@pytest.mark.parametrize("positions", FIRST_COLUMN)
@pytest.mark.parametrize("use_cache", [True, False])
def test_the_prompt_of_a_wrapper_that_generates_by_itself_is_what_it_reads_first(positions, use_cache):
    model = build("llama")
    wrapper, sae, ids = GeneratesByItself(model), sae_at(), input_ids(2, LENGTH)
    expected = ids
    with torch.no_grad(), replaced(model, PLACE, from_column(FIRST_COLUMN[positions], added(sae))):
        for _ in range(STEPS):
            token = model(expected, use_cache=False).logits[:, -1:].argmax(-1)
            expected = torch.cat([expected, token], 1)
    with steer(wrapper, sae, STRENGTHS, positions=positions):
        for _ in range(2):
            assert torch.equal(wrapper.generate(ids, use_cache), expected[:, LENGTH:])
    assert "generate" not in vars(wrapper)
