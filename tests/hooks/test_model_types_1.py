"""Every model type of transformers' causal-LM mapping, place by place: half 1 of two, for two workers."""

import pytest

from tests.hooks import model_checks
from tests.hooks.model_types import MODEL_TYPES

HALF = MODEL_TYPES[0::2]

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("model_type", HALF)
def test_every_place_is_what_its_name_says(model_type):
    model_checks.every_place_is_what_its_name_says(model_type)


@pytest.mark.parametrize("model_type", HALF)
def test_generating_with_a_cache_is_generating_without(model_type):
    model_checks.generating_with_a_cache_is_generating_without(model_type)
