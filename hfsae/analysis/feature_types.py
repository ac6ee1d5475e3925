"""What is known of features: as tensors of all of them, and of one feature in plain values."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor


@dataclass(frozen=True)
class About:
    """What a collection was made of.

    Attributes:
        n_tokens: Tokens that counted.
        n_features: Width of the SAE.
        before: Tokens in front of an example's token in its window.
        after: Tokens behind it.
        context_length: Tokens that the language model saw at once, at most.
        hook_point: Where the SAE reads.
        base_model: The language model.
        weights_sha256: Digest of the SAE's weights.
        seed: Of the sample.
        dataset: What the caller said of the text.
        model_precision: What the language model's products were made in, such as `"bfloat16"`; None of older
            collections.
        settings: What the SAE's config said that features depend on, such as `k`; None of older collections.
    """

    n_tokens: int
    n_features: int
    before: int
    after: int
    context_length: int
    hook_point: str | None
    base_model: str | None
    weights_sha256: str
    seed: int
    dataset: str | None = None
    model_precision: str | None = None
    settings: dict[str, Any] | None = None


class Statistics(NamedTuple):
    """Sums over the text, of n features.

    Attributes:
        tokens_firing: int64 (n_features,), on how many tokens each feature of the SAE fires.
        totals: float64 (n,), the sum of activations.
        maxima: float32 (n,), the largest activation.
        counts: int64 (n, bins), how many activations lie in each of equal bins from 0 to 2^exponent.
        exponents: int64 (n,).
    """

    tokens_firing: Tensor
    totals: Tensor
    maxima: Tensor
    counts: Tensor
    exponents: Tensor


class Examples(NamedTuple):
    """Tokens on which features fire, with what stands around them: `size` of each of n features, the best first.

    Attributes:
        document: int64 (n, size), the row of the dataset; −1 where a feature has no further example.
        position: int64 (n, size), the token's position in its document.
        context: int64 (n, size), a number that is the same for equal contexts.
        score: float64 (n, size), what they are ordered by.
        tokens: int32 (n, size, window), the example's token at `before`; −1 where there is none.
        activations: float32 (n, size, window), of this feature.
        partners: int32 (n, size, partners), the strongest features of the example's token; −1 where there is none.
    """

    document: Tensor
    position: Tensor
    context: Tensor
    score: Tensor
    tokens: Tensor
    activations: Tensor
    partners: Tensor


@dataclass(frozen=True)
class Example:
    """One token on which a feature fires, with its window.

    Attributes:
        document: Row of the dataset.
        position: Of the token in its document, special tokens that were added not counted.
        activation: The feature's value there.
        token_ids: The window.
        activations: The feature's value on each token of the window.
        peak: Where in the window the token is.
        partners: The strongest features of the token, this one among them.
    """

    document: int
    position: int
    activation: float
    token_ids: list[int]
    activations: list[float]
    peak: int
    partners: list[int]


class TokenEffect(NamedTuple):
    """By how much a feature changes a token's logit; see `logit_effects`."""

    token_id: int
    effect: float


class Neighbour(NamedTuple):
    """A feature nearby, and the cosine."""

    feature: int
    cosine: float


class Partner(NamedTuple):
    """A feature that fires together with another.

    Attributes:
        feature: Its index.
        share: On which share of the sampled tokens of the other one it is among the strongest.
        density: On which share of all tokens it fires.
    """

    feature: int
    share: float
    density: float


@dataclass(frozen=True)
class Feature:
    """Everything that is known of one feature.

    Attributes:
        index: Which one.
        tokens_firing: On how many tokens it fires.
        density: On which share of the tokens.
        maximum: Its largest activation.
        mean: Its mean activation where it fires.
        histogram: How many activations lie in each bin.
        bin_width: The width of a bin; the first begins at 0.
        top: The examples of largest activation, strongest first; of each piece of text the best, no context twice.
        sample: A uniform sample of the contexts in which it fires, strongest first.
        promoted: Tokens whose logits it raises most.
        suppressed: Tokens whose logits it lowers most.
        decoder_neighbours: Features that write nearly the same.
        encoder_neighbours: Features that read nearly the same.
        co_firing: Features that fire on the same tokens more often than elsewhere, the most telling first.
        logit_histogram: The middle of each bin of its effects on all tokens' logits, and how many tokens lie in it.
    """

    index: int
    tokens_firing: int
    density: float
    maximum: float
    mean: float
    histogram: list[int]
    bin_width: float
    top: list[Example]
    sample: list[Example]
    promoted: list[TokenEffect]
    suppressed: list[TokenEffect]
    decoder_neighbours: list[Neighbour]
    encoder_neighbours: list[Neighbour]
    co_firing: list[Partner]
    logit_histogram: list[tuple[float, int]] = field(default_factory=list)

    def __repr__(self) -> str:
        return (
            f"Feature({self.index}: fires on {self.density:.4%} of tokens, maximum {self.maximum:.4g}, "
            f"mean {self.mean:.4g}, {len(self.top)} top examples)"
        )

    def quantiles(self, n_bands: int = 5) -> list[list[Example]]:
        """The sample in bands of equal size, from the strongest to the weakest; shorter ones come last."""
        bounds = [round(band * len(self.sample) / n_bands) for band in range(n_bands + 1)]
        return [self.sample[start:end] for start, end in zip(bounds, bounds[1:], strict=False)]
