"""Loading the language model and the tokenizer that an SAE's config names."""

import copy

import pytest
import torch
from huggingface_hub import HfApi
from transformers import PreTrainedModel

from hfsae import SAE, TopKSAEConfig
from hfsae.language_model import load_base_model, load_tokenizer
from tests.data.tiny import llama_like
from tests.hooks.families import build


def sae_at(hook_point: str, **fields) -> SAE:
    return SAE.from_config(TopKSAEConfig(d_in=16, n_features=48, k=6, hook_point=hook_point, **fields)).eval()


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return build("llama")


@pytest.fixture
def sae() -> SAE:
    return sae_at("model.layers.0.output")


def test_without_a_base_model_the_error_says_what_to_do(sae):
    for load in (load_base_model, load_tokenizer):
        with pytest.raises(ValueError, match=r"sae\.attach\(model\)"):
            load(sae.config)


def test_a_folder_that_is_gone_is_named(tmp_path):
    config = sae_at("model.layers.0.output", base_model=str(tmp_path / "gone")).config
    with pytest.raises(FileNotFoundError, match="gone"):
        load_base_model(config)


def test_a_model_the_hub_does_not_have_is_named(hub):
    config = sae_at("model.layers.0.output", base_model="tester/nothing", base_model_revision="a" * 40).config
    with pytest.raises(OSError, match="'tester/nothing' at a{40} could not be loaded"):
        load_base_model(config)


def test_model_and_tokenizer_come_from_a_local_folder(model, tmp_path):
    model.save_pretrained(tmp_path)
    llama_like().save_pretrained(tmp_path)
    sae = sae_at("model.layers.0.output", base_model=str(tmp_path))
    loaded = sae.load_base_model(dtype=torch.float32)
    assert not loaded.training
    assert torch.equal(loaded.get_input_embeddings().weight, model.get_input_embeddings().weight)
    assert sae.load_tokenizer().bos_token == "<s>"


def test_the_base_model_is_loaded_at_the_recorded_commit(hub, model, tmp_path):
    model.push_to_hub("tester/lm")
    then = hub_commit("tester/lm")
    copy.deepcopy(model).to(torch.bfloat16).push_to_hub("tester/lm")
    assert hub_commit("tester/lm") != then
    config = sae_at("model.layers.0.output", base_model="tester/lm", base_model_revision=then).config
    assert load_base_model(config).dtype == torch.float32
    assert load_base_model(config, revision="main").dtype == torch.bfloat16


def hub_commit(repo: str) -> str:
    sha = HfApi().model_info(repo).sha
    assert sha is not None
    return sha
