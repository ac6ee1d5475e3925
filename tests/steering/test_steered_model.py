"""Steered models, loaded by transformers alone, against `steer` at work in the model that they were made of."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, QuantoConfig

from hfsae import SAE, TopKSAEConfig, steer
from hfsae.steering import NoBiasError, steer_model
from tests.analysis.tiny import setting, texts
from tests.hooks.families import build, input_ids

STRENGTHS = {3: 30.0, 17: -20.0}
# Family, place, and the form that is exact there.
EXACT = [
    ("gpt2", "resid_post.0", "model"),
    ("gpt-neox", "resid_post.0", "model"),
    ("gpt-oss", "resid_post.0", "model"),
    ("llama", "resid_post.0", "model"),
    ("llama", "resid_mid.1", "model"),
    ("cohere", "resid_post.0", "model"),
    ("smollm3", "mlp_out.1", "model"),
    ("bloom", "resid_pre.1", "model"),
    ("opt-post-norm", "resid_post.0", "model"),
    ("falcon", "resid_post.0", "model"),
    ("mamba", "resid_post.0", "model"),
    ("mistral", "resid_post.0", "adapter"),
    ("qwen3", "resid_post.0", "adapter"),
    ("gemma", "resid_post.1", "adapter"),
    ("phi3", "attn_out.0", "adapter"),
]


def sae_at(hook_point: str, **fields) -> SAE:
    """An SAE that leaves no token out, with an input scale of its own."""
    torch.manual_seed(3)
    everywhere = {"exclude_special_tokens": False, "exclude_positions": []}
    sae = SAE.from_config(TopKSAEConfig(d_in=16, n_features=48, k=6, hook_point=hook_point, **everywhere, **fields))
    sae.input_scale.fill_(2.5)
    return sae.eval()


def folder_of(model, place: Path) -> Path:
    """The base model as a folder, which an adapter needs."""
    model.save_pretrained(place / "base")
    return place / "base"


@pytest.mark.parametrize(("family", "place", "form"), EXACT, ids=lambda value: str(value))
def test_the_folder_does_what_steer_does(tmp_path, family, place, form):
    model, sae, ids = build(family), sae_at(place), input_ids(2, 7)
    sae.config.base_model = str(folder_of(model, tmp_path))
    plain = model(ids).logits
    with torch.no_grad(), steer(model, sae, STRENGTHS):
        expected = model(ids, use_cache=False).logits
        told = model.generate(ids[:1], max_new_tokens=6, do_sample=False, pad_token_id=0)
    written = steer_model(model, sae, STRENGTHS, tmp_path / "steered")
    assert written.form == form and torch.equal(model(ids).logits, plain)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "steered").eval()
    with torch.no_grad():
        logits = loaded(ids, use_cache=False).logits
        cached = loaded.generate(ids[:1], max_new_tokens=6, do_sample=False, pad_token_id=0)
        uncached = loaded.generate(ids[:1], max_new_tokens=6, do_sample=False, pad_token_id=0, use_cache=False)
    size = float(expected.abs().max())
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5 * max(size, 1.0))
    assert (logits - plain).abs().max() > 0.1
    assert torch.equal(cached, told) and torch.equal(uncached, told)


ALONE = """
import sys
sys.modules["hfsae"] = None  # importing it fails
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, QuantoConfig
model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
with torch.no_grad():
    torch.save(model(**tokenizer("w1 w2 w3 w4", return_tensors="pt")).logits, sys.argv[2])
