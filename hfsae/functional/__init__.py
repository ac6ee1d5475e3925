"""Pure tensor code: selecting active features, encoding, decoding, straight-through gradients. Imports torch alone.

`encode` is the one place that chooses between the dense path and the exact sparse one. `reference` holds the plain
formulas that both are tested against.
"""

from hfsae.functional.encode import encode
from hfsae.functional.features import SparseFeatures, TopFeatures
from hfsae.functional.gate import gated_magnitude
from hfsae.functional.patterns import DensePattern, Pattern, SparsePattern
from hfsae.functional.precision import at_least_float32
from hfsae.functional.selection import Above, AbsTopK, BatchTopK, Elementwise, GroupMax, Picked, Selection, TopK
from hfsae.functional.straight_through import count_active, is_active, jump_relu

__all__ = [
    "Above",
    "AbsTopK",
    "BatchTopK",
    "DensePattern",
    "Elementwise",
    "GroupMax",
    "Pattern",
    "Picked",
    "Selection",
    "SparseFeatures",
    "SparsePattern",
    "TopFeatures",
    "TopK",
    "at_least_float32",
    "count_active",
    "encode",
    "gated_magnitude",
    "is_active",
    "jump_relu",
]
