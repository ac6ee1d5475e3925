"""Running a language model with an SAE attached: reading its activations, or taking their place."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hfsae import hooks
from hfsae.configuration import SAEConfig
from hfsae.data.encoding import special_token_ids
from hfsae.functional import SparseFeatures
from hfsae.hooks import HookPoint, resolve_hook_point, width
from hfsae.hooks.access import visiting
from hfsae.hooks.layout import DecoderLayout
from hfsae.modeling import SAE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FeatureEdit = Callable[[SparseFeatures], SparseFeatures | Tensor]


@dataclass(frozen=True)
class _Seen:
    """What an SAE saw and made in one forward pass."""

    activations: Tensor
    features: SparseFeatures
    reconstruction: Tensor
    keep: Tensor | None


class AttachedSAE:
    """What an SAE made of the model's last forward pass; given by `attach`. Stays readable after the context.

    In `generate` the first forward pass holds the prompt and every later one the newest token alone.

    Attributes:
        sae: The SAE.
    """

    def __init__(self, sae: SAE):
        self.sae = sae
        self._seen: _Seen | None = None

    @property
    def activations(self) -> Tensor:
        """(batch, seq, d_in) at the SAE's `hook_point`, as the model computed them: its dtype, its device."""
        return self._last.activations

    @property
    def features(self) -> SparseFeatures:
        """The features of every token, (batch, seq, n_features), before any edit, on the SAE's device."""
        return self._last.features

    @property
    def reconstruction(self) -> Tensor:
        """(batch, seq, d_out), what these features stand for, on the SAE's device."""
        return self._last.reconstruction

    @property
    def keep(self) -> Tensor | None:
        """(batch, seq) bool, False for tokens that the SAE's config leaves out (special tokens, positions, padding).

        None where the model itself was not called, so that its tokens are not known.
        """
        return self._last.keep

    @property
    def _last(self) -> _Seen:
        if self._seen is None:
            raise RuntimeError("the model has not passed the SAE's hook point yet: run the model inside the context.")
        return self._seen

    def __repr__(self) -> str:
        seen = "nothing seen yet" if self._seen is None else repr(self.features)
        return f"AttachedSAE({type(self.sae).__name__} at {self.sae.config.hook_point}, {seen})"


@contextmanager
def attach(
    sae: SAE,
    model: PreTrainedModel,
    *,
    splice: bool = False,
    keep_error: bool = False,
    edit: FeatureEdit | None = None,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
) -> Iterator[AttachedSAE]:
    """Runs a language model with an SAE reading, or spliced in: `with attach(sae, model) as run: model(...)`.

    Spliced in, the reconstruction takes the activation's place at the SAE's target (`target_hook_point` of a
    transcoder, else `hook_point`). Tokens that the config leaves out (special tokens, `exclude_positions`) and padding
    keep their own activation, because the SAE never learned theirs; positions count from the first token that is no
    padding and go on through the steps of `generate`. The SAE may live on another device and in another dtype than the
    model. Gradients flow, unless switched off outside. Leaving the context takes every hook off the model.

    Args:
        sae: The SAE.
        model: A causal LM that has the config's hook points. It must itself be called (`model(...)`,
            `model.generate(...)`): a call of one of its parts does not tell which tokens it is about.
        splice: Whether the activation is replaced; otherwise it is only read.
        keep_error: Whether the error x − x̂ is added back, as a constant, so that the model's output stays exactly as
            it is while gradients reach it through the features alone, and an `edit` has its effect and no other. Only
            with `splice`.
        edit: Gets the features of the forward pass and returns those to be spliced in instead, sparse or dense. Only
            with `splice`.
        tokenizer: Says which tokens are special. Without it they are the BOS, EOS and padding tokens of the model's
            config and generation config.

    Yields:
        The run, whose `features`, `activations` and `reconstruction` are those of the model's last forward pass.

    Raises:
        HookPointError: If the model has no such hook point.
        ValueError: If the config names no hook point, if the activations there have another size than the SAE's, or
            for `keep_error` or `edit` without `splice`. All before anything runs.

    Example:
        >>> with attach(sae, model, splice=True) as run:  # doctest: +SKIP
        ...     model.generate(**tokenizer("def main(", return_tensors="pt"), max_new_tokens=20)
    """
    if (keep_error or edit is not None) and not splice:
        raise ValueError("keep_error and edit are about what is spliced in: pass splice=True too.")
    source, target = hook_points_of(sae.config, model)
    attachment = _Attachment(sae, _Policy(sae.config, model, tokenizer), edit, keep_error)
    with ExitStack() as stack:
        stack.callback(model.register_forward_pre_hook(attachment.before_model, with_kwargs=True).remove)
        stack.callback(model.register_forward_hook(attachment.after_model, always_call=True).remove)
        stack.enter_context(visiting(model, DecoderLayout.find(model), source, attachment.read))
        if splice:
            # The error is held constant: with gradients through it too, those through the features would cancel.
            stack.enter_context(
                hooks.splice(model, target, attachment.replace, keep_error=keep_error, detach_error=keep_error)
            )
        yield attachment.run


def hook_points_of(config: SAEConfig, model: PreTrainedModel) -> tuple[HookPoint, HookPoint]:
    """Where in a model an SAE reads and where it writes: the same place unless it is a transcoder.

    Args:
        config: The SAE's config.
        model: A causal LM.

    Raises:
        HookPointError: If the model has no such place.
        ValueError: If the config names none, or the activations there have another size than the SAE's.
    """
    if config.hook_point is None:
        raise ValueError(
            "this SAE's config names no hook point. Set sae.config.hook_point to the place it was trained on, such as "
            "'resid_post.8'; hfsae.hooks.available_hook_points(model) lists what the model offers."
        )
    target = config.target_hook_point or config.hook_point
    points = []
    for name, size, field in ((config.hook_point, config.d_in, "d_in"), (target, config.d_out, "d_out")):
        point = resolve_hook_point(model, name)
        if (there := width(model, point)) != size:
            raise ValueError(
                f"the activations of {type(model).__name__} at {point} have {there} dimensions, but this SAE has "
                f"{field}={size}: it belongs to {config.base_model or 'another model or hook point'}."
            )
        points.append(point)
    return points[0], points[1]


