import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import init_empty_weights, load_checkpoint_and_dispatch
from huggingface_hub import HfApi
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, GPT2Config, GPT2Model

from hfsae import SAE, JumpReLUSAE, StandardSAE, StandardSAEConfig, TopKSAE, TopKSAEConfig
from hfsae.architectures import config_class_of
from hfsae.loading import load_config
from tests.architectures.variants import ARCHITECTURES, VARIANTS, activations
from tests.hub_server import HubServer


@pytest.fixture
def sae() -> SAE:
    return VARIANTS["topk"].make(dtype=torch.float32)


@pytest.fixture
def folder(sae: SAE, tmp_path: Path) -> Path:
    sae.save_pretrained(tmp_path / "sae")
    return tmp_path / "sae"


@pytest.fixture
def gpt2(tmp_path: Path) -> Path:
    config = GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=16, bos_token_id=0, eos_token_id=0)
    GPT2Model(config).save_pretrained(tmp_path / "gpt2")
    return tmp_path / "gpt2"


def rewrite_config(folder: Path, **fields) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def assert_equal(loaded: SAE, sae: SAE) -> None:
    assert type(loaded) is type(sae)
    torch.testing.assert_close(loaded.state_dict(), sae.state_dict(), rtol=0, atol=0)


def test_a_field_beside_a_config_that_says_it_is_refused(folder):
    config = load_config(folder)
    assert SAE.from_pretrained(folder, config=config, dtype=torch.float32).config.k == config.k
    with pytest.raises(ValueError, match="k cannot be given beside config="):
        SAE.from_pretrained(folder, config=config, k=2)


# -- what works -------------------------------------------------------------------------------------------------------
def test_the_base_class_returns_the_class_that_the_config_names(sae: SAE, folder: Path):
    loaded = SAE.from_pretrained(folder)
    assert type(loaded) is TopKSAE and not loaded.training
    assert_equal(loaded, sae)
    assert_equal(SAE.from_pretrained(str(folder)), sae)


def test_a_subfolder_holds_one_of_many(tmp_path: Path):
    for name in ARCHITECTURES:
        VARIANTS[name].make(dtype=torch.float32).save_pretrained(tmp_path / "saes" / name)
    for name in ARCHITECTURES:
        assert_equal(SAE.from_pretrained(tmp_path, subfolder=f"saes/{name}"), VARIANTS[name].make(dtype=torch.float32))


def test_a_sharded_save_loads_as_one(sae: SAE, tmp_path: Path):
    sae.save_pretrained(tmp_path, max_shard_size="1KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1 and (tmp_path / "model.safetensors.index.json").exists()
    assert_equal(SAE.from_pretrained(tmp_path), sae)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, "bfloat16"])
def test_another_dtype_is_for_weights_and_never_for_scales_and_thresholds(name: str, dtype, tmp_path: Path):
    sae = VARIANTS[name].make(dtype=torch.float32)
    sae.save_pretrained(tmp_path)
    loaded = SAE.from_pretrained(tmp_path, dtype=dtype)
    assert loaded.W_dec.dtype == (torch.bfloat16 if dtype == "bfloat16" else dtype)
    torch.testing.assert_close(loaded.W_dec.float(), sae.W_dec, rtol=0.01, atol=0.01)
    assert torch.equal(loaded.input_scale, sae.input_scale) and loaded.input_scale.dtype == torch.float32
    if hasattr(sae, "threshold"):
        assert torch.equal(loaded.threshold, sae.threshold) and loaded.threshold.dtype == torch.float32


def test_a_bfloat16_file_loads_as_what_it_is_or_as_what_is_asked_for(sae: SAE, tmp_path: Path):
    sae.bfloat16().save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert stored["W_dec"].dtype == torch.bfloat16 and stored["input_scale"].dtype == torch.float32
    assert SAE.from_pretrained(tmp_path).W_dec.dtype == torch.bfloat16
    wide = SAE.from_pretrained(tmp_path, dtype=torch.float32)
    assert wide.W_dec.dtype == torch.float32 and torch.equal(wide.W_dec, sae.W_dec.float())


