"""Scores of features: how well they tell concepts, what absorbs them, and whether another run finds them again.

found = match_features(sae, sae_of_another_seed)
found.stability
"""

from hfsae.scores.matching import Matching, match_features
from hfsae.scores.noise import Interval, Ranking, bootstrap, ranking

__all__ = [
    "Interval",
    "Matching",
    "Ranking",
    "bootstrap",
    "match_features",
    "ranking",
]
