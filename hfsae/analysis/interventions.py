"""Changing features while a language model runs: `steer` and `ablate`.

Both edit the SAE's features between its encoder and its decoder, and let the model go on with the difference. So they
are exact for every architecture and input transform, and the SAE's error stays in place.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor, nn

from hfsae.analysis.collection import FeatureCollection
from hfsae.analysis.feature_types import Feature
from hfsae.analysis.weights import chosen_features
from hfsae.attachment import AttachedSAE, attach, refuse_swapped
from hfsae.autoencoder import SparseAutoencoder
from hfsae.functional import SparseFeatures
from hfsae.hooks.calls import Call

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Within so much the cosine of two rows is the same, in bfloat16 too.
_SAME_COSINE = 0.02

Positions = Literal["all", "last", "generated"]
Mode = Literal["add", "clamp"]


@contextmanager
def steer(
    model: nn.Module,
    sae: SparseAutoencoder,
    strengths: Mapping[int, float],
    *,
    mode: Mode = "add",
    maxima: FeatureCollection | Mapping[int, float] | None = None,
    positions: Positions = "all",
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    prompt_length: int | None = None,
) -> Iterator[AttachedSAE]:
    """Strengthens or sets features while a language model runs: `with steer(model, sae, {17: 8.0}): model(...)`.

    A strength is in units of the feature's own activation. `"add"` adds `strength · sae.feature_directions[i]` to the
    model's activation. `"clamp"` adds as much as brings the feature's activation to the strength. Tokens that the
    SAE's config leaves out, and padding, stay as they are. Works around a call and around `model.generate`; contexts
    nest, those entered first act first, so that several SAEs can be steered. Leaving takes every hook off the model.

    Args:
        model: A causal LM; it must itself be called.
        sae: The SAE whose features are meant.
        strengths: Strength by feature; a negative one works against it.
        mode: `"add"` or `"clamp"`.
        maxima: Each feature's largest activation, or a collection that knows it: strengths then are multiples of it.
        positions: `"all"`; `"generated"`: what comes after the prompt; `"last"`: that, and the prompt's last token.
            The prompt is what `generate` is given, whatever the passes in which it reads it. Where the model is called
            by hand, it is the input of a sequence's first call. That call has no cache, or one that is new here.
        tokenizer: Says which tokens are special; without it the model's config does.
        prompt_length: Says how many tokens the prompt has, padding included, where a loop of one's own reads it in
            parts, or without a cache.

    Yields:
        The run; its `features` are those before the change.

    Raises:
        ValueError: For no features, unknown ones, or one that is named twice. Likewise for an unknown mode or
            position, a strength that is not finite, or a feature without a maximum. If the SAE does not fit the model.
        HookPointError: If the model lacks the SAE's hook point.

    Example:
        >>> with steer(model, sae, {17: 2.0}, maxima=collection, positions="generated"):  # doctest: +SKIP
        ...     model.generate(**sae.tokenize("def main("), max_new_tokens=20)
    """
    if mode not in get_args(Mode):
        raise ValueError(f"mode is {mode!r}, expected one of {', '.join(map(repr, get_args(Mode)))}.")
    refuse_swapped(sae, model)
    features = chosen_features(sae, list(strengths), once=True)
    values = torch.tensor(
        [strength * activation_units(sae, feature, maxima) for feature, strength in strengths.items()],
        dtype=torch.float64,
    )
    if not values.isfinite().all():
        raise ValueError(f"strengths are {list(strengths.values())}: expected finite numbers.")

    def change(current: Tensor) -> Tensor:
        wanted = values.to(current)
        return current + wanted if mode == "add" else wanted.expand_as(current)

    with _edited(model, sae, features, change, positions, tokenizer, prompt_length, True) as run:
        yield run


@contextmanager
def ablate(
    model: nn.Module,
    sae: SparseAutoencoder,
    features: Sequence[int] | Tensor,
    *,
    keep_error: bool = True,
    positions: Positions = "all",
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    prompt_length: int | None = None,
) -> Iterator[AttachedSAE]:
    """Runs a language model without some features: `with ablate(model, sae, [17]): model(...)`.

    Args:
        model: A causal LM; it must itself be called.
        sae: The SAE whose features are meant.
        features: The features to set to 0.
        keep_error: Whether only what the features contribute is taken away. Otherwise the whole activation is replaced
            by the reconstruction without them, at every token that the SAE's config does not leave out.
        positions: Where, as in `steer`.
        tokenizer: Says which tokens are special; without it the model's config does.
        prompt_length: As in `steer`.

    Yields:
        The run; its `features` are those before the change.

    Raises:
        ValueError, HookPointError: As `steer`.

    Example:
        >>> with torch.no_grad(), ablate(model, sae, [17]):  # doctest: +SKIP
        ...     logits = model(**sae.tokenize("def main(")).logits
    """
    refuse_swapped(sae, model)
    chosen = chosen_features(sae, features, once=True)
    with _edited(model, sae, chosen, torch.zeros_like, positions, tokenizer, prompt_length, keep_error) as run:
        yield run


def activation_units(
    sae: SparseAutoencoder, feature: int, maxima: FeatureCollection | Mapping[int, float] | None
) -> float:
    """What a strength of 1 is in units of a feature's activation: its maximum where maxima are given, else 1.

    Raises:
        ValueError: If its maximum is not known, or is 0, or the collection is of another SAE.
    """
    if maxima is None:
        return 1.0
    try:
        if isinstance(maxima, FeatureCollection):
            _refuse_another_sae(sae, maxima.of(feature))
            maximum = maxima.of(feature).maximum
        else:
            maximum = maxima[feature]
    except KeyError as error:
        raise ValueError(f"maxima does not know feature {feature}.") from error
    if not maximum > 0:
        raise ValueError(
            f"feature {feature} has the maximum {maximum}, and a strength is a multiple of it: name a feature that "
            "fires, or give strengths in units of activation (without maxima; --unit activation on the command line)."
        )
    return maximum


def _refuse_another_sae(sae: SparseAutoencoder, feature: Feature) -> None:
    """Refuses a feature that was collected of another SAE: how near it lies to its neighbour tells that soon enough.

    A digest of all weights would take long, and would tell an SAE in another precision for another one.
    """
    if len(sae.config.input_widths) > 1 or not feature.decoder_neighbours:
        return
    near = feature.decoder_neighbours[0]
    (_, rows), *_ = sae.decoder_blocks  # where neighbours were found
    if max(feature.index, near.feature) < len(rows):
        pair = rows[[feature.index, near.feature]].detach().float()
        if abs(float(torch.cosine_similarity(pair[0], pair[1], dim=0)) - near.cosine) < _SAME_COSINE:
            return
    raise ValueError(
        f"feature {feature.index} of these maxima is of another SAE: pass the collection of this one "
        "(collect_features)."
    )


@contextmanager
def _edited(
    model: nn.Module,
    sae: SparseAutoencoder,
    features: Tensor,
    change: Callable[[Tensor], Tensor],
    positions: Positions,
    tokenizer: "PreTrainedTokenizerBase | None",
    prompt_length: int | None,
    keep_error: bool,
) -> Iterator[AttachedSAE]:
    """Lets `change` make new values (batch, seq, m) of those of m features, at some positions."""
    if positions not in get_args(Positions):
        raise ValueError(f"positions are {positions!r}, expected one of {', '.join(map(repr, get_args(Positions)))}.")
    attached: list[AttachedSAE] = []

    def edit(found: SparseFeatures) -> SparseFeatures:
        index = features.to(found.indices.device)
        is_chosen = found.indices[..., None] == index  # (batch, seq, K, m)
        current = (found.values[..., None] * is_chosen).sum(-2)
        here = _chosen(positions, attached[0].call, current.shape[:-1]).to(index.device)[..., None]
        kept = torch.where(here & is_chosen.any(-1), 0.0, found.values)
        # The other entries stay in their order, so that tokens without a change keep their reconstruction to the bit.
        values = torch.cat([kept, torch.where(here, change(current), 0.0).to(kept)], -1)
        indices = torch.cat([found.indices, index.expand(*current.shape)], -1)
        return SparseFeatures.from_padded(values, indices, found.n_features)

    with attach(
        model,
        sae,
        splice=True,
        keep_error=keep_error,
        edit=edit,
        tokenizer=tokenizer,
        prompt_length=prompt_length,
    ) as run:
        attached.append(run)
        yield run


def _chosen(positions: Positions, call: Call | None, shape: torch.Size) -> Tensor:
    """(batch, seq) bool: which tokens of a call are meant."""
    assert call is not None  # what is spliced knows its tokens
    if positions == "all":
        return torch.ones(shape, dtype=torch.bool)
    return call.generated if positions == "generated" else call.last
