"""The rows of an activation that belong to the tokens a model was given."""

from collections.abc import Sequence

from torch import Tensor

from hfsae.hooks.points import HookPoint, HookPointError


def of_tokens(activation: Tensor, shape: Sequence[int], place: str | HookPoint) -> Tensor:
    """What passed at a place, without the virtual tokens that prompt tuning puts before the text's own.

    Args:
        activation: (batch, seq, d) with at least as many rows as tokens, or (batch * seq, d).
        shape: (batch, seq) of the token ids.
        place: Its name, for the message.

    Returns:
        (batch, seq, d), a view.

    Raises:
        HookPointError: If the rows cannot be matched with the tokens.
    """
    batch, seq = shape
    if activation.dim() == 2 and len(activation) == batch * seq:
        return activation.unflatten(0, (batch, seq))
    if activation.dim() != 3 or len(activation) != batch or activation.shape[1] < seq:
        raise HookPointError(
            f"{place} saw activations of shape {tuple(activation.shape)} for {batch} x {seq} tokens: they cannot be "
            "matched with tokens (an expert, say, is given a share of them). Choose another hook point."
        )
    return activation[:, activation.shape[1] - seq :]
