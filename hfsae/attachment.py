"""Running a language model with an SAE attached: reading its activations, or taking their place."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hfsae.autoencoder.given import ALONE, refuse_unnamed
from hfsae.autoencoder.model import SparseAutoencoder
from hfsae.configuration import SAEConfig
from hfsae.data.left_out import LeftOut
from hfsae.functional import SparseFeatures
from hfsae.functional.features import refuse_other_features
from hfsae.hooks import HookPoint, HookPointError, inner_model
from hfsae.hooks.access import visiting
from hfsae.hooks.calls import Call, CallRecord
from hfsae.hooks.layout import DecoderLayout
from hfsae.hooks.passes import Listener, Passes
from hfsae.hooks.sites import Sites
from hfsae.hooks.splice import splicing
from hfsae.in_model import hook_points_of, left_out_of

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
    call: Call | None
    without_gradients: bool


class AttachedSAE:
    """What an SAE made of the model's last forward pass; given by `attach`. Stays readable after the context.

    In `generate` the first forward pass holds the prompt and every later one the newest token alone, unless there is
    no cache. `call` says which tokens the last one was about.

    Attributes:
        sae: The SAE.
    """

    def __init__(self, sae: SparseAutoencoder, record: CallRecord):
        self.sae = sae
        self._record = record
        self._seen: _Seen | None = None

    @property
    def activations(self) -> Tensor:
        """(batch, seq, d_in) at the SAE's `hook_point`, as the model computed them: its dtype, its device."""
        return self._computed.activations

    @property
    def features(self) -> SparseFeatures:
        """The features of every token, (batch, seq, n_features), before any edit, on the SAE's device."""
        return self._computed.features

    @property
    def reconstruction(self) -> Tensor:
        """(batch, seq, d_out), what these features stand for, on the SAE's device."""
        return self._computed.reconstruction

    @property
    def keep(self) -> Tensor | None:
        """(batch, seq) bool, False for tokens that the SAE's config leaves out (special tokens, positions, padding).

        None where the model itself was not called, so that its tokens are not known.
        """
        return self._last.keep

    @property
    def call(self) -> Call | None:
        """The tokens of the model's last forward pass: their ids, their positions, where the prompt ends.

        None where the model itself was not called.
        """
        return self._record.call if self._seen is None else self._seen.call

    @property
    def _last(self) -> _Seen:
        if self._seen is None:
            raise RuntimeError("the model has not passed the SAE's hook point yet: run the model inside the context.")
        return self._seen

    @property
    def _computed(self) -> _Seen:
        if self._last.without_gradients and torch.is_grad_enabled():
            raise RuntimeError(
                "what was read inside of this block has no gradients, because reentrant gradient checkpointing only "
                "makes them in the backward pass: pass gradient_checkpointing_kwargs={'use_reentrant': False}, or "
                "read it under torch.no_grad()."
            )
        return self._last

    def __repr__(self) -> str:
        seen = "nothing seen yet" if self._seen is None else repr(self.features)
        return f"AttachedSAE({type(self.sae).__name__} at {self.sae.config.hook_point}, {seen})"


@contextmanager
def attach(
    model: nn.Module,
    sae: SparseAutoencoder,
    *,
    splice: bool = False,
    keep_error: bool = False,
    edit: FeatureEdit | None = None,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    prompt_length: int | None = None,
) -> Iterator[AttachedSAE]:
    """Runs a language model with an SAE reading, or spliced in: `with attach(model, sae) as run: model(...)`.

    Spliced in, the reconstruction takes the activation's place at the SAE's target (`target_hook_point` of a
    transcoder, else `hook_point`). Some tokens keep their own activation, because the SAE never learned theirs:
    padding, and what the config leaves out (special tokens, `exclude_positions`). Positions count from the first token
    that is no padding. They go on through the steps of `generate`, or of a loop of one's own. The SAE may live on
    another device and in another dtype than the model. Gradients flow, unless switched off outside. Leaving the
    context takes every hook off the model.

    The hooks act in the thread that entered the context, and in no other. Where a server calls one model from several
    threads, each enters a context of its own. What torch.compile compiled runs uncompiled inside.

    Args:
        model: A causal LM that has the config's hook points, or a wrapper around one (PEFT, DDP, a compiled model). It
            must itself be called (`model(...)`, `model.generate(...)`): a call of one of its parts does not tell which
            tokens it is about.
        sae: The SAE.
        splice: Whether the activation is replaced; otherwise it is only read.
        keep_error: Whether the error x − x̂ is added back, as a constant. The model's output then stays exactly as it
            is, gradients reach it through the features alone, and an `edit` has its effect and no other. Only with
            `splice`.
        edit: Gets the features of the forward pass and returns those to be spliced in instead, sparse or dense. Only
            with `splice`.
        tokenizer: Says which tokens are special. Without it they are the ones that the SAE's training recorded, else
            the BOS, EOS and padding tokens of the model's config and generation config.
        prompt_length: How many tokens the prompt has, for an `edit` that asks `call` where a loop of one's own begins
            to generate. In `generate` it is known.

    Yields:
        The run, whose `features`, `activations` and `reconstruction` are those of the model's last forward pass.

    Raises:
        HookPointError: If the model has no such hook point, or what passes there cannot be matched with tokens. The
            first time, the model runs on two and on three tokens to see that. At the end of a forward pass that did
            not come to the place.
        ValueError: If the config names no hook point, if the activations there have another size than the SAE's, or
            for `keep_error` or `edit` without `splice`. All before anything runs.
        TypeError: If there is no Hugging Face model inside of `model`, or it is an SAE.

    Example:
        >>> with attach(model, sae, splice=True) as run:  # doctest: +SKIP
        ...     model.generate(**sae.tokenize("def main("), max_new_tokens=20)
    """
    told: dict[str, Any] = {"splice": splice, "keep_error": keep_error, "tokenizer": tokenizer}
    edits = None if edit is None else {ALONE: edit}
    with attach_all(model, {ALONE: sae}, edits=edits, prompt_length=prompt_length, **told) as runs:
        yield runs[ALONE]


