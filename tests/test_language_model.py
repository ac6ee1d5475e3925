"""Loading the language model and the tokenizer that an SAE's config names."""

import copy
import json
import shutil
from pathlib import Path

import peft
import pytest
import torch
import transformers as hf
from huggingface_hub import HfApi
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedModel
from transformers.models.mllama.configuration_mllama import MllamaTextConfig

from hfsae import SAE, CrosscoderSAEConfig, TopKSAEConfig
from hfsae.language_model import (
    Origin,
    find,
    is_quantised,
    load,
    load_base_model,
    load_tokenizer,
    record_sources,
    rename_base_model,
    tokenizer_of,
)
from hfsae.model_classes import model_class, without_weights
from tests import models_on_disk
from tests.data.tiny import language_model, llama_like, pythia_like
from tests.hooks.families import build


def sae_at(hook_point: str, **fields) -> SAE:
    return SAE.from_config(TopKSAEConfig(d_in=16, n_features=48, k=6, hook_point=hook_point, **fields)).eval()


BYTES_UNLISTED = """
from transformers import PreTrainedTokenizer

class Bytes(PreTrainedTokenizer):
    vocab_size = 256

    def get_vocab(self):
        return dict(self.added_tokens_encoder)

    def _tokenize(self, text, **kwargs):
        return [chr(byte) for byte in text.encode()]

    def _convert_token_to_id(self, token):
        return ord(token)

    def _convert_id_to_token(self, index):
        return chr(index)
"""


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return build("llama")


@pytest.fixture
def sae() -> SAE:
    return sae_at("model.layers.0.output")


def test_without_a_base_model_the_error_says_what_to_do(sae):
    for door in (load_base_model, load_tokenizer):
        with pytest.raises(ValueError, match=r"sae\.attach\(model\)"):
            door(sae.config)


def test_a_folder_that_is_gone_is_named(tmp_path):
    config = sae_at("model.layers.0.output", base_model=str(tmp_path / "gone")).config
    with pytest.raises(FileNotFoundError, match="gone"):
        load_base_model(config)


def test_a_model_the_hub_does_not_have_is_named(hub):
    config = sae_at("model.layers.0.output", base_model="tester/nothing", base_model_revision="a" * 40).config
    with pytest.raises(OSError, match="'tester/nothing' at a{40} could not be loaded"):
        load_base_model(config)


def test_a_folder_that_lacks_its_weights_is_not_called_missing(tmp_path):
    hf.GPT2Config().save_pretrained(tmp_path)
    config = sae_at("transformer.h.0.output", base_model=str(tmp_path)).config
    with pytest.raises(
        OSError, match=r"the folder lacks something \(.*model.safetensors.*\). Save the whole model there"
    ):
        load_base_model(config)


@pytest.mark.parametrize("family", ["gpt2", "qwen2", "gpt_neox", "bert", "gemma", "t5", "xlm-roberta"])
def test_a_tokenizer_that_transformers_makes_of_nothing_is_refused(family, tmp_path):
    """Of a folder without one transformers 5.23 makes one whose text becomes no tokens, or unknown ones."""
    hf.AutoConfig.for_model(family).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match="holds no tokenizer, and the one that transformers makes instead knows no word"
    ):
        tokenizer_of(find(str(tmp_path)))


