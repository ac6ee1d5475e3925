"""What is written for other projects: exact where no scale is folded, and the same SAE in any case."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import BloomConfig, FalconConfig, Gemma2Config, GPT2Config, GPTNeoConfig, OlmoConfig

from hfsae import SAE, export_sae
from hfsae.architectures import architecture_name
from hfsae.interop import SAEBenchView
from tests.architectures.variants import CROSSCODERS, OF_ONE_SOURCE, VARIANTS
from tests.interop.foreign import FOREIGN, D

X = 2 * torch.randn(30, D, generator=torch.Generator().manual_seed(3)) + 0.5
PLACE: dict[str, Any] = {"base_model": "EleutherAI/pythia-70m", "hook_point": "gpt_neox.layers.2.output"}
MLP = {"hook_point": "gpt_neox.layers.2.mlp.input", "target_hook_point": "gpt_neox.layers.2.mlp.output"}
POLICY = {"exclude_special_tokens": False, "exclude_positions": [], "context_length": 64, "prepend_bos": True}


def make(architecture: str = "topk", *, scale: float | None = None, **options: Any) -> SAE:
    sae = VARIANTS[architecture].make(dtype=torch.float32, **{**PLACE, **POLICY, **options})
    for name in ("input_scale", "output_scale"):
        if scale is None and (tensor := getattr(sae, name, None)) is not None:
            tensor.fill_(1.0)
    return sae


def same(one: SAE, other: SAE, **tolerance: float) -> None:
    torch.testing.assert_close(one.encode(X), other.encode(X), **tolerance)
    torch.testing.assert_close(one(X).reconstruction, other(X).reconstruction, **tolerance)


CLOSE = {"rtol": 1e-4, "atol": 1e-5}


# -- SAELens ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("architecture", ["standard", "topk", "abs_topk", "jumprelu", "gated"])
@pytest.mark.parametrize(
    "options",
    [{}, {"subtract_b_dec": False}, {"input_transform": "layer_norm"}, {"input_transform": "constant_norm"}],
    ids=str,
)
def test_into_saelens_and_back_is_exact(architecture: str, options: dict, tmp_path: Path):
    sae = make(architecture, **options)
    before = {name: tensor.clone() for name, tensor in sae.state_dict().items()}
    again = SAE.from_pretrained(export_sae(sae, tmp_path / "out", "saelens"))
    torch.testing.assert_close(again.state_dict(), before, rtol=0, atol=0)
    torch.testing.assert_close(sae.state_dict(), before, rtol=0, atol=0)
    for name in ("base_model", "hook_point", "subtract_b_dec", "input_transform", *POLICY):
        assert getattr(again.config, name) == getattr(sae.config, name), name


@pytest.mark.parametrize("architecture", OF_ONE_SOURCE)
@pytest.mark.parametrize("options", [{}, {"rescale_by_decoder_norm": True}, {"input_transform": "center"}], ids=str)
def test_an_export_to_saelens_folds_scales_and_computes_the_same(architecture: str, options: dict, tmp_path: Path):
    sae = make(architecture, scale=1.5, **options)
    same(SAE.from_pretrained(export_sae(sae, tmp_path, "saelens")), sae, **CLOSE)


@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "batch_topk"])
@pytest.mark.parametrize("subtract", [True, False])
@pytest.mark.parametrize("skip", [True, False])
def test_transcoders_go_to_saelens(architecture: str, subtract: bool, skip: bool, tmp_path: Path):
    sae = make(architecture, scale=1.5, subtract_b_dec=subtract, skip=skip, **MLP)
    again = SAE.from_pretrained(export_sae(sae, tmp_path, "saelens"))
    same(again, sae, **CLOSE)
    assert again.config.target_hook_point == MLP["target_hook_point"] and not again.config.subtract_b_dec


def test_the_config_for_saelens_names_places_as_transformer_lens_does(tmp_path: Path):
    config = json.loads((export_sae(make("topk", k=3), tmp_path, "saelens") / "cfg.json").read_text())
    assert (config["architecture"], config["k"], config["d_in"], config["d_sae"]) == ("topk", 3, 6, 24)
    assert config["metadata"]["hook_name"] == "blocks.2.hook_resid_post"
    assert config["metadata"]["hf_hook_name"] == PLACE["hook_point"]
    weights = load_file(tmp_path / "sae_weights.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in weights.items()} == {
        "W_enc": (6, 24),
        "b_enc": (24,),
        "W_dec": (24, 6),
        "b_dec": (6,),
    }


@pytest.mark.parametrize(
    "architecture, options",
    [("topk", MLP), ("gated", MLP), ("topk", {"activation": "groupmax"}), ("topk", {"skip": True})],
)
def test_what_saelens_cannot_hold_is_refused_and_nothing_is_written(architecture: str, options: dict, tmp_path: Path):
    with pytest.raises(ValueError, match="SAELens has nothing that computes"):
        export_sae(make(architecture, **options), tmp_path / "out", "saelens")
    assert not (tmp_path / "out").exists()


def test_topk_with_rows_of_one_norm_gets_unit_rows_and_the_flag(tmp_path: Path):
    """SAELens' tools refuse another. A feature's unit is then a vector of length 1 in the model's activations."""
    sae = make("topk", scale=1.5)
    with torch.no_grad():
        sae.W_dec.div_(sae.W_dec.norm(dim=1, keepdim=True))
        sae.input_scale.fill_(2.0)
    written = export_sae(sae, tmp_path, "saelens")
    config = json.loads((written / "cfg.json").read_text())
    rows = load_file(written / "sae_weights.safetensors")["W_dec"].norm(dim=1)
    assert config["rescale_acts_by_decoder_norm"] is True
    torch.testing.assert_close(rows, torch.ones(24))
    again = SAE.from_pretrained(written)
    torch.testing.assert_close(again(X).reconstruction, sae(X).reconstruction, **CLOSE)
    torch.testing.assert_close(again.encode(X), sae.encode(X) / 2.0, **CLOSE)  # rows were 1/2 long
    with torch.no_grad():
        sae.W_dec.mul_(3.0)
    again = SAE.from_pretrained(export_sae(sae, tmp_path, "saelens"))
    torch.testing.assert_close(again(X).reconstruction, sae(X).reconstruction, **CLOSE)
    torch.testing.assert_close(again.W_dec.norm(dim=1), torch.ones(24))


