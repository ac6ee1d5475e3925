"""What takes features for positive refuses an SAE whose features may be negative: it would leave these out."""

from hfsae.autoencoder.architecture import Architecture


def refuse_signed(sae: Architecture, what: str) -> None:
    """Raises for an SAE whose features may be negative.

    Args:
        sae: The SAE.
        what: Who cannot use it, at the beginning of a sentence.

    Raises:
        ValueError: Says what to use instead.
    """
    if sae.signed:
        raise ValueError(
            f"{what} takes features for positive, which those of {type(sae).__name__} need not be: use "
            "sae.by_sign(), or save that: a topk SAE that computes the same, with a feature for each sign."
        )