def test_a_tokenizer_that_reads_bytes_and_lists_no_vocabulary_is_taken(tmp_path):
    (tmp_path / "reads_bytes.py").write_text(BYTES_UNLISTED)
    kinds = {"tokenizer_class": "Bytes", "auto_map": {"AutoTokenizer": ["reads_bytes.Bytes", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(kinds))
    hf.GPT2Config().save_pretrained(tmp_path)
    tokenizer = tokenizer_of(find(str(tmp_path), kwargs={"trust_remote_code": True}))
    assert tokenizer("az")["input_ids"] == [97, 122]


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
    newest = load_base_model(config, revision="main")
    assert newest.dtype == torch.bfloat16
    # What `self_check` compares with the recorded commit.
    assert newest.config._commit_hash == hub_commit("tester/lm") != then
    assert load_base_model(config).config._commit_hash == then
    newest.save_pretrained(tmp_path)
    assert "_commit_hash" not in (tmp_path / "config.json").read_text()


def hub_commit(repo: str) -> str:
    sha = HfApi().model_info(repo).sha
    assert sha is not None
    return sha


# -- adapters ---------------------------------------------------------------------------------------------------------
IDS = torch.tensor([[5, 900, 17, 3333, 8, 41]])


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.fixture(scope="module")
def llama_folder(tmp_path_factory):
    return models_on_disk.save(models_on_disk.llama(), tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def adapter_folder(tmp_path_factory, llama_folder):
    return models_on_disk.save_adapter(tmp_path_factory.mktemp("adapter"), llama_folder)


def merged_by_hand(base, adapter):
    """W + BA·(alpha / r) for every matrix that the adapter changes."""
    weights = hf.AutoModelForCausalLM.from_pretrained(base).state_dict()
    config = json.loads((adapter / "adapter_config.json").read_text())
    changes = peft.utils.load_peft_weights(str(adapter))
    for name in [name for name in changes if "lora_A" in name]:
        change = changes[name.replace("lora_A", "lora_B")] @ changes[name] * config["lora_alpha"] / config["r"]
        weights[name.removeprefix("base_model.model.").replace("lora_A.weight", "weight")] += change
    model = models_on_disk.llama()
    model.load_state_dict(weights)
    return model


def test_an_adapter_is_put_on_its_base_model_and_both_are_named(llama_folder, adapter_folder):
    origin = find(str(adapter_folder))
    assert origin == Origin(str(llama_folder), adapter=str(adapter_folder)) and origin.given == (
        str(adapter_folder),
        None,
    )
    loaded = logits(load(origin))
    torch.testing.assert_close(loaded, logits(merged_by_hand(llama_folder, adapter_folder)))
    assert (loaded - logits(models_on_disk.llama())).abs().max() > 0.1


def test_an_adapter_of_the_hub_is_recorded_at_its_commit_and_found_by_it(hub, llama_folder, adapter_folder, tmp_path):
    adapter = shutil.copytree(adapter_folder, tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "tester/base"}))
    (adapter / "README.md").unlink()  # names a folder as its base model, which no Hub takes
    for name, folder in (("tester/base", llama_folder), ("tester/adapter", adapter)):
        HfApi().create_repo(name)
        HfApi().upload_folder(repo_id=name, folder_path=folder)
    origin = find("tester/adapter")
    assert origin == Origin("tester/base", hub_commit("tester/base"), "tester/adapter", hub_commit("tester/adapter"))
    sae = sae_at("model.layers.0.output")
    rename_base_model(sae.config, "tester/adapter")
    (adapter / "notes.txt").write_text("later")
    HfApi().upload_folder(repo_id="tester/adapter", folder_path=adapter)
    assert sae.config.base_model_adapter_revision != hub_commit("tester/adapter")
    torch.testing.assert_close(logits(sae.load_base_model()), logits(merged_by_hand(llama_folder, adapter_folder)))
    assert len(sae.load_tokenizer()) == models_on_disk.VOCABULARY


def test_the_tokenizer_is_the_adapters_where_it_has_one(llama_folder, adapter_folder, tmp_path):
    assert "<new>" not in tokenizer_of(find(str(adapter_folder))).get_vocab()
    adapter = shutil.copytree(adapter_folder, tmp_path / "adapter")
    tokenizer = models_on_disk.tokenizer()
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(adapter)
    assert "<new>" in tokenizer_of(find(str(adapter))).get_vocab()


def test_an_adapter_whose_base_model_is_gone_says_so(adapter_folder, tmp_path):
    adapter = shutil.copytree(adapter_folder, tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    gone = str(tmp_path / "gone")
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": gone}))
    with pytest.raises(FileNotFoundError, match="gone, which is not there"):
        load(find(str(adapter)))
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": None}))
    with pytest.raises(ValueError, match="does not say which language model it belongs to"):
        find(str(adapter))


# -- which class loads a model ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (hf.LlamaConfig(), "AutoModelForCausalLM"),
        (hf.BartConfig(), "AutoModelForCausalLM"),
        (hf.BartConfig(architectures=["BartForConditionalGeneration"]), "AutoModelForCausalLM"),
        (hf.BertConfig(architectures=["BertForMaskedLM"]), "AutoModelForMaskedLM"),
        (hf.BertConfig(architectures=["BertForPreTraining"]), "AutoModelForMaskedLM"),
        (hf.BertConfig(architectures=["BertLMHeadModel"]), "AutoModelForCausalLM"),
        (hf.RobertaConfig(is_decoder=True), "AutoModelForCausalLM"),
        (hf.EsmConfig(vocab_size=33), "AutoModelForMaskedLM"),
        (hf.LlavaConfig(), "AutoModelForImageTextToText"),
        (hf.Qwen2AudioConfig(), "AutoModelForMultimodalLM"),
        # transformers 5.4 has the class only where it is defined.
        (MllamaTextConfig(architectures=["MllamaForCausalLM"]), "MllamaForCausalLM"),
    ],
)
def test_the_class_that_loads_a_model_fits_its_config(config, expected):
    assert model_class(config).__name__ == expected