def test_topk_with_rows_of_several_norms_keeps_its_choice(tmp_path: Path):
    sae = make("topk", scale=1.5)
    written = export_sae(sae, tmp_path, "saelens")
    assert json.loads((written / "cfg.json").read_text())["rescale_acts_by_decoder_norm"] is False
    same(SAE.from_pretrained(written), sae, **CLOSE)


# -- the names of places ----------------------------------------------------------------------------------------------
# Models whose names say nothing: by type, and where the block's output is.
MODELS = {
    "gpt_neo": (
        lambda: GPTNeoConfig(hidden_size=6, num_layers=3, num_heads=2, attention_types=[[["global"], 3]]),
        "transformer.h",
    ),
    "bloom": (lambda: BloomConfig(hidden_size=8, n_layer=3, n_head=2), "transformer.h"),
    "falcon": (lambda: FalconConfig(hidden_size=8, num_hidden_layers=3, num_attention_heads=2), "transformer.h"),
    "olmo": (
        lambda: OlmoConfig(hidden_size=8, num_hidden_layers=3, num_attention_heads=2, intermediate_size=8),
        "model.layers",
    ),
    "gpt2": (lambda: GPT2Config(n_embd=8, n_layer=3, n_head=2), "transformer.h"),
}
if transformers.__version__.startswith("5.4."):  # refuses the default of a field of its own
    del MODELS["olmo"]