@contextmanager
def attach_all(
    model: nn.Module,
    saes: Mapping[str, SparseAutoencoder],
    *,
    splice: bool = False,
    keep_error: bool = False,
    edits: Mapping[str, FeatureEdit] | None = None,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    prompt_length: int | None = None,
) -> Iterator[dict[str, AttachedSAE]]:
    """Runs a language model with many SAEs at once: `with attach_all(model, load_saes(folder), splice=True) as runs:`.

    Spliced in, each takes its place in the same forward pass: what a later one reads is what the earlier ones made of
    the text. With `keep_error` every one of them adds back what it misses, so that the model's output stays as it is.
    Where one writes at a place that another reads, they act in the order in which they are given.

    Args:
        model: As for `attach`, like what is not said here.
        saes: The SAEs by name, as `load_saes` gives them.
        splice: Whether the activations are replaced; otherwise they are only read.
        keep_error: Whether the errors are added back. Only with `splice`.
        edits: What is made of the features before they are spliced in, by the SAE's name. Only with `splice`.
        tokenizer: Says which tokens are special.
        prompt_length: How many tokens the prompt has.

    Yields:
        The run of each SAE by its name.

    Raises:
        HookPointError: As `attach`, with the SAE's name.
        ValueError: As `attach`, with the SAE's name. Likewise if there is no SAE, if two are to be spliced in at one
            place, or if `edits` names none of them.
        TypeError: If there is no Hugging Face model inside of `model`, or it is an SAE.

    Example:
        >>> saes = load_saes("runs/transcoder_set")  # doctest: +SKIP
        >>> with attach_all(model, saes, splice=True) as runs:  # doctest: +SKIP
        ...     logits = model(input_ids).logits
        >>> runs["mlp_in.0"].features  # doctest: +SKIP
    """
    edits = edits or {}
    if isinstance(model, SparseAutoencoder):
        raise TypeError("the language model comes first: attach(model, sae).")
    refuse_unnamed(saes)
    if (keep_error or edits) and not splice:
        raise ValueError("keep_error and edit are about what is spliced in: pass splice=True too.")
    inner = inner_model(model)
    places = places_of(saes, inner, splice=splice)
    if unknown := edits.keys() - saes.keys():
        raise ValueError(f"edits names {', '.join(sorted(unknown))}, but the SAEs are {', '.join(saes)}.")
    sites = Sites.at(inner, [point for pair in places.values() for point in (pair if splice else pair[:1])])
    sites.check()
    passes_of_layers: dict[int, Any] = {}  # of what stands at several places and remembers a pass
    saes = {
        name: cast(Any, sae).of_a_context(passes_of_layers) if hasattr(sae, "of_a_context") else sae
        for name, sae in saes.items()
    }
    with sites.passes(wrapper=model) as passes, ExitStack() as stack:
        record = CallRecord(inner, passes, prompt_length, wrapper=model)
        attached = {}
        for name, sae in saes.items():
            edit = edits.get(name)
            if edit is None and edits and getattr(sae, "edits_go_on", False):
                edit = _unchanged  # what is edited at an earlier layer has an effect here
            left_out = left_out_of(sae.config, inner, tokenizer)
            attached[name] = _Attachment(sae, passes, record, left_out, edit, keep_error)
        for attachment in attached.values():
            passes.tell(attachment)
        stack.enter_context(record.open())
        for name, (source, target) in places.items():
            stack.enter_context(visiting(sites[source], attached[name].read, passes))
            if splice:
                # The error is held constant: with gradients through it too, those through the features would cancel.
                spliced = splicing(
                    sites[target], attached[name].replace, passes, keep_error=keep_error, detach_error=keep_error
                )
                stack.enter_context(spliced)
        yield {name: attachment.run for name, attachment in attached.items()}


