"""Changing features while a language model runs: `steer` and `ablate`.

Both edit the SAE's features between its encoder and its decoder and let the model go on with the difference, so
they are exact for every architecture and input transform, and whatever the SAE does not explain stays in place.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hfsae.analysis.collection import FeatureCollection
from hfsae.analysis.weights import chosen_features
from hfsae.attach import AttachedSAE, CachedTokens, attach, cache_of, call_arguments
from hfsae.functional import SparseFeatures
from hfsae.modeling import SAE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Positions = Literal["all", "last", "generated"]
Mode = Literal["add", "clamp"]


@contextmanager
def steer(
    model: PreTrainedModel,
    sae: SAE,
    strengths: Mapping[int, float],
    *,
    mode: Mode = "add",
    maxima: FeatureCollection | Mapping[int, float] | None = None,
    positions: Positions = "all",
    tokenizer: "PreTrainedTokenizerBase | None" = None,
) -> Iterator[AttachedSAE]:
    """Strengthens or sets features while a language model runs: `with steer(model, sae, {17: 8.0}): model(...)`.

    A strength is in units of the feature's own activation: `"add"` adds `strength · sae.feature_directions[i]` to the
    model's activation, `"clamp"` adds whatever makes the feature's activation the strength. Tokens that the SAE's
    config leaves out, and padding, stay as they are. Works around a call and around `model.generate`; contexts nest,
    those entered first act first, so that several SAEs can be steered. Leaving takes every hook off the model.

    Args:
        model: A causal LM; it must itself be called.
        sae: The SAE whose features are meant.
        strengths: Strength by feature; a negative one works against it.
        mode: `"add"` or `"clamp"`.
        maxima: Each feature's largest activation, or a collection that knows it: strengths then are multiples of it.
        positions: `"all"`; `"last"`: the last token of each forward pass, so in `generate` the prompt's last and each
            new one; `"generated"`: what comes after the first forward pass, which holds the prompt.
        tokenizer: Says which tokens are special; without it the model's config does.

    Yields:
        The run; its `features` are those before the change.

    Raises:
        ValueError: For no features or unknown ones, an unknown mode or position, a feature without a maximum, or an
            SAE that does not fit the model.
        HookPointError: If the model lacks the SAE's hook point.

    Example:
        >>> with steer(model, sae, {17: 2.0}, maxima=collection, positions="generated"):  # doctest: +SKIP
        ...     model.generate(**tokenizer("def main(", return_tensors="pt"), max_new_tokens=20)
    """
    if mode not in get_args(Mode):
        raise ValueError(f"mode is {mode!r}, expected one of {', '.join(map(repr, get_args(Mode)))}.")
    features = chosen_features(sae, list(strengths))
    values = torch.tensor([strength * _unit(feature, maxima) for feature, strength in strengths.items()])

    def change(current: Tensor) -> Tensor:
        wanted = values.to(current)
        return current + wanted if mode == "add" else wanted.expand_as(current)

    with _edited(model, sae, features, change, positions, tokenizer, keep_error=True) as run:
        yield run


@contextmanager
def ablate(
    model: PreTrainedModel,
    sae: SAE,
    features: Sequence[int] | Tensor,
    *,
    keep_error: bool = True,
    positions: Positions = "all",
    tokenizer: "PreTrainedTokenizerBase | None" = None,
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

    Yields:
        The run; its `features` are those before the change.

    Raises:
        ValueError, HookPointError: As `steer`.

    Example:
        >>> with torch.no_grad(), ablate(model, sae, [17]):  # doctest: +SKIP
        ...     logits = model(**tokenizer("def main(", return_tensors="pt")).logits
    """
    chosen = chosen_features(sae, features)
    with _edited(model, sae, chosen, torch.zeros_like, positions, tokenizer, keep_error) as run:
        yield run