@pytest.mark.parametrize("kind", MODELS)
def test_the_place_is_named_by_the_language_models_own_config(kind: str, tmp_path: Path):
    make_config, layers = MODELS[kind]
    make_config().save_pretrained(tmp_path / "a_model")
    sae = make("standard", base_model=str(tmp_path / "a_model"), hook_point=f"{layers}.2.output")
    metadata = json.loads((export_sae(sae, tmp_path / "out", "saelens") / "cfg.json").read_text())["metadata"]
    assert metadata["hook_name"] == SAEBenchView(sae).cfg.hook_name == "blocks.2.hook_resid_post"
    assert metadata["hf_hook_name"] == f"{layers}.2.output"


def test_the_config_of_a_model_wins_over_what_its_name_sounds_like(tmp_path: Path):
    Gemma2Config(hidden_size=8, num_hidden_layers=3, num_attention_heads=2, intermediate_size=8).save_pretrained(
        tmp_path / "like-llama-7b"
    )
    place = "model.layers.1.post_feedforward_layernorm.output"
    sae = make("standard", base_model=str(tmp_path / "like-llama-7b"), hook_point=place)
    assert SAEBenchView(sae).cfg.hook_name == "blocks.1.hook_mlp_out"


def test_what_training_recorded_names_the_place_of_a_model_that_is_gone(tmp_path: Path):
    options: dict[str, Any] = {"base_model": "./gone", "hook_point": "transformer.h.1.output"}
    sae = make("topk", training={"portable_name": "resid_post.1"}, **options)
    assert SAEBenchView(sae).cfg.hook_name == "blocks.1.hook_resid_post"
    sae.config.hook_point = "transformer.h.2.output"  # what was recorded is of another place now
    with pytest.raises(ValueError, match="not known what TransformerLens calls transformer.h.2.output of ./gone"):
        SAEBenchView(sae)


@pytest.mark.parametrize(
    "options",
    [
        {"base_model": "somebody/unheard-of", "hook_point": "model.layers.3.output"},
        {"base_model": None, "hook_point": "layers.3.output"},
        {"hook_point": "gpt_neox.layers.2.attention.query_key_value.output"},
    ],
    ids=str,
)
def test_a_place_without_a_known_name_is_refused_until_it_is_given(options: dict, tmp_path: Path):
    sae = make("standard", **options)
    with pytest.raises(ValueError, match="not known what TransformerLens calls .*: pass hook_name="):
        export_sae(sae, tmp_path / "out", "saelens")
    assert not (tmp_path / "out").exists()
    written = export_sae(sae, tmp_path / "out", "saelens", hook_name="blocks.2.hook_mine")
    assert json.loads((written / "cfg.json").read_text())["metadata"]["hook_name"] == "blocks.2.hook_mine"
    assert SAE.from_pretrained(written).config.hook_point == options["hook_point"]


def test_a_transcoder_needs_both_names(tmp_path: Path):
    options: dict[str, Any] = {"base_model": None, "subtract_b_dec": False}
    sae = make("standard", **options, **MLP)
    with pytest.raises(ValueError, match="pass hook_name="):
        export_sae(sae, tmp_path, "saelens")
    with pytest.raises(ValueError, match="pass hook_name_out="):
        export_sae(sae, tmp_path, "saelens", hook_name="blocks.2.mlp.hook_in")
    written = export_sae(
        sae, tmp_path, "saelens", hook_name="blocks.2.mlp.hook_in", hook_name_out="blocks.2.hook_mlp_out"
    )
    assert json.loads((written / "cfg.json").read_text())["metadata"]["hook_name_out"] == "blocks.2.hook_mlp_out"


def test_a_name_of_transformer_lens_stays_as_it_is(tmp_path: Path):
    sae = make("standard", base_model="somebody/unheard-of", hook_point="blocks.18.ln2.hook_normalized")
    metadata = json.loads((export_sae(sae, tmp_path, "saelens") / "cfg.json").read_text())["metadata"]
    assert metadata["hook_name"] == "blocks.18.ln2.hook_normalized"