@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}])
def test_device_maps(sae: SAE, folder: Path, device_map):
    assert_equal(SAE.from_pretrained(folder, device_map=device_map), sae)


def test_an_sae_that_would_lie_on_a_disk_is_refused(folder: Path, tmp_path: Path):
    """It was loaded, and its first use ended in torch's word about meta tensors."""
    with pytest.raises(ValueError, match="device_map puts .* on disk, and an SAE lies on one device"):
        SAE.from_pretrained(folder, device_map={"": "disk"}, offload_folder=tmp_path / "offload")


@pytest.mark.parametrize("config", [{"k": 2}, "folder"])
def test_what_is_no_config_is_refused_in_its_place(folder: Path, config):
    with pytest.raises(TypeError, match="config= takes an SAEConfig, got .*: load one with AutoConfig"):
        SAE.from_pretrained(folder, config=config)


@pytest.mark.parametrize("name", [*ARCHITECTURES, "cross_layer_transcoder"])
def test_weights_go_into_an_empty_model_of_accelerate(name: str, tmp_path: Path):
    """It ended in an error: the encoder took memory, and was to be made from a decoder that had none."""
    if name in VARIANTS:
        sae = VARIANTS[name].make(dtype=torch.float32)
    else:
        both = {"source_names": ["a", "b"], "source_widths": [3, 3]}
        sae = SAE.from_config(config_class_of(name)(d_in=6, n_features=24, k=3, subtract_b_dec=False, **both))
    sae.save_pretrained(tmp_path)
    with init_empty_weights():
        empty: Any = type(sae)(sae.config)
    assert all(parameter.is_meta for parameter in empty.parameters())
    filled: Any = load_checkpoint_and_dispatch(empty, str(tmp_path / "model.safetensors"), device_map={"": "cpu"})
    assert_equal(filled, sae)


def test_loading_info_is_returned_on_request(sae: SAE, folder: Path):
    loaded, info = SAE.from_pretrained(folder, output_loading_info=True)
    assert_equal(loaded, sae)
    assert not any(info.values())


def test_config_fields_can_be_overridden(folder: Path):
    loaded = SAE.from_pretrained(folder, k=2, hook_point="transformer.h.3.output")
    assert (loaded.config.k, loaded.config.hook_point) == (2, "transformer.h.3.output")
    assert (loaded.encode(activations(9)) != 0).sum(1).max() == 2


def test_a_config_can_be_given(sae: SAE, folder: Path):
    config = TopKSAEConfig.from_pretrained(folder, k=1)
    assert SAE.from_pretrained(folder, config=config).config.k == 1


def test_auto_classes_load_as_strictly(sae: SAE, folder: Path):
    assert_equal(AutoModel.from_pretrained(folder), sae)
    rewrite_config(folder, n_features=12)
    with pytest.raises(ValueError, match="W_dec"):
        AutoModel.from_pretrained(folder)


def test_from_config_picks_the_class(sae: SAE):
    assert type(SAE.from_config(sae.config)) is type(TopKSAE.from_config(sae.config)) is TopKSAE
    assert SAE.from_config(sae.config, dtype=torch.bfloat16).W_dec.dtype == torch.bfloat16
    assert SAE.from_config(sae.config, dtype=torch.bfloat16).input_scale.dtype == torch.float32


def test_a_key_of_a_newer_version_survives_the_model_too(folder: Path, tmp_path: Path):
    rewrite_config(folder, from_the_future=[1])
    SAE.from_pretrained(folder).save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["from_the_future"] == [1]


def test_loaded_weights_do_not_depend_on_the_file_any_more(sae: SAE, folder: Path):
    """They were mapped from it; those that lay askew there were copied, as a product may round differently there."""
    loaded = SAE.from_pretrained(folder)
    assert all(tensor.data_ptr() % 64 == 0 for tensor in loaded.state_dict().values())
    shutil.rmtree(folder)
    assert_equal(loaded, sae)


