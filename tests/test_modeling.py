from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.utils import prune

from hfsae import SAE, StandardSAEConfig, TopKSAEConfig, export_sae
from tests.architectures.variants import VARIANTS
from tests.full_disk import room_for
from tests.hooks.model_types import tiny_model


# -- what is shown of it ----------------------------------------------------------------------------------------------
def test_repr_says_what_it_is_where_it_reads_and_where_it_lies():
    config = TopKSAEConfig(d_in=8, n_features=32, k=4, base_model="org/lm", hook_point="layers.3.output")
    assert repr(SAE.from_config(config)) == (
        "TopKSAE(d_in=8, n_features=32, k=4, reads layers.3.output of org/lm, float32 on cpu)"
    )
    config = StandardSAEConfig(
        d_in=8, d_out=4, n_features=32, hook_point="a", target_hook_point="b", subtract_b_dec=False
    )
    assert repr(SAE.from_config(config).bfloat16()) == (
        "StandardSAE(d_in=8, d_out=4, n_features=32, reads a, writes b of an unnamed model, bfloat16 on cpu)"
    )


def test_a_notebook_shows_the_summary_of_the_config_and_the_weights():
    html = SAE.from_config(TopKSAEConfig(d_in=8, n_features=32, k=4, base_model="a<b"))._repr_html_()
    assert "TopKSAE" in html and "32 (4x of d_in = 8)" in html and "float32 on cpu" in html and "a&lt;b" in html


def test_tab_completes_what_an_sae_is_for_and_little_of_what_it_inherits():
    sae = SAE.from_config(TopKSAEConfig(d_in=8, n_features=32, k=4))
    public = {name for name in dir(sae) if not name.startswith("_")}
    assert {
        "encode",
        "decode",
        "attach",
        "W_dec",
        "encoder",
        "config",
        "to",
        "push_to_hub",
        "save_pretrained",
    } <= public
    assert not {"T_destination", "add_adapter", "resize_token_embeddings", "tp_plan", "loss_type"} & public
    assert len(public) < 95 and all(hasattr(sae, name) for name in public)
    sae.note = "mine"
    assert "note" in dir(sae) and set(dir(sae)) >= {"__class__", "_parameters"}


# -- old names --------------------------------------------------------------------------------------------------------
def test_old_methods_do_what_the_functions_do_and_say_what_to_call(tmp_path: Path):
    sae = VARIANTS["topk"].make(dtype=torch.float32)
    with pytest.warns(FutureWarning, match="export_sae.*saelens"):
        old = sae.to_saelens(tmp_path / "old", hook_name="blocks.1.hook_resid_post")
    new = export_sae(sae, tmp_path / "new", "saelens", hook_name="blocks.1.hook_resid_post")
    written = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in (old, new)]
    assert len(written[0]) == 2 and written[0] == written[1]
    with pytest.warns(FutureWarning, match="self_check"), pytest.raises(ValueError, match="names no hook point"):
        sae.self_check(tiny_model("gpt2"), ["text"])
    with pytest.warns(FutureWarning, match="export_sae.*sparsify"), pytest.raises(ValueError):
        sae.to_sparsify(tmp_path / "sparsify")
    with pytest.warns(FutureWarning, match="SAEBenchView"), pytest.raises(ValueError, match="hook_point"):
        sae.to_saebench()


def test_a_save_over_an_earlier_one_is_what_is_loaded_whatever_the_form_of_either(tmp_path: Path):
    """Shards were written beside the one file of an earlier save, and that file was loaded."""
    saes = [SAE.from_config(TopKSAEConfig(d_in=64, n_features=256, k=4)) for _ in range(4)]
    for sae, size in zip(saes, ("5GB", "50KB", "5GB", "60KB"), strict=True):
        sae.save_pretrained(tmp_path, max_shard_size=size)
        assert (tmp_path / "model.safetensors").is_file() == (size == "5GB")
        assert (tmp_path / "model.safetensors.index.json").is_file() == (size != "5GB")
        torch.testing.assert_close(SAE.from_pretrained(tmp_path).state_dict(), sae.state_dict(), rtol=0, atol=0)


def test_what_nobody_could_load_is_not_written(tmp_path: Path):
    """An SAE with a mask of torch's pruning was saved without a word, and refused where it was loaded."""
    sae = SAE.from_config(TopKSAEConfig(d_in=8, n_features=32, k=4))
    prune.l1_unstructured(sae.encoder, "weight", amount=0.5)
    with pytest.raises(ValueError, match="missing: encoder.weight; unexpected: encoder.weight_mask.* Take off"):
        sae.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())
    prune.remove(sae.encoder, "weight")
    sae.save_pretrained(tmp_path)
    torch.testing.assert_close(SAE.from_pretrained(tmp_path).state_dict(), sae.state_dict(), rtol=0, atol=0)


def test_an_adapter_that_would_do_nothing_is_refused():
    """Features were those of the SAE without it, until merging changed them."""
    sae = SAE.from_config(TopKSAEConfig(d_in=8, n_features=32, k=4))
    with pytest.raises(TypeError, match="on the encoder of an SAE would do nothing"):
        get_peft_model(sae, LoraConfig(target_modules=["encoder"]))


def test_a_save_that_fails_leaves_the_earlier_one_as_it_was(tmp_path: Path):
    """On a disk that was full the new config stood beside the old weights, which fitted it and were loaded."""
    old, new = (SAE.from_config(TopKSAEConfig(d_in=64, n_features=256, k=k)) for k in (4, 2))
    old.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with room_for(50_000), pytest.raises(OSError, match="could not be written"):
        new.save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    new.save_pretrained(tmp_path)
    assert SAE.from_pretrained(tmp_path).config.k == 2


def test_a_save_into_a_folder_of_links_leaves_the_files_behind_them_alone(tmp_path: Path):
    """In the Hub's cache a snapshot is links, and the config behind one was written over for all snapshots."""
    sae = SAE.from_config(TopKSAEConfig(d_in=8, n_features=32, k=4))
    sae.save_pretrained(tmp_path / "blobs")
    before = {path.name: path.read_bytes() for path in (tmp_path / "blobs").iterdir()}
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for name in before:
        (snapshot / name).symlink_to(tmp_path / "blobs" / name)
    assert SAE.from_pretrained(snapshot).config.k == 4
    other = SAE.from_config(TopKSAEConfig(d_in=8, n_features=32, k=2))
    other.save_pretrained(snapshot)
    assert {path.name: path.read_bytes() for path in (tmp_path / "blobs").iterdir()} == before
    loaded = SAE.from_pretrained(snapshot)
    assert loaded.config.k == 2 and torch.equal(loaded.W_dec, other.W_dec)
