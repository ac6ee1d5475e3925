"""Which types numbers are in: never narrower than a sum wants, nor than a file says."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from hfsae import SAE, collect_features, evaluate_sae
from hfsae.analysis import feature_effects, logit_effects, neighbours
from hfsae.evaluation import evaluate_together
from hfsae.functional import at_least_float32
from hfsae.functional.precision import own_precision
from hfsae.scores import match_features


@pytest.mark.parametrize(
    "given, expected",
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_narrow_floats_are_widened_and_wide_ones_left_alone(given: torch.dtype, expected: torch.dtype):
    tensor = torch.ones(2, dtype=given)
    assert at_least_float32(tensor).dtype == expected
    assert given != expected or at_least_float32(tensor) is tensor


def test_products_are_in_the_types_of_their_tensors_inside_and_narrow_again_outside():
    x = torch.ones(2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        with own_precision():
            assert (x @ x).dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        assert (x @ x).dtype == torch.bfloat16
    with own_precision(), torch.autocast("cpu", torch.bfloat16):  # one that stands inside is meant
        assert (x @ x).dtype == torch.bfloat16


TEXTS = ["def main(self):\n    return self.values[0]\n" * 6, "class Reader(Base):\n    pass\n" * 6]
QUIET = {"disable_tqdm": True}


def _collected(sae: SAE, model: Any, tokenizer: Any) -> Any:
    return collect_features(sae, model, tokenizer, TEXTS, **QUIET).tensors()


def _measured(sae: SAE, model: Any, tokenizer: Any) -> Any:
    return evaluate_sae(sae, model, TEXTS, tokenizer, baselines=True, **QUIET)


def _measured_together(sae: SAE, model: Any, tokenizer: Any) -> Any:
    return evaluate_together({"a": sae}, model, TEXTS, tokenizer, **QUIET)


def _promoted(sae: SAE, model: Any, tokenizer: Any) -> Any:
    return [part for part in logit_effects(sae, model, [0, 5, 7]) if part is not None]


def _close(sae: SAE, model: Any, tokenizer: Any) -> Any:
    return list(neighbours(sae, [0, 5, 7]))


def _effects(sae: SAE, model: Any, tokenizer: Any) -> Any:
    found = feature_effects(sae, model, tokenizer, "def main(self): return", n_exact=2)
    return [found.loss, *((one.feature, one.attribution, one.loss_change or 0.0) for one in found.features)]


def _matched(sae: SAE, model: Any, tokenizer: Any) -> Any:
    other = SAE.from_config(sae.config)
    with torch.no_grad():
        other.W_dec.copy_(sae.W_dec.flip(0))
    found = match_features(sae, other, n_draws=10)
    return [found.second, found.cosines, found.chance]


def _plain(figures: Any) -> Any:
    """Figures without what is no number, in the containers that `assert_close` takes."""
    if isinstance(figures, dict):
        return {name: _plain(value) for name, value in figures.items() if not isinstance(value, str | None)}
    return [_plain(value) for value in figures] if isinstance(figures, list | tuple) else figures


@pytest.mark.parametrize("figures", [_collected, _measured, _measured_together, _promoted, _close, _effects, _matched])
def test_figures_are_those_that_were_found_without_autocast_around(figures: Callable, trained_folder):
    sae = SAE.from_pretrained(trained_folder)
    given = sae, sae.load_base_model(), sae.load_tokenizer()
    torch.manual_seed(0)
    expected = figures(*given)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        found = figures(*given)
    torch.testing.assert_close(_plain(found), _plain(expected), rtol=0, atol=0, equal_nan=True)