def test_the_config_alone_can_be_loaded_without_any_weights(folder: Path):
    (folder / "model.safetensors").unlink()
    assert type(load_config(folder)) is TopKSAEConfig


# -- what is refused, and how it is said ------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda t: {n: v for n, v in t.items() if n != "W_dec"}, "missing: W_dec"),
        (lambda t: {n: v for n, v in t.items() if n != "input_scale"}, "missing: input_scale"),
        (lambda t: {**t, "threshold": torch.zeros(24)}, "unexpected: threshold"),
        (
            lambda t: {**t, "b_dec": torch.zeros(5), "encoder.bias": torch.zeros(7)},
            r"of the wrong size: b_dec \(stored \(5,\), expected \(6,\)\), encoder.bias \(stored \(7,\), exp",
        ),
        (
            lambda t: {**{n: v for n, v in t.items() if n != "b_dec"}, "b_decoder": t["b_dec"]},
            "missing: b_dec; unexpected: b_decoder",
        ),
    ],
    ids=["missing weight", "missing scale", "unexpected", "wrong size", "renamed"],
)
def test_weights_that_do_not_match_are_named(folder: Path, edit, message: str):
    path = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    save_file(edit(tensors), path, metadata={"format": "pt"})
    (folder / "SHA256SUMS").unlink()
    with pytest.raises(ValueError, match=message):
        SAE.from_pretrained(folder)


def test_a_missing_threshold_is_not_made_up(folder: Path):
    """A TopK file under a JumpReLU config: the library alone would warn and go on with thresholds of its own."""
    rewrite_config(folder, model_type="hfsae_jumprelu")
    with pytest.raises(ValueError, match="missing: threshold"):
        SAE.from_pretrained(folder)


@pytest.mark.parametrize("cls", [StandardSAE, JumpReLUSAE])
def test_another_class_is_refused_with_the_name_of_the_right_one(folder: Path, cls: type[SAE]):
    with pytest.raises(ValueError, match=f"TopKSAE: use TopKSAE or SAE, not {cls.__name__}"):
        cls.from_pretrained(folder)
    with pytest.raises(ValueError, match=f"TopKSAE: use TopKSAE or SAE, not {cls.__name__}"):
        cls.from_config(load_config(folder))


def test_a_class_given_the_config_of_another_says_so():
    with pytest.raises(TypeError, match="TopKSAE needs a TopKSAEConfig, got a StandardSAEConfig"):
        TopKSAE(StandardSAEConfig(d_in=4, n_features=8))


def test_another_kind_of_model_is_refused(gpt2: Path):
    with pytest.raises(ValueError, match="holds a 'gpt2' model, not a sparse autoencoder"):
        SAE.from_pretrained(gpt2)
    with pytest.raises(ValueError, match="holds a 'gpt2' model, not a sparse autoencoder"):
        SAE.from_pretrained(gpt2, config=AutoConfig.from_pretrained(gpt2))


@pytest.mark.parametrize("model_type", ["hfsae_of_tomorrow", "hfsae"])
def test_an_architecture_this_version_does_not_know_asks_for_an_upgrade_of_hfsae(folder: Path, model_type: str):
    rewrite_config(folder, model_type=model_type)
    with pytest.raises(ValueError, match="'.*', which this version of hfsae does not know. Upgrade hfsae"):
        SAE.from_pretrained(folder)


def test_an_unknown_model_of_somebody_else_is_not_blamed_on_this_version(folder: Path, tmp_path: Path):
    renamed = folder.rename(tmp_path / "hfsae_runs")
    rewrite_config(renamed, model_type="somebody_elses")
    with pytest.raises(ValueError, match="somebody_elses") as caught:
        SAE.from_pretrained(renamed)
    assert "Upgrade hfsae" not in str(caught.value)