# -- sparsify ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("options", [{}, {"activation": "groupmax", "k": 4}, {"skip": True}], ids=str)
def test_into_sparsify_and_back_is_exact(options: dict, tmp_path: Path):
    sae = make(**options)
    written = export_sae(sae, tmp_path, "sparsify")
    assert written == tmp_path / "layers.2"
    again = SAE.from_pretrained(written)
    torch.testing.assert_close(again.state_dict(), sae.state_dict(), rtol=0, atol=0)
    for name in ("base_model", "hook_point", "context_length", "k", "activation", "skip"):
        assert getattr(again.config, name) == getattr(sae.config, name), name


@pytest.mark.parametrize("options", [{"subtract_b_dec": False}, {"rescale_by_decoder_norm": True}, MLP], ids=str)
def test_an_export_to_sparsify_folds_what_it_lacks_and_computes_the_same(options: dict, tmp_path: Path):
    sae = make(scale=1.5, **options)
    again = SAE.from_pretrained(export_sae(sae, tmp_path, "sparsify"))
    same(again, sae, **CLOSE)
    assert again.config.is_transcoder == sae.config.is_transcoder


def test_a_blocks_input_is_what_the_block_before_gives_out(tmp_path: Path):
    assert export_sae(make(hook_point="gpt_neox.layers.3.input"), tmp_path, "sparsify").name == "layers.2"


@pytest.mark.parametrize(
    "architecture, options, message",
    [
        ("jumprelu", {}, "holds TopK"),
        ("topk", {"input_transform": "center"}, "holds TopK"),
        ("topk", {"hook_point": "gpt_neox.layers.0.input"}, "reads outputs of modules"),
        ("topk", {**MLP, "hook_point": "gpt_neox.layers.1.mlp.input"}, "from a module's input to its output"),
    ],
)
def test_what_sparsify_cannot_hold_is_refused(architecture: str, options: dict, message: str, tmp_path: Path):
    with pytest.raises(ValueError, match=message):
        export_sae(make(architecture, **options), tmp_path / "out", "sparsify")
    assert not (tmp_path / "out").exists()


# -- from theirs to theirs --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", [name for name in FOREIGN if name.startswith("saelens_") and "5" not in name])
def test_saelens_to_ours_to_saelens_is_exact(name: str, tmp_path: Path):
    foreign = FOREIGN[name](tmp_path / "theirs")
    SAE.from_pretrained(foreign.path).save_pretrained(tmp_path / "ours")
    written = export_sae(SAE.from_pretrained(tmp_path / "ours"), tmp_path / "back", "saelens")
    first, last = (load_file(folder / "sae_weights.safetensors") for folder in (foreign.path, written))
    torch.testing.assert_close(last, first, rtol=0, atol=0)
    first, last = (json.loads((folder / "cfg.json").read_text()) for folder in (foreign.path, written))
    kept = {key: value for key, value in first.items() if key != "metadata"}
    assert {key: last.get(key) for key in kept} == kept


@pytest.mark.parametrize("name", ["sparsify_topk", "sparsify_groupmax", "sparsify_transcoder"])
def test_sparsify_to_ours_to_sparsify_is_exact(name: str, tmp_path: Path):
    foreign = FOREIGN[name](tmp_path / "theirs")
    written = export_sae(SAE.from_pretrained(foreign.path), tmp_path / "back", "sparsify")
    assert written.name == foreign.path.name
    first, last = (load_file(folder / "sae.safetensors") for folder in (foreign.path, written))
    torch.testing.assert_close(last, first, rtol=0, atol=0)


