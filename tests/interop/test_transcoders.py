"""Transcoders of other projects, run and spliced at the place they write to, in a real language model."""

from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from hfsae import SAE
from hfsae.hooks import capture
from tests.interop.foreign import FOREIGN, LAYER, D

IDS = torch.randint(0, 32, (2, 7), generator=torch.Generator().manual_seed(0))
READS, WRITES = f"transformer.h.{LAYER}.mlp.input", f"transformer.h.{LAYER}.mlp.output"
# The same places in GPT-2 for those that belong to another model.
HERE = {"hook_point": READS, "target_hook_point": WRITES, "base_model": None, "exclude_special_tokens": False}
TRANSCODERS = ["saelens_transcoder", "sparsify_transcoder", "qwen3_transcoder"]


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    torch.manual_seed(0)
    config = GPT2Config(n_layer=LAYER + 1, n_embd=D, n_head=2, vocab_size=32, n_positions=16)
    return GPT2LMHeadModel(config).eval()


@torch.no_grad()
@pytest.mark.parametrize("name", TRANSCODERS)
def test_features_are_read_at_one_place_and_written_at_the_other(name: str, model: PreTrainedModel, tmp_path: Path):
    foreign = FOREIGN[name](tmp_path)
    sae = SAE.from_pretrained(foreign.path, **{**foreign.options, **HERE})
    with capture(model, [READS, WRITES]) as activations:
        clean = activations.run(input_ids=IDS)
    x = clean[READS].flatten(0, 1)
    features = foreign.features(x)
    with sae.attach(model) as run:
        untouched = model(IDS).logits
    torch.testing.assert_close(run.features.to_dense().flatten(0, 1), features, rtol=0, atol=1e-5)
    torch.testing.assert_close(untouched, model(IDS).logits)
    with sae.attach(model, splice=True), capture(model, WRITES) as activations:
        spliced = activations.run(input_ids=IDS)[WRITES]
    torch.testing.assert_close(spliced.flatten(0, 1), foreign.decode(features, x), rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", TRANSCODERS)
def test_with_the_error_kept_the_model_stays_as_it_is(name: str, model: PreTrainedModel, tmp_path: Path):
    foreign = FOREIGN[name](tmp_path)
    sae = SAE.from_pretrained(foreign.path, **{**foreign.options, **HERE})
    clean = model(IDS).logits
    with sae.attach(model, splice=True):
        assert not torch.allclose(model(IDS).logits, clean, atol=1e-3)
    with sae.attach(model, splice=True, keep_error=True):
        torch.testing.assert_close(model(IDS).logits, clean, rtol=0, atol=1e-5)