class _Attachment:
    """The hooks of one attached SAE, and what passes between them in a forward pass."""

    def __init__(self, sae: SAE, policy: "_Policy", edit: FeatureEdit | None, keep_error: bool):
        self.run = AttachedSAE(sae)
        self._sae = sae
        self._policy = policy
        self._edit = edit
        self._keep_error = keep_error
        self._keep: Tensor | None = None
        self._in_this_pass: _Seen | None = None

    def before_model(self, model: PreTrainedModel, args: tuple, kwargs: dict[str, Any]) -> None:
        self._keep = self._policy.keep(call_arguments(model, args, kwargs))

    def after_model(self, *_: Any) -> None:
        """Also after a failed or stopped pass: what was noted must not be taken for the next one's."""
        self._keep = self._in_this_pass = None

    def read(self, x: Tensor) -> None:
        output = self._sae(x.to(self._sae.W_dec.device))
        assert output.features is not None and output.reconstruction is not None
        self._in_this_pass = self.run._seen = _Seen(x, output.features, output.reconstruction, self._keep)

    def replace(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        seen = self._in_this_pass
        if seen is None or seen.keep is None or seen.keep.shape != x.shape[:-1]:
            raise ValueError(
                f"activations {tuple(x.shape)} are to be replaced, but which tokens are they? Call the "
                "model itself (not a part of it, nor its experts' hook points), with input_ids or inputs_embeds."
            )
        keep = seen.keep.to(x.device)[..., None]
        reconstruction = torch.where(keep, seen.reconstruction.to(x.device), x)
        edited = reconstruction
        if self._edit is not None:
            written = self._sae.decode(self._edit(seen.features), seen.activations.to(self._sae.W_dec.device))
            edited = torch.where(keep, written.to(x.device), x)
        return (reconstruction, edited) if self._keep_error else edited


def call_arguments(model: PreTrainedModel, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """What a model is called with, by name, for a forward pre-hook."""
    arguments = inspect.signature(model.forward).bind_partial(*args, **kwargs).arguments
    return {**arguments.pop("kwargs", {}), **arguments}


def cache_of(call: dict[str, Any]) -> Any:
    """The cache that a call is given, None without one."""
    return call.get("past_key_values", call.get("cache_params"))


class CachedTokens:
    """Tells how many tokens a call's cache holds, from one call to the next."""

    def __init__(self) -> None:
        self._tokens_in: WeakKeyDictionary[Any, int] = WeakKeyDictionary()

    def before(self, call: dict[str, Any], new: int) -> int:
        """The number before a call that adds `new` tokens."""
        cache = cache_of(call)
        if not hasattr(cache, "get_seq_length"):
            return 0
        try:
            return int(cache.get_seq_length())
        except ValueError:  # the cache of a state space model holds a state, not tokens, and does not count them
            cached = self._tokens_in.get(cache, 0)
            self._tokens_in[cache] = cached + new
            return cached


class _Policy:
    """Which tokens of a call an SAE's config leaves out, told from what the model is called with."""

    def __init__(self, config: SAEConfig, model: PreTrainedModel, tokenizer: "PreTrainedTokenizerBase | None"):
        self._positions = torch.tensor(config.exclude_positions, dtype=torch.long)
        special = _special_token_ids(model, tokenizer) if config.exclude_special_tokens else []
        self._special = torch.tensor(special, dtype=torch.long)
        self._cached = CachedTokens()

    def keep(self, call: dict[str, Any]) -> Tensor | None:
        """(batch, seq) bool for the tokens of one call; None if it has neither ids nor embeddings."""
        ids = call.get("input_ids")
        tokens = call.get("inputs_embeds") if ids is None else ids
        if tokens is None:
            return None
        shape, device = tokens.shape[:2], tokens.device
        mask = call.get("attention_mask")
        mask = mask if isinstance(mask, Tensor) and mask.dim() == 2 else None
        left_out = torch.isin(self._positions_of(call, mask, shape, device), self._positions.to(device))
        keep = ~left_out.expand(shape)
        if mask is not None:
            keep = keep & mask[:, -shape[1] :].bool().to(device)
        return keep if ids is None else keep & ~torch.isin(ids, self._special.to(device))

    def _positions_of(
        self, call: dict[str, Any], mask: Tensor | None, shape: Sequence[int], device: torch.device
    ) -> Tensor:
        """(batch or 1, seq): how many tokens come before each, padding not counted, what is in the cache counted."""
        given = call.get("position_ids")
        if isinstance(given, Tensor) and given.dim() == 2:
            return given.to(device)
        cached = self._cached.before(call, new=shape[1])
        if mask is not None and mask.shape[1] >= cached + shape[1]:
            return (mask.long().cumsum(1) - 1)[:, -shape[1] :].to(device)
        return torch.arange(cached, cached + shape[1], device=device)[None]


def _special_token_ids(model: PreTrainedModel, tokenizer: "PreTrainedTokenizerBase | None") -> list[int]:
    if tokenizer is not None:
        return special_token_ids(tokenizer)
    sources = [model.config.get_text_config(), getattr(model, "generation_config", None)]
    ids: set[int] = set()
    for source in sources:
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            value = getattr(source, name, None)
            ids.update(value if isinstance(value, list | tuple) else [] if value is None else [value])
    return sorted(ids)