def _unit(feature: int, maxima: FeatureCollection | Mapping[int, float] | None) -> float:
    if maxima is None:
        return 1.0
    try:
        maximum = maxima.of(feature).maximum if isinstance(maxima, FeatureCollection) else maxima[feature]
    except KeyError as error:
        raise ValueError(f"maxima does not know feature {feature}.") from error
    if not maximum > 0:
        raise ValueError(f"feature {feature} has the maximum {maximum}: a strength relative to it means nothing.")
    return maximum


@contextmanager
def _edited(
    model: PreTrainedModel,
    sae: SAE,
    features: Tensor,
    change: Callable[[Tensor], Tensor],
    positions: Positions,
    tokenizer: "PreTrainedTokenizerBase | None",
    keep_error: bool,
) -> Iterator[AttachedSAE]:
    """Lets `change` make new values (batch, seq, m) of those of m features, at some positions."""
    if positions not in get_args(Positions):
        raise ValueError(f"positions are {positions!r}, expected one of {', '.join(map(repr, get_args(Positions)))}.")
    if len(features.unique()) < len(features):
        raise ValueError(f"features {features.tolist()}: each may be named once.")
    where = _Where(positions)

    def edit(found: SparseFeatures) -> SparseFeatures:
        index = features.to(found.indices.device)
        is_chosen = found.indices[..., None] == index  # (batch, seq, K, m)
        current = (found.values[..., None] * is_chosen).sum(-2)
        here = where.chosen(current.shape[:-1]).to(index.device)[..., None]
        kept = torch.where(here & is_chosen.any(-1), 0.0, found.values)
        # The other entries stay in their order, so that tokens without a change keep their reconstruction to the bit.
        values = torch.cat([kept, torch.where(here, change(current), 0.0).to(kept)], -1)
        indices = torch.cat([found.indices, index.expand(*current.shape)], -1)
        return SparseFeatures.from_padded(values, indices, found.n_features)

    hook = model.register_forward_pre_hook(where.before_model, with_kwargs=True)
    try:
        with attach(sae, model, splice=True, keep_error=keep_error, edit=edit, tokenizer=tokenizer) as run:
            yield run
    finally:
        hook.remove()


class _Where:
    """Which tokens of each call are meant; told from what the model is called with."""

    def __init__(self, positions: Positions):
        self._positions = positions
        self._cached = CachedTokens()
        self._call: dict[str, Any] = {}
        self._prompt: Tensor | None = None
        self._n_before = 0

    def before_model(self, model: PreTrainedModel, args: tuple, kwargs: dict[str, Any]) -> None:
        self._call = call_arguments(model, args, kwargs)
        ids = self._call.get("input_ids")
        tokens = self._call.get("inputs_embeds") if ids is None else ids
        if self._positions != "generated" or tokens is None:
            return
        if self._cached.before(self._call, new=tokens.shape[1]):
            self._n_before = 0
        elif cache_of(self._call) is None and self._continues(tokens):
            assert self._prompt is not None
            self._n_before = self._prompt.shape[1]
        else:
            self._prompt, self._n_before = tokens, tokens.shape[1]

    def _continues(self, tokens: Tensor) -> bool:
        """Whether a call without a cache holds the prompt and more, as each step of `generate(use_cache=False)`."""
        prompt = self._prompt
        if prompt is None or len(prompt) != len(tokens) or tokens.shape[1] <= prompt.shape[1]:
            return False
        return torch.equal(tokens[:, : prompt.shape[1]], prompt)

    def chosen(self, shape: torch.Size) -> Tensor:
        """(batch, seq) bool."""
        chosen = torch.ones(shape, dtype=torch.bool)
        if self._positions == "generated":
            chosen[:, : self._n_before] = False
        elif self._positions == "last":
            mask = self._call.get("attention_mask")
            is_mask = isinstance(mask, Tensor) and mask.dim() == 2
            real = mask[:, -shape[1] :].bool().cpu() if is_mask else chosen  # type: ignore[index]
            after = real.long().flip(1).cumsum(1).flip(1)
            chosen = real & (after == 1)
        return chosen