def test_pickled_weights_are_never_read(sae: SAE, folder: Path):
    (folder / "model.safetensors").unlink()
    torch.save(sae.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(OSError, match="model.safetensors"):
        SAE.from_pretrained(folder)
    with pytest.raises(ValueError, match="pickled weights can run code"):
        SAE.from_pretrained(folder, use_safetensors=False)


@pytest.mark.parametrize(
    "overrides, error, message",
    [
        ({"k": 25}, StrictDataclassError, "k must be between 1 and n_features=24, got 25"),
        ({"k": "4"}, StrictDataclassError, "expected int, got str"),
        ({"n_features": 12}, ValueError, "of the wrong size: W_dec"),
        ({"kk": 2}, TypeError, "kk"),
    ],
)
def test_overrides_that_cannot_be_are_errors(folder: Path, overrides: dict, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        SAE.from_pretrained(folder, **overrides)


def test_a_broken_config_is_an_error_before_weights_are_looked_for(folder: Path):
    (folder / "model.safetensors").unlink()
    rewrite_config(folder, k=99)
    with pytest.raises(StrictDataclassError, match="k must be between"):
        SAE.from_pretrained(folder)


def test_positional_arguments_are_refused(sae: SAE, folder: Path):
    with pytest.raises(TypeError, match="keyword arguments only"):
        SAE.from_pretrained(folder, sae.config)


def test_the_abstract_class_cannot_be_made(sae: SAE):
    with pytest.raises(TypeError, match="SAE is abstract"):
        SAE(sae.config)


def test_nothing_there_is_an_oserror(tmp_path: Path):
    with pytest.raises(OSError):
        SAE.from_pretrained(tmp_path / "nothing")


# -- from the Hub -----------------------------------------------------------------------------------------------------
def test_a_hub_repository_loads_by_name_revision_and_subfolder(hub: HubServer, sae: SAE, folder: Path):
    api = HfApi()
    api.create_repo("tester/saes")
    api.upload_folder(repo_id="tester/saes", folder_path=folder, path_in_repo="layer_3")
    first = api.upload_folder(repo_id="tester/saes", folder_path=folder)
    changed = VARIANTS["standard"].make(dtype=torch.float32)
    changed.save_pretrained(folder)
    api.upload_folder(repo_id="tester/saes", folder_path=folder)
    assert_equal(SAE.from_pretrained("tester/saes"), changed)
    assert_equal(SAE.from_pretrained("tester/saes", revision=first.oid), sae)
    assert_equal(SAE.from_pretrained("tester/saes", subfolder="layer_3"), sae)


def test_config_and_weights_are_of_one_commit_also_where_somebody_pushes_in_between(
    hub: HubServer, sae: SAE, monkeypatch: pytest.MonkeyPatch
):
    """The config said one k, and the weights were those of an SAE with another."""
    sae.push_to_hub("tester/saes")
    other = SAE.from_config(TopKSAEConfig(d_in=sae.config.d_in, n_features=sae.config.n_features, k=1))
    read, pushed = AutoConfig.from_pretrained, []

    def read_and_wait(*args, **kwargs):
        found = read(*args, **kwargs)
        if not pushed:
            pushed.append(other.push_to_hub("tester/saes"))
        return found

    monkeypatch.setattr(AutoConfig, "from_pretrained", read_and_wait)
    loaded = SAE.from_pretrained("tester/saes")
    assert pushed and loaded.config.k == sae.config.k
    assert_equal(loaded, sae)
    assert_equal(SAE.from_pretrained("tester/saes"), other)
    assert_equal(SAE.from_pretrained("tester/saes", local_files_only=True), other)


def test_another_kind_of_model_is_refused_before_its_weights_are_fetched(hub: HubServer, gpt2: Path):
    api = HfApi()
    api.create_repo("tester/gpt2")
    api.upload_folder(repo_id="tester/gpt2", folder_path=gpt2)
    hub.requests.clear()
    with pytest.raises(ValueError, match="not a sparse autoencoder"):
        SAE.from_pretrained("tester/gpt2")
    assert hub.requests.matching(path="config.json") and not hub.requests.matching(path="safetensors")