def test_a_config_without_a_language_model_is_refused_in_one_sentence():
    with pytest.raises(ValueError, match=r"no language model for the config of type 'mllama_text_model' .*none named"):
        model_class(hf.MllamaTextConfig())


def test_a_multimodal_model_is_loaded_by_name_and_without_weights(tmp_path):
    folder = models_on_disk.save(models_on_disk.llava(), tmp_path)
    loaded = load(find(str(folder)))
    assert torch.equal(logits(loaded), logits(models_on_disk.llava()))
    names = dict(without_weights(loaded.config).named_modules()).keys()
    assert names == dict(loaded.named_modules()).keys()


# -- what from_pretrained is given ------------------------------------------------------------------------------------
def test_a_gguf_file_computes_what_its_weights_say_and_has_its_tokenizer(tmp_path):
    folder = models_on_disk.save_gguf(tmp_path / "lm")
    origin = find(str(folder))
    assert origin == Origin(str(folder), kwargs={"gguf_file": "model.gguf"})
    assert torch.equal(logits(load(origin)), logits(models_on_disk.llama()))
    text = "def main(argument): return argument + 1"  # split alike by GPT-2's rule, which GGUF files know, and by ours
    assert tokenizer_of(origin)(text).input_ids == models_on_disk.tokenizer()(text).input_ids


def test_a_gguf_file_among_several_has_to_be_chosen(tmp_path):
    models_on_disk.save_gguf(tmp_path, "a.gguf")
    shutil.copy(tmp_path / "a.gguf", tmp_path / "b.gguf")
    with pytest.raises(ValueError, match="holds 2 GGUF files: choose one with model_kwargs={'gguf_file': 'a.gguf'}"):
        find(str(tmp_path))
    assert find(str(tmp_path), kwargs={"gguf_file": "b.gguf"}).kwargs == {"gguf_file": "b.gguf"}
    with pytest.raises(ValueError, match="is a file: give its folder .*, and model_kwargs={'gguf_file': 'b.gguf'}"):
        find(str(tmp_path / "b.gguf"))


def test_what_changes_activations_is_recorded_and_repeated(llama_folder):
    quantised = {"quantization_config": {"quant_method": "quanto", "weights": "int8"}}
    sae = sae_at("model.layers.0.output", base_model=str(llama_folder), base_model_kwargs=quantised)
    loaded = sae.load_base_model()
    assert type(loaded.model.layers[0].mlp.up_proj).__name__ == "QLinear"
    difference = (logits(loaded) - logits(models_on_disk.llama())).abs().max()
    assert 0 < difference < 1
    eager = sae_at("model.layers.0.output", base_model=str(llama_folder))
    eager.config.base_model_kwargs = {"attn_implementation": "eager"}
    assert eager.load_base_model().config._attn_implementation == "eager"
    assert eager.load_base_model(attn_implementation="sdpa").config._attn_implementation == "sdpa"


