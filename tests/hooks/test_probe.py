"""What passes at a place, found before an SAE is attached: axes, virtual tokens, several streams."""

import copy

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from torch import nn

from hfsae import SAE, TopKSAEConfig
from hfsae.attachment import attach
from hfsae.hooks import HookPoint, HookPointError, capture, splice
from hfsae.hooks.layout import DecoderLayout
from hfsae.hooks.probe import seen_at
from tests.hooks.families import build, input_ids
from tests.hooks.model_types import tiny_model
from tests.hooks.witness import recorded


def sae_at(place: str, width: int) -> SAE:
    torch.manual_seed(3)
    return SAE.from_config(
        TopKSAEConfig(d_in=width, n_features=64, k=6, hook_point=place, exclude_special_tokens=False)
    ).eval()


def test_a_model_is_looked_at_once_and_left_as_it_was():
    model = copy.deepcopy(build("llama")).train()
    layout, place = DecoderLayout(model), HookPoint("model.layers.0", "output")
    model.model.layers[1].eval()
    state = torch.random.get_rng_state()
    calls = []
    handle = model.register_forward_pre_hook(lambda *_: calls.append(1))
    for _ in range(3):
        seen = seen_at(model, [place], layout)[place]
    handle.remove()
    assert len(calls) == 2 and seen.visits == 1 and not seen.time_major
    assert [tuple(shape) for shapes in seen.shapes for shape in shapes] == [(2, 2, 16), (2, 3, 16)]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.training and model.model.layers[0].training and not model.model.layers[1].training


def test_contexts_that_are_open_do_not_see_it():
    model = copy.deepcopy(build("llama"))
    with torch.no_grad(), capture(model, "resid_post.0", stop=False) as outer:
        model(input_ids())
        with attach(model, sae_at("mlp_out.1", 16), splice=True):
            pass
    assert outer["resid_post.0"].shape == (2, 5, 16)


@pytest.mark.parametrize("shape", [(2, 5), (6, 6)])
def test_time_major_xlnet_is_turned(shape):
    """With as many sequences as tokens nothing in the shape tells the axes apart."""
    model = tiny_model("xlnet")
    place = "transformer.layer.1.output"
    ids = torch.randint(3, 60, shape, generator=torch.Generator().manual_seed(0))
    sae = sae_at(place, 32)
    with recorded(model, [place]) as seen, torch.no_grad(), attach(model, sae) as run, capture(model, place) as found:
        model(input_ids=ids)
        assert torch.equal(run.activations, seen[place].transpose(0, 1))
        assert run.keep.shape == shape and not run.keep[:, 0].any() and run.keep[:, 1:].all()
        found.run(input_ids=ids)
    assert torch.equal(found[place], seen[place].transpose(0, 1))
    for row in range(2):  # each sequence of a batch is spliced as it is alone
        with torch.no_grad(), attach(model, sae, splice=True):
            together, alone = model(input_ids=ids).logits[row], model(input_ids=ids[row : row + 1]).logits[0]
        torch.testing.assert_close(together, alone, rtol=0, atol=1e-4)
    with torch.no_grad(), splice(model, place, lambda x: x):
        torch.testing.assert_close(model(input_ids=ids).logits, model(input_ids=ids).logits)


def test_a_stream_with_more_axes_is_refused_with_what_was_seen():
    model = tiny_model("gemma3n_text")
    layout = DecoderLayout.find(model)
    blocks = layout.layers_path if layout is not None else "model.layers"
    with pytest.raises(HookPointError, match=r"cannot be matched with tokens: its shape was \(\d, 2, 2, 32\)"):
        with attach(model, sae_at(f"{blocks}.1.output", 32)):
            pass


def test_an_experts_share_of_the_tokens_is_refused():
    class Flat(nn.Linear):
        def forward(self, x):
            return super().forward(x.flatten(0, 1)[1:]).sum() * 0 + x

    class Inner(nn.Module):
        def __init__(self, mlp):
            super().__init__()
            self.mlp, self.expert = mlp, nn.Linear(16, 16)

        def forward(self, x):
            return self.mlp(x) + self.expert(x.flatten(0, 1)[1:]).sum()

    model = copy.deepcopy(build("llama"))
    model.model.layers[0].mlp = Inner(model.model.layers[0].mlp)
    with pytest.raises(HookPointError, match=r"its shape was \(3, 16\) for 2 rows of 2"):
        with attach(model, sae_at("model.layers.0.mlp.expert.output", 16)):
            pass


def test_blocks_that_hand_on_more_than_one_stream_are_refused_until_they_do_not():
    model = copy.deepcopy(build("llama"))
    handle = model.model.layers[1].register_forward_pre_hook(lambda _, args: (args[0] + 1, *args[1:]))
    for place in ("resid_pre.1", "resid_post.0"):
        with pytest.raises(HookPointError, match="more than one residual stream"):
            with attach(model, sae_at(place, 16)):
                pass
    handle.remove()
    with torch.no_grad(), attach(model, sae_at("resid_pre.1", 16)) as run:
        model(input_ids())
    assert run.features.shape == (2, 5, 64)


# -- virtual tokens ---------------------------------------------------------------------------------------------------
ADAPTERS = {
    "lora": LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False),
    "prefix": PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    "prompt": PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
}


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_virtual_tokens_are_left_out_and_the_texts_own_are_counted(adapter):
    torch.manual_seed(0)
    model = get_peft_model(copy.deepcopy(build("llama")), ADAPTERS[adapter]).eval()
    ids, sae = input_ids(2, 5), sae_at("model.layers.0.output", 16)
    extra = 3 if adapter == "prompt" else 0
    with torch.no_grad(), attach(model, sae) as run:
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
    assert run.keep.long().tolist() == [[0] * extra + [0, 1, 1, 1, 1]] * 2
    assert run.call.ids[:, extra:].tolist() == ids.tolist()
