"""Steering that stays: language models with a feature turned up in their own weights, and what steering does.

`steer_model` writes a model that runs without hfsae. `hfsae.analysis.steer` steers a model while it runs.
"""

from hfsae.steering.bias_places import BiasPlace, NoBiasError
from hfsae.steering.steered_model import SteeredModel, steer_model
from hfsae.steering.text_effect import TextEffect, text_effects

__all__ = ["BiasPlace", "NoBiasError", "SteeredModel", "TextEffect", "steer_model", "text_effects"]
