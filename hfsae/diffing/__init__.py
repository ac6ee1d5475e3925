"""Model diffing: what several sources of a crosscoder share, and what one of them has alone.

found = diff(sae, sae.load_base_model(), texts, sae.load_tokenizer())
found.counts(), found.of("tuned-only")
"""

from hfsae.diffing.classes import Thresholds
from hfsae.diffing.compare import diff
from hfsae.diffing.model_diff import ModelDiff
from hfsae.diffing.scaling import LatentScaling

__all__ = ["LatentScaling", "ModelDiff", "Thresholds", "diff"]
