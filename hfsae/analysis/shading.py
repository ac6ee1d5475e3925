"""A text in a terminal, its tokens shaded by how strongly a feature fires on each."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from hfsae.analysis.activations import read_sequences
from hfsae.analysis.never_trained import left_out_note
from hfsae.analysis.token_text import TokenTexts
from hfsae.analysis.weights import chosen_features, has_logit_effects, logit_effects
from hfsae.autoencoder import SparseAutoencoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# From no activation to the largest: the background's red, green and blue.
_PALE, _FULL = (255, 247, 236), (215, 48, 31)
_PLAIN = "\x1b[0m"


def shaded_features(
    sae: SparseAutoencoder,
    model: PreTrainedModel,
    tokenizer: "PreTrainedTokenizerBase",
    text: str,
    *,
    features: Sequence[int] | None = None,
    top: int = 5,
    color: bool = True,
    labels: Mapping[int, str] | None = None,
) -> Iterator[str]:
    """A heading and the shaded text for each feature.

    Args:
        sae: The SAE.
        model: Its language model.
        tokenizer: Its tokenizer.
        text: What is read.
        features: Which features; None takes those with the largest activations on the text.
        top: How many of these.
        color: Whether to shade by colours of the terminal; otherwise tokens are marked `[token|value]`.
        labels: What features are called.

    Yields:
        Strings to print.

    Raises:
        ValueError: If the text has no token, a feature is unknown, or `top` is below 1.
    """
    if top < 1:
        raise ValueError(f"top is {top}: expected 1 or more features.")
    if features is not None:
        features = chosen_features(sae, features).tolist()
    pieces = sorted(read_sequences(sae, model, tokenizer, [text]), key=lambda piece: piece.positions[0])
    if not pieces:
        raise ValueError("the text has no token: there is nothing to read.")
    texts = [part for piece in pieces for part in piece.texts]
    maxima = torch.zeros(sae.config.n_features, dtype=torch.float32)
    for piece in pieces:
        maxima.scatter_reduce_(0, piece.features.indices.flatten(), piece.features.values.flatten(), "amax")
    if features is None:
        features = [index for index in maxima.topk(min(top, len(maxima))).indices.tolist() if maxima[index] > 0]
    if not features:
        counts = any(kept for piece in pieces for kept in piece.kept)
        yield (
            "no feature fires on this text" if counts else "no token of this text counts for this SAE: write some more"
        )
        return
    promoted, note = _promoted(sae, model, tokenizer, features)
    for feature, tokens in zip(features, promoted, strict=True):
        values = [value for piece in pieces for value in piece.features.of(feature).tolist()]
        name = f" ({printable(labels[feature])})" if labels and feature in labels else ""
        yield f"feature {feature}{name}: at most {max(values):.3g}{tokens}"
        yield shaded(texts, values, color=color) + "\n"
    if note:
        yield f"of the promoted tokens {note}"


def shaded(texts: Sequence[str], values: Sequence[float], *, color: bool) -> str:
    """One line or more of text in which stronger tokens are darker.

    Args:
        texts: The tokens.
        values: How strongly the feature fires on each, 0 where it does not.
        color: As in `shaded_features`.
    """
    largest = max(values, default=0.0)
    parts = []
    for text, value in zip(texts, values, strict=True):
        shown = printable(text)
        if value <= 0 or not shown:
            parts.append(shown)
        elif color:
            shade = _shade(value / largest)
            # A background that ran over the end of a line would fill the terminal's whole row.
            parts.append(shade + shown.replace("\n", f"{_PLAIN}\n{shade}") + _PLAIN)
        else:
            parts.append(f"[{shown}|{value:.2g}]")
    return "".join(parts)


def _shade(share: float) -> str:
    """The code for black on a background that is darker the larger the share."""
    rgb = (round(pale + (full - pale) * share) for pale, full in zip(_PALE, _FULL, strict=True))
    return f"\x1b[30;48;2;{';'.join(map(str, rgb))}m"


def printable(text: str) -> str:
    """The text with line breaks marked, and without characters that would steer the terminal."""
    safe = "".join(c if c in "\n\t" or c.isprintable() else "\ufffd" for c in text)
    return safe.replace("\n", "↵\n")


def _promoted(
    sae: SparseAutoencoder, model: PreTrainedModel, tokenizer: "PreTrainedTokenizerBase", features: Sequence[int]
) -> tuple[list[str], str]:
    """What each feature promotes, in words, and what is left out; nothing where it writes into no residual stream."""
    if not has_logit_effects(sae, model):
        return [""] * len(features), ""
    effects = logit_effects(sae, model, features, k=5)
    texts = TokenTexts(tokenizer)
    words = [f", promotes {' '.join(repr(texts([i])[0]) for i in row)}" for row in effects.promoted.tolist()]
    return words, left_out_note(effects.left_out)