def test_weights_that_are_stored_quantised_are_known(llama_folder, tmp_path):
    assert not is_quantised(Origin(str(llama_folder)))
    stored = shutil.copytree(llama_folder, tmp_path / "lm") / "config.json"
    config = json.loads(stored.read_text())
    stored.write_text(json.dumps(config | {"quantization_config": {"quant_method": "mxfp4"}}))
    assert is_quantised(Origin(str(tmp_path / "lm"))) and not is_quantised(Origin(str(tmp_path / "gone")))


def test_a_config_cannot_ask_for_code_or_for_files_elsewhere(llama_folder):
    for unsafe in (
        {"trust_remote_code": True},
        {"use_safetensors": False},
        {"attn_implementation": "somebody/kernel"},
        {"experts_implementation": "somebody/kernel:other"},
        {"gguf_file": "../model.gguf"},
    ):
        sae = sae_at("model.layers.0.output", base_model=str(llama_folder), base_model_kwargs=unsafe)
        with pytest.raises(ValueError, match=f"the SAE's config asks for {next(iter(unsafe))}="):
            sae.load_base_model()
        with pytest.raises(ValueError, match="the SAE's config asks for"):
            sae.load_tokenizer()


# -- several models -----------------------------------------------------------------------------------------------
@pytest.fixture
def two_folders(tmp_path) -> dict[str, Path]:
    """Two models of one tokenizer, which differ in their weights."""
    folders = {"base": tmp_path / "base", "tuned": tmp_path / "tuned"}
    for shift, folder in enumerate(folders.values()):
        lm = language_model()
        with torch.no_grad():
            lm.transformer.wte.weight.add_(shift)
        lm.save_pretrained(folder)
        pythia_like().save_pretrained(folder)
    return folders


def crosscoder_of(folders: dict[str, Path]) -> SAE:
    sizes = {"source_names": list(folders), "source_widths": [16] * len(folders), "n_features": 40}
    config = CrosscoderSAEConfig(**sizes, hook_point="transformer.h.1.output")
    record_sources([find(str(folder)) for folder in folders.values()], config)
    return SAE.from_config(config)


def test_a_crosscoder_of_two_models_loads_the_one_that_is_named_or_both_side_by_side(two_folders, tmp_path):
    crosscoder_of(two_folders).save_pretrained(tmp_path / "sae")
    sae = SAE.from_pretrained(tmp_path / "sae")
    base, tuned = (sae.load_base_model(source) for source in two_folders)
    assert torch.equal(base.transformer.wte.weight + 1, tuned.transformer.wte.weight)
    both = sae.load_base_model()
    assert list(both.models) == ["base", "tuned"]
    assert torch.equal(both.models["tuned"].transformer.wte.weight, tuned.transformer.wte.weight)
    assert sae.load_tokenizer()("w3")["input_ids"] == [4]
    assert torch.equal(sae.source("tuned").load_base_model().transformer.wte.weight, tuned.transformer.wte.weight)


def test_a_source_that_there_is_not_and_too_few_new_names_are_refused(two_folders, sae):
    crosscoder = crosscoder_of(two_folders)
    with pytest.raises(ValueError, match="no source 'tund'; it has base, tuned. Did you mean 'tuned'"):
        crosscoder.load_base_model("tund")
    with pytest.raises(ValueError, match="it reads one place of one model"):
        sae.load_base_model("tuned")
    with pytest.raises(ValueError, match="each of base, tuned; name as many"):
        rename_base_model(crosscoder.config, str(two_folders["base"]))
    rename_base_model(crosscoder.config, f"{two_folders['tuned']}, {two_folders['base']}")
    assert crosscoder.config.models_by_source["tuned"]["base_model"] == str(two_folders["base"])
    assert crosscoder.config.base_model == str(two_folders["tuned"])


def test_models_of_another_number_than_sources_and_unknown_fields_of_them_are_refused():
    sizes = {"source_names": ["base", "tuned"], "source_widths": [16, 16], "n_features": 40}
    with pytest.raises(StrictDataclassError, match="one language model for each"):
        CrosscoderSAEConfig(**sizes, source_models=[{"base_model": "a/b"}])
    with pytest.raises(StrictDataclassError, match="'name', which is none of"):
        CrosscoderSAEConfig(**sizes, source_models=[{"name": "a/b"}, {}])
