"""What the commands that steer are told: which features, how strongly, and in which unit."""

from typing import Annotated, Literal

from hfsae.command_line import NUMBERS, option

Features = Annotated[list[int], option("--feature", "The feature, or several.", metavar=NUMBERS)]
Strengths = Annotated[
    list[float], option("--strength", "How strongly; one for all features, or one for each: repeat the option.")
]
Unit = Annotated[
    Literal["maximum", "activation"],
    option("--unit", "What a strength of 1 is: the feature's largest activation, or one unit of its activation."),
]


def strengths_of(features: list[int], strengths: list[float]) -> dict[int, float]:
    """Strength by feature.

    Raises:
        ValueError: If there are neither as many strengths as features nor one, or a feature is named twice.
    """
    if len(set(features)) < len(features):
        raise ValueError(f"--feature names {', '.join(map(str, features))}: name each once.")
    if len(strengths) == 1:
        strengths = strengths * len(features)
    if len(strengths) != len(features):
        raise ValueError(
            f"{len(features)} features and {len(strengths)} strengths: give one strength, or one for each."
        )
    return dict(zip(features, strengths, strict=True))
