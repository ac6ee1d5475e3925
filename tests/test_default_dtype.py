"""What is measured and trained does not depend on torch's default dtype and device, which other code may set."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from hfsae import (
    SAE,
    SAETrainer,
    collect_features,
    contrast,
    diff,
    evaluate_sae,
    feature_activations,
    feature_effects,
    logit_effects,
    steer,
)
from hfsae.analysis.shading import shaded_features
from hfsae.scores.planted import PlantedDictionary
from hfsae.training import SAETrainingArguments
from tests.analysis.tiny import setting, texts
from tests.diffing.planted import activations, crosscoder


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def collected() -> object:
    found = collect_features(*setting(), texts(), max_tokens=300, disable_tqdm=True)
    return [found.densities, [found.of(feature).maximum for feature in found.features.tolist()]]


def effects() -> object:
    return feature_effects(*setting(), "w1 w2 w3 w4", n_exact=2)


def logits() -> object:
    sae, model, _ = setting()
    return [*logit_effects(sae, model, [1, 2])]


def contrasted() -> object:
    positive, negative = ["w1 w2 w3", "w1 w4 w3", "w1 w5 w6"], ["w7 w8 w9", "w9 w4 w2", "w9 w9 w6"]
    return contrast(*setting(), positive, negative, n_permutations=20)


def read() -> object:
    sae, model, tokenizer = setting()
    found = feature_activations(sae, model, tokenizer, ["w1 w2 w3 w4", ""], [1, 2, 3])
    lines = shaded_features(sae, model, tokenizer, "w1 w2 w3 w4", top=2, color=False)
    return [found.to_dict(), *lines]


def steered() -> Tensor:
    sae, model, _ = setting()
    with torch.no_grad(), steer(model, sae, {1: 3.3}):
        return model(torch.tensor([[1, 2, 3, 4]])).logits


def measured() -> object:
    return evaluate_sae(*setting()[:2], texts(), setting().tokenizer, max_tokens=100)


def planted() -> object:
    return PlantedDictionary.plant(8, 32, active=2, seed=0).sample(20, torch.Generator().manual_seed(0))


DONE = [collected, effects, logits, contrasted, read, steered, measured, planted]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("done", DONE, ids=lambda one: one.__name__)
def test_what_is_measured_is_what_it_is_with_float32(done: Callable[[], object], dtype: torch.dtype):
    expected = repr(done())
    with default_dtype(dtype):
        found = done()
    assert repr(found) == expected


@pytest.mark.parametrize("done", [collected, effects, logits, contrasted, measured], ids=lambda one: one.__name__)
def test_a_default_device_changes_nothing(done: Callable[[], object]):
    """Any device but the one of the tensors shows what names none; this one is on every machine."""
    expected = repr(done())
    with torch.device("meta"):
        found = done()
    assert repr(found) == expected


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_so_is_what_sources_are_compared_by(dtype: torch.dtype):
    sae, x = crosscoder(), activations(500)
    expected = diff(sae, activations=x)
    with default_dtype(dtype):
        found = diff(sae, activations=x)
    assert found.classes == expected.classes and torch.equal(found.firing.maximum, expected.firing.maximum)
    assert torch.equal(found.error_ratios.nan_to_num(-9), expected.error_ratios.nan_to_num(-9))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("architecture", ["topk", "standard", "jumprelu"])
def test_weights_are_float32_and_the_same(tmp_path, architecture: str, dtype: torch.dtype):
    rows = torch.randn(1000, 8, generator=torch.Generator().manual_seed(0))
    options = {"training_tokens": 512, "train_batch_tokens": 64, "n_features": 32, "disable_tqdm": True}

    def trained(name: str) -> SAE:
        args = SAETrainingArguments(output_dir=str(tmp_path / name), architecture=architecture, k=4, **options)
        return SAETrainer(args=args, activations=rows).train().sae

    expected = trained("float32")
    with default_dtype(dtype):
        found = trained("other")
    assert found.dtype == torch.float32
    assert torch.equal(found.W_dec, expected.W_dec) and torch.equal(found.encoder.weight, expected.encoder.weight)