def places_of(
    saes: Mapping[str, SparseAutoencoder], model: PreTrainedModel, *, splice: bool
) -> dict[str, tuple[HookPoint, HookPoint]]:
    """Where in a model each of several SAEs reads and writes.

    Args:
        saes: The SAEs by name.
        model: A causal LM.
        splice: Whether all are to be spliced in at once.

    Raises:
        HookPointError, ValueError: As `hook_points_of`, with the SAE's name; if there is no SAE, or if two are to be
            spliced in at one place.
        TypeError: If the SAEs are not given by name.
    """
    refuse_unnamed(saes)
    if not saes:
        raise ValueError("there is no SAE to attach: pass some by name, such as load_saes(folder).")
    layout = DecoderLayout.find(model)
    places = {}
    for name, sae in saes.items():
        try:
            places[name] = hook_points_of(sae.config, model, layout)
        except ValueError as error:
            raise error if name == ALONE else type(error)(f"SAE {name!r}: {error}") from error
    written = Counter(target for _, target in places.values())
    for target, writers in written.items() if splice else ():
        if writers > 1:
            names = " and ".join(repr(name) for name, (_, place) in places.items() if place == target)
            raise ValueError(
                f"{names} write at {target}, where one activation has room for one reconstruction: splice in one of "
                "them, or read all with splice=False."
            )
    return places


def standing(saes: Mapping[str, SparseAutoencoder]) -> dict[str, Any]:
    """What stands at one place each, by name: of a cross-layer transcoder its layers, as `"name/layer"`.

    Raises:
        TypeError: If the SAEs are not given by name.
    """
    refuse_unnamed(saes)
    found: dict[str, Any] = {}
    for name, sae in saes.items():
        layers: dict[str, Any] = sae.by_layer() if sae.config.is_cross_layer else {ALONE: sae}  # type: ignore[operator]
        found |= {"/".join(part for part in (name, layer) if part): one for layer, one in layers.items()}
    return found


def refuse_swapped(sae: object, model: object) -> None:
    """Refuses what is no SAE where one is expected, and what is no language model where one is expected.

    Args:
        sae: What is given as SAE.
        model: What is given as its language model; a wrapper around one is one.

    Raises:
        TypeError: With what was given.
        ValueError: For a wrapper that hooks do not reach, as `inner_model`.
    """
    is_sae, is_other = (isinstance(getattr(given, "config", None), SAEConfig) for given in (sae, model))
    if not is_sae or is_other:
        given = f"a {type(sae).__name__} as SAE and a {type(model).__name__} as language model"
        raise TypeError(f"got {given}: expected an SAE and its language model, each in its own place.")
    inner_model(model)  # or says what is wrong


def _unchanged(features: SparseFeatures) -> SparseFeatures:
    return features


class _Attachment(Listener):
    """What one attached SAE does in a forward pass."""

    def __init__(
        self,
        sae: SparseAutoencoder,
        passes: Passes,
        record: CallRecord,
        left_out: LeftOut,
        edit: FeatureEdit | None,
        keep_error: bool,
    ):
        self.run = AttachedSAE(sae, record)
        self._passes = passes
        self._sae = sae
        self._record = record
        self._left_out = left_out
        self._edit = edit
        self._keep_error = keep_error
        self._in_this_pass: _Seen | None = None

    def begins(self) -> None:
        # What was read in the pass before must not be taken for this one's. It stays after the pass, for blocks that
        # run again in the backward pass.
        self._in_this_pass = None

    def read(self, x: Tensor) -> None:
        output = self._sae(x.to(self._sae.device))
        assert output.features is not None and output.reconstruction is not None
        # A part of the model that is called by itself is about other tokens than the model's last call.
        call = self._record.call if self._passes.inside or self._passes.runs_again else None
        keep = None if call is None else self._left_out.counted(call.real, call.ids, call.positions)
        self._in_this_pass = self.run._seen = _Seen(
            x, output.features, output.reconstruction, keep, call, without_gradients=self._passes.loses_gradients
        )

    def replace(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        seen = self._in_this_pass
        if seen is None or seen.keep is None:
            raise HookPointError(
                f"activations {tuple(x.shape)} are to be replaced, but which tokens are they? Call the model itself "
                "(not a part of it), with input_ids or inputs_embeds."
            )
        if seen.keep.shape != x.shape[:-1]:
            raise HookPointError(
                f"activations {tuple(x.shape)} are to be replaced, but the model was given {tuple(seen.keep.shape)} "
                "tokens: it puts rows of its own before them, or hands this module a share of them. Such a place can "
                "be read (splice=False), but not spliced."
            )
        keep = seen.keep.to(x.device)[..., None]
        reconstruction = torch.where(keep, seen.reconstruction.to(x.device), x)
        edited = reconstruction
        if self._edit is not None:
            features = self._edit(seen.features)
            if features is None:
                raise TypeError("an edit must return the features to be spliced in; got None.")
            refuse_other_features(features, tuple(seen.features.shape))
            written = self._sae.decode(features, seen.activations.to(self._sae.device))
            edited = torch.where(keep, written.to(x.device), x)
        return (reconstruction, edited) if self._keep_error else edited