# -- SAEBench ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("architecture", [name for name in OF_ONE_SOURCE if name != "abs_topk"])
@pytest.mark.parametrize("options", [{}, {"rescale_by_decoder_norm": True}], ids=str)
def test_the_view_for_saebench_reconstructs_the_same_along_unit_rows(architecture: str, options: dict):
    sae = make(architecture, scale=1.5, **options)
    view = SAEBenchView(sae)
    features = view.encode(X)
    torch.testing.assert_close(view.W_dec.norm(dim=1), torch.ones(24))
    torch.testing.assert_close(view(X), sae(X).reconstruction, **CLOSE)
    torch.testing.assert_close(features @ view.W_dec + view.b_dec, view.decode(features), **CLOSE)
    assert torch.equal(features != 0, sae.encode(X) != 0)
    assert (view.W_enc.shape, view.b_enc.shape, view.dtype, view.device.type) == ((6, 24), (24,), torch.float32, "cpu")


def test_the_views_encoder_works_on_raw_activations():
    view = SAEBenchView(make("standard", scale=1.5, subtract_b_dec=False))
    torch.testing.assert_close((X @ view.W_enc + view.b_enc).relu(), view.encode(X), **CLOSE)


def test_the_view_says_where_it_belongs():
    sae = make("jumprelu")
    said = SAEBenchView(sae).cfg.to_dict()
    assert said == {
        "model_name": "pythia-70m",
        "d_in": 6,
        "d_sae": 24,
        "hook_name": "blocks.2.hook_resid_post",
        "hook_layer": 2,
        "context_size": 64,
        "prepend_bos": True,
        "dtype": "float32",
        "architecture": architecture_name(sae.config),
    }


def test_the_view_answers_what_saebench_and_saelens_store_of_activations_ask():
    sae = make("gated", exclude_positions=[0, 1], exclude_special_tokens=True)
    view = SAEBenchView(sae)
    assert view.cfg.normalize_activations == "none" and view.cfg.hook_head_index is None
    assert view.cfg.model_from_pretrained_kwargs == {} and view.cfg.to_dict() == json.loads(
        json.dumps(view.cfg.to_dict())
    )
    metadata = view.cfg.metadata
    assert (metadata.hook_name, metadata.context_size, metadata.prepend_bos) == ("blocks.2.hook_resid_post", 64, True)
    assert metadata.seqpos_slice == [2, None] and metadata.exclude_special_tokens is True
    assert metadata.hook_head_index is None and not hasattr(SAEBenchView(make("standard")), "b_mag")
    torch.testing.assert_close(view.b_mag, sae.magnitude_bias * sae.feature_directions.norm(dim=1), **CLOSE)
    assert view.to(torch.bfloat16).cfg.dtype == "bfloat16"


@pytest.mark.parametrize("field", ["hook_point", "base_model", "prepend_bos"])
def test_what_saebench_has_to_know_is_asked_for(field: str):
    sae = make("standard")
    setattr(sae.config, field, None)
    with pytest.raises(ValueError, match=f"SAEBench asks .*config.{field}|not known what TransformerLens"):
        SAEBenchView(sae)


@pytest.mark.parametrize("architecture", CROSSCODERS)
def test_a_crosscoder_is_refused_and_one_source_of_it_is_written(architecture: str, tmp_path: Path):
    place = {"hook_point": "gpt_neox.layers.1.output+gpt_neox.layers.2.output"}
    sae = make(architecture, **place)
    refused = pytest.raises(ValueError, match="nothing that computes|one, sae.source|sparsify holds TopK")
    for format in ("saelens", "sparsify"):
        with refused:
            export_sae(sae, tmp_path / "refused", format)
    with refused:
        SAEBenchView(sae, hook_name="blocks.2.hook_resid_post")
    assert not (tmp_path / "refused").exists()
    alone, x = sae.source("tuned"), X[:, :4]
    again = SAE.from_pretrained(export_sae(alone, tmp_path / "out", "saelens"))
    torch.testing.assert_close(again(x).reconstruction, alone(x).reconstruction, **CLOSE)
    assert again.config.hook_point == "gpt_neox.layers.2.output"


@pytest.mark.parametrize("options", [{"input_transform": "layer_norm"}, {"skip": True}, MLP], ids=str)
def test_what_decodes_with_more_than_features_has_no_view(options: dict):
    with pytest.raises(ValueError, match="needs the activations too"):
        SAEBenchView(make(**options))
