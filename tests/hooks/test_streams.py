"""Models whose blocks hand several residual streams on: one of them is named and served like a single one."""

from functools import cache

import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedModel

from hfsae import SAE, TopKSAEConfig
from hfsae.hooks import (
    HookPoint,
    HookPointError,
    available_hook_points,
    capture,
    portable_name,
    resolve_hook_point,
    resolve_hook_points,
    splice,
    transformer_lens_name,
    width,
)
from tests.hooks.families import build
from tests.hooks.model_types import HIDDEN, LAYERS, text_ids, tiny_model
from tests.hooks.witness import recorded

SELECTED = {
    "gemma3n_text": lambda x, stream: x[stream],  # (streams, batch, seq, d)
    "deepseek_v4": lambda x, stream: x[:, :, stream],  # (batch, seq, streams, d)
}
every_type = pytest.mark.parametrize("model_type", SELECTED)


@cache
def model_of(model_type: str) -> PreTrainedModel:
    return tiny_model(model_type)


@every_type
def test_every_stream_has_a_name_that_leads_there_and_back(model_type):
    model = model_of(model_type)
    offered = available_hook_points(model)
    assert {f"resid_post.1[{stream}]" for stream in range(4)} <= offered.keys() and "resid_post.1" not in offered
    point = resolve_hook_point(model, "resid_post.-1[2]")
    assert str(point) == f"model.layers.{LAYERS - 1}.output[2]" and HookPoint.parse(str(point)) == point
    assert resolve_hook_point(model, str(point)) == point
    assert portable_name(model, point) == f"resid_post.{LAYERS - 1}[2]"
    assert transformer_lens_name(model, point) is None
    assert len(resolve_hook_points(model, "resid_pre.*[1]")) == LAYERS
    assert width(model, point) == HIDDEN


@every_type
def test_a_stream_is_read_and_written_and_the_others_are_left_alone(model_type):
    model = model_of(model_type)
    inputs, select = {"input_ids": text_ids(model)}, SELECTED[model_type]
    place, after = "model.layers.1.output", "model.layers.2.input"
    with torch.no_grad(), recorded(model, [place]) as seen:
        model(**inputs)
    with capture(model, "resid_post.1[3]") as found:
        found.run(**inputs)
    assert torch.equal(found["resid_post.1[3]"], select(seen[place], 3))

    change = torch.randn(2, 7, HIDDEN)
    with torch.no_grad(), splice(model, "resid_post.1[3]", lambda x: x + change), recorded(model, [after]) as edited:
        model(**inputs)
    for stream in range(4):
        expected = select(seen[place], stream) + (change if stream == 3 else 0)
        assert torch.equal(select(edited[after], stream), expected)


@every_type
def test_gradients_reach_a_stream(model_type):
    model = model_of(model_type)
    with capture(model, "resid_post.1[0]", stop=False, detach=False) as found:
        found.run(input_ids=text_ids(model))
        (gradient,) = torch.autograd.grad(found.output.logits.square().sum(), found["resid_post.1[0]"])
    assert gradient.shape == (2, 7, HIDDEN) and gradient.abs().max() > 1e-4


@every_type
def test_an_sae_at_all_streams_at_once_is_refused_with_the_name_of_one(model_type):
    config = TopKSAEConfig(d_in=HIDDEN, n_features=64, k=4, hook_point="model.layers.1.output")
    with pytest.raises(HookPointError, match=r"or one of several streams, such as 'model.layers.1.output\[0\]'"):
        with SAE.from_config(config).attach(model_of(model_type)):
            pass


def test_a_stream_that_is_not_there_is_an_error():
    model = model_of("gemma3n_text")
    with pytest.raises(HookPointError, match=r"has 4 streams, 0 to 3"):
        resolve_hook_point(model, "resid_post.1[4]")
    with pytest.raises(HookPointError, match=r"has only one there: leave \[0\] out"):
        resolve_hook_point(model, "mlp_in.1[0]")
    with pytest.raises(HookPointError, match=r"has only one there: leave \[0\] out"):
        resolve_hook_point(build("llama"), "resid_post.1[0]")


@pytest.mark.slow
def test_an_sae_of_one_stream_is_trained_saved_and_attached(tmp_path):
    from hfsae import SAETrainer, SAETrainingArguments

    model = model_of("gemma3n_text")
    rows = torch.randint(3, 56, (512, 16), generator=torch.Generator().manual_seed(0)).tolist()
    args = SAETrainingArguments(
        output_dir=str(tmp_path),
        hook_point="resid_post.1[0]",
        architecture="topk",
        n_features=64,
        k=8,
        training_tokens=4096,
        train_batch_tokens=512,
        init_tokens=512,
        calibration_tokens=512,
        eval_tokens=512,
        context_length=16,
        exclude_special_tokens=False,
        save_steps=0,
        disable_tqdm=True,
    )
    SAETrainer(model=model, args=args, train_dataset=Dataset.from_dict({"input_ids": rows})).train()
    sae = SAE.from_pretrained(tmp_path)
    assert sae.config.hook_point == "model.layers.1.output[0]"
    with torch.no_grad(), sae.attach(model, splice=True) as run:
        model(text_ids(model))
    error = (run.activations - run.reconstruction)[:, 1:].square().sum()
    assert error < 0.6 * (run.activations - run.activations.mean((0, 1)))[:, 1:].square().sum()
