"""Steering that stays: language models with a feature turned up in their own weights, and what steering does.

`steer_model` writes a model that runs without hfsae. `steering_report` measures a feature at many strengths.
`hfsae.analysis.steer` steers a model while it runs.
"""

from hfsae.steering.bias_places import BiasPlace, NoBiasError
from hfsae.steering.steered_model import SteeredModel, steer_model
from hfsae.steering.steering_page import steering_plot, usable_words, write_steering_page
from hfsae.steering.strength_grid import (
    STRENGTHS,
    SteeringReport,
    StrengthEffect,
    UsableLimits,
    repeated_share,
    steering_report,
)
from hfsae.steering.text_effect import TextEffect, text_effects

__all__ = [
    "STRENGTHS",
    "BiasPlace",
    "NoBiasError",
    "SteeredModel",
    "SteeringReport",
    "StrengthEffect",
    "TextEffect",
    "UsableLimits",
    "repeated_share",
    "steer_model",
    "steering_plot",
    "steering_report",
    "text_effects",
    "usable_words",
    "write_steering_page",
]