"""


def everywhere():
    """The tiny setting, with an SAE that leaves no token out."""
    given = setting()
    sae = copy.deepcopy(given.sae)
    sae.config.exclude_special_tokens, sae.config.exclude_positions = False, []
    return given._replace(sae=sae)


def test_it_runs_in_a_process_without_hfsae(tmp_path):
    sae, model, tokenizer = everywhere()
    steer_model(model, sae, {5: -8.0}, tmp_path / "steered", tokenizer=tokenizer)
    arguments = [str(tmp_path / "steered"), str(tmp_path / "logits.pt")]
    subprocess.run([sys.executable, "-c", ALONE, *arguments], check=True, capture_output=True)
    with torch.no_grad(), steer(model, sae, {5: -8.0}):
        expected = model(**tokenizer("w1 w2 w3 w4", return_tensors="pt")).logits
    torch.testing.assert_close(torch.load(arguments[1]), expected, rtol=0, atol=1e-5)
    names = {path.name for path in (tmp_path / "steered").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json", "README.md"} <= names


def test_a_transcoder_is_steered_where_it_writes(tmp_path):
    sae = sae_at("mlp_in.0", target_hook_point="mlp_out.0")
    sae.output_scale.fill_(0.5)
    model, ids = build("llama"), input_ids(2, 7)
    written = steer_model(model, sae, STRENGTHS, tmp_path / "steered")
    assert written.record["tensor"] == "model.layers.0.mlp.down_proj.bias"
    with torch.no_grad(), steer(model, sae, STRENGTHS):
        expected = model(ids).logits
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "steered").eval()
    torch.testing.assert_close(loaded(ids).logits, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_in_bfloat16_only_rounding_differs(tmp_path):
    model, sae, ids = build("llama"), sae_at("resid_post.0"), input_ids(2, 7)
    half = AutoModelForCausalLM.from_pretrained(folder_of(model, tmp_path), dtype=torch.bfloat16).eval()
    written = steer_model(half, sae, STRENGTHS, tmp_path / "steered")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "steered").eval()
    assert loaded.dtype == torch.bfloat16 and written.record["dtype"] == "bfloat16"
    with torch.no_grad(), steer(model, sae, STRENGTHS):
        expected = model(ids).logits
    plain = model(ids).logits
    assert (loaded(ids).logits.float() - expected).abs().max() < 0.1 * (expected - plain).abs().max()


def test_strengths_may_be_multiples_of_maxima(tmp_path):
    model, sae = build("gpt2"), sae_at("resid_post.0")
    relative = steer_model(model, sae, {3: 2.0}, tmp_path / "a", maxima={3: 15.0})
    absolute = steer_model(model, sae, {3: 30.0}, tmp_path / "b")
    said, other = (one.record["features"][0] for one in (relative, absolute))
    assert (said["strength"], said["times_maximum"]) == (30.0, 2.0)
    assert (other["strength"], other["times_maximum"]) == (30.0, None)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]


def test_the_effect_is_measured_and_told(tmp_path):
    sae, model, tokenizer = setting()  # leaves position 0 out
    written = steer_model(
        model, sae, {5: 40.0}, tmp_path / "steered", tokenizer=tokenizer, data=texts(), data_name="x"
    )
    effect = written.record["effect"]
    assert effect["n_predictions"] > 0 and 0 < effect["kl_from_steer"] < effect["kl"]
    assert effect["steered_perplexity"] > effect["perplexity"] and 0 < effect["top_changed"] < 1
    card = (tmp_path / "steered" / "README.md").read_text()
    assert "position 0 of every block, which a bias cannot tell apart" in card
    assert "`transformer.h.1.mlp.c_proj.bias`" in card and f"{effect['n_predictions']} predictions of `x`" in card
    assert all(f"`{token['text']!r}`" in card for token in effect["lowered"] if "w" in token["text"])
    assert json.loads((tmp_path / "steered" / "steering.json").read_text()) == written.record


@pytest.mark.parametrize(
    ("strengths", "fields", "message"),
    [
        ({}, {}, "at least one"),
        ({48: 1.0}, {}, "from 0 to 47"),
        ({3: float("nan")}, {}, "finite numbers"),
        ({3: 0.0}, {}, "add nothing"),
        ({3: 1.0}, {"input_transform": "layer_norm"}, "something else at each token"),
    ],
)
def test_what_no_bias_does_is_refused(tmp_path, strengths, fields, message):
    with pytest.raises(ValueError, match=message):
        steer_model(build("llama"), sae_at("resid_post.0", **fields), strengths, tmp_path / "steered")
    assert not list(tmp_path.iterdir())


def test_forms_that_cannot_be_are_refused(tmp_path):
    with pytest.raises(NoBiasError, match="its class has none"):
        steer_model(build("qwen3"), sae_at("resid_post.0"), {3: 1.0}, tmp_path / "steered", form="model")
    with pytest.raises(NoBiasError, match="no matrix"):
        steer_model(build("gpt2"), sae_at("final_norm"), {3: 1.0}, tmp_path / "steered", form="adapter")
    with pytest.raises(NoBiasError, match="post_feedforward_layernorm"):
        steer_model(build("gemma2"), sae_at("resid_post.0"), {3: 1.0}, tmp_path / "steered")
    with pytest.raises(ValueError, match="expected one of"):
        steer_model(build("gpt2"), sae_at("resid_post.0"), {3: 1.0}, tmp_path / "steered", form="bias")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_an_offloaded_model_is_refused(tmp_path):
    """Its bias was changed on the meta device, so that the folder held the model as it was."""
    folder = folder_of(build("gpt2"), tmp_path)
    places = {"transformer.wte": "cpu", "transformer.wpe": "cpu", "transformer.ln_f": "cpu", "lm_head": "cpu"}
    places |= {"transformer.h.0": "cpu", "transformer.h.1": "disk"}
    told = {"device_map": places, "offload_folder": str(tmp_path / "offloaded")}
    model = AutoModelForCausalLM.from_pretrained(folder, **told).eval()
    with pytest.raises(ValueError, match="are offloaded"):
        steer_model(model, sae_at("resid_post.1"), STRENGTHS, tmp_path / "steered")
    assert not (tmp_path / "steered").exists()


def test_a_model_with_an_adapter_is_refused(tmp_path):
    loaded = AutoModelForCausalLM.from_pretrained(folder_of(build("llama"), tmp_path))
    adapted = get_peft_model(loaded, LoraConfig(r=1, target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="merge_and_unload"):
        steer_model(adapted, sae_at("resid_post.0"), {3: 1.0}, tmp_path / "steered")


def test_nothing_is_written_over_and_an_interruption_leaves_nothing(tmp_path, monkeypatch):
    model, sae = build("gpt2"), sae_at("resid_post.0")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds something"):
        steer_model(model, sae, {3: 1.0}, tmp_path / "full")
    monkeypatch.setattr(type(model), "save_pretrained", _interrupted)
    before = model.transformer.h[0].mlp.c_proj.bias.clone()
    with pytest.raises(KeyboardInterrupt):
        steer_model(model, sae, {3: 1.0}, tmp_path / "steered")
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
    assert torch.equal(model.transformer.h[0].mlp.c_proj.bias, before)


def _interrupted(self, folder):
    (Path(folder) / "config.json").write_text("{}")
    raise KeyboardInterrupt


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_quantised_weights_take_an_adapter(tmp_path, family):
    pytest.importorskip("optimum.quanto")
    folder, ids = folder_of(build(family), tmp_path), input_ids(2, 7)
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=QuantoConfig(weights="int8")).eval()
    sae = sae_at("resid_post.0")
    with torch.no_grad(), steer(model, sae, STRENGTHS):
        expected = model(ids).logits
    with pytest.raises(NoBiasError, match="weights are quantised"):
        steer_model(model, sae, STRENGTHS, tmp_path / "steered", form="model")
    assert steer_model(model, sae, STRENGTHS, tmp_path / "steered").form == "adapter"
    with torch.no_grad():
        logits = PeftModel.from_pretrained(model, str(tmp_path / "steered")).eval()(ids).logits
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


def test_the_tokenizer_comes_along(tmp_path):
    sae, model, tokenizer = setting()
    steer_model(model, sae, {5: 1.0}, tmp_path / "steered", tokenizer=tokenizer)
    again = AutoTokenizer.from_pretrained(tmp_path / "steered")
    assert again("w1 w2")["input_ids"] == tokenizer("w1 w2")["input_ids"]
