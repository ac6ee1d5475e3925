"""NaN in, NaN out, on the sparse path.

A rule asks which pre-activations exceed something, and NaN exceeds nothing. So a token that holds NaN, or several
infinities, would have no feature, and its reconstruction would be the offset, a finite one. Such a token has one
entry, the first feature, whose value is NaN. So all that is computed from its entries is NaN, as on the dense path.
The kernels have that rule themselves; here it is for all other devices, whatever the rule of selection.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from hfsae.functional.kernels import serves
from hfsae.functional.patterns import SparsePattern


def apart_from_nan(
    x: Tensor, select: Callable[[Tensor], tuple[SparsePattern, Tensor]]
) -> tuple[SparsePattern, Tensor]:
    """What `select` finds for tokens (N, d) of finite numbers, and an entry that is NaN for each of the others.

    The others are no part of what `select` sees: they take no feature of a batch's budget away from it.
    """
    if serves(x) or not (lost := _not_finite(x)).any():
        return select(x)
    whole = ~lost
    found, found_pre = select(x[whole])
    per_token = torch.ones_like(lost, dtype=torch.int64)
    per_token[whole] = found.per_token
    from_whole = whole.repeat_interleave(per_token)
    features = found.features.new_zeros(len(from_whole))
    features[from_whole] = found.features
    pre = found_pre.new_full((len(from_whole),), torch.nan)
    pre[from_whole] = found_pre
    return SparsePattern(features, per_token, found.n_features), pre


def _not_finite(x: Tensor) -> Tensor:
    """(N,) bool, the tokens that hold NaN or an infinity: in a pre-activation infinities of both signs may meet."""
    # A sum is not finite where one of its terms is not, and asking it is cheap. Large finite terms may add up to one.
    lost = ~x.sum(1, dtype=torch.promote_types(x.dtype, torch.float32)).isfinite()
    if lost.any():
        lost[lost.clone()] = ~x[lost].isfinite().all(1)
    return lost
