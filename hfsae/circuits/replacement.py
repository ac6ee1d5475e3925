"""`LocalReplacement`: a language model made linear at one prompt, so that a logit is the exact sum of what makes it.

Attention patterns and the denominators of norms are held at this prompt's values, and MLPs are cut. Where SAEs write
stands what their features write, plus an error that makes it what the model had. What lies between is affine in
features, errors and embeddings. This is the local replacement model of Ameisen et al. 2025, "Circuit tracing:
revealing computational graphs in language models".
"""

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import PurePath
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hfsae.architectures.cross_layer import CrossLayer
from hfsae.attachment import places_of, standing
from hfsae.autoencoder.model import SparseAutoencoder
from hfsae.circuits.attention import AttentionPatterns, Scores, attends
from hfsae.circuits.cut_places import CutPlaces
from hfsae.circuits.feature_sources import ActiveFeatures, FeatureSource
from hfsae.circuits.layer_sources import LayerSource
from hfsae.circuits.nodes import Node
from hfsae.circuits.norms import FrozenNorms
from hfsae.data.left_out import LeftOut
from hfsae.functional.gradients import gradients_on, refuse_inference_weights
from hfsae.hooks import HookPoint, inner_model
from hfsae.hooks.access import visiting
from hfsae.hooks.devices import input_device
from hfsae.hooks.inner import learns_a_prompt
from hfsae.hooks.limits import refuse_too_long, refuse_unknown_ids
from hfsae.hooks.quantised import holds_quantised_weights
from hfsae.hooks.quiet import evaluating
from hfsae.hooks.sites import Sites
from hfsae.hooks.splice import splicing
from hfsae.hub.hub_ids import without_folders
from hfsae.in_model import left_out_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# How far the linear model may be from the model itself, as a share of the largest entry. Parts of transformers' models
# compute in float32, whatever their dtype.
_GAP = 1e-3
_HEAD = ""
# How much it may bend, by the dtype in which models can be traced.
_BEND = {torch.float32: 1e-3, torch.float64: 1e-8}


class LocalReplacement:
    """A model and its SAEs at one prompt of S tokens.

    Args:
        model: A causal LM, or a wrapper around one. It is left as it is. One in half precision is copied to float32.
        saes: The SAEs by name: transcoders, a cross-layer transcoder, SAEs of the stream, or several of these.
        ids: (S,), the prompt.
        tokenizer: Says which tokens are special.

    Attributes:
        ids: (S,) the prompt.
        notes: What whoever reads the graph has to know, in sentences.
        places: Where the model is cut, in the order of a forward pass.
        sources: The SAEs by name, of a cross-layer transcoder its layers as `"name/layer"`.
        active: Their features in this prompt, likewise.
        errors: (S, d) at each place: what no feature writes.
        embeddings: (S, d), what enters the first block: tokens and, where there are any, learned positions.
        hidden: (d,), what the LM head reads at the last token.
        own_hidden: (d,), the same as the model itself computes it, in its own precision.
        rebuilt_hidden: (d,), the same as the linear model gives it.
        logits: (vocabulary,), what the model itself says at the last token.

    Raises:
        ValueError: If the model is no causal LM whose blocks can be made linear, with the reason. Likewise if the
            prompt is longer than the model's context, or an SAE does not fit the model.
        HookPointError: If the model lacks a place.
    """

    @gradients_on()
    def __init__(
        self,
        model: nn.Module,
        saes: Mapping[str, SparseAutoencoder],
        ids: Tensor,
        tokenizer: "PreTrainedTokenizerBase | None" = None,
    ):
        self.notes: list[str] = []
        self.model = self._usable(model)
        for each in (self.model, *saes.values()):
            refuse_inference_weights(each)
        self.ids = ids.to(input_device(self.model)).clone()
        self._refuse_text(tokenizer)
        parts = standing(saes)
        pairs = places_of(parts, self.model, splice=True)
        cuts = CutPlaces.find(self.model, pairs)
        self.notes += _trained_elsewhere(saes, self.model)
        if cuts.bare:
            self.notes.append(
                f"No SAE writes what the MLPs of layers {', '.join(map(str, cuts.bare))} write: all of it is error."
            )
        self._entry, self.layers, self._blocks = cuts.entry, cuts.layers, cuts.blocks
        self.sources: dict[str, FeatureSource] = {}
        for name, sae in saes.items():
            self.sources |= self._sources(name, sae, pairs, left_out_of(sae.config, self.model, tokenizer))
        reads = [source.reads for source in self.sources.values()]
        self._sites = Sites.at(self.model, dict.fromkeys([cuts.entry, *reads, *cuts.all]))
        self._sites.check()
        self._patterns, self._norms = AttentionPatterns(), FrozenNorms(self.model)
        self._note_the_prompt(cuts)
        self._refuse_what_is_not_linear()

    # -- what can be traced at all ------------------------------------------------------------------------------------
    def _usable(self, model: nn.Module) -> PreTrainedModel:
        inner = inner_model(model)
        if learns_a_prompt(model):
            raise ValueError("a model with a learnt prompt enters more than the text: merge or leave it out to trace.")
        if holds_quantised_weights(inner):
            raise ValueError("a quantised model is not exact enough to be traced: load it without quantization.")
        head = inner.get_output_embeddings()
        if not isinstance(head, nn.Linear):
            raise ValueError(
                f"{type(inner).__name__} has no LM head (a matrix from its last state to logits): circuits are traced "
                "in causal language models."
            )
        if any(parameter.is_meta for parameter in (inner if is_copied(inner) else head).parameters()):
            raise ValueError(
                "weights that are needed here lie on the disk or in the host's memory (device_map): load the LM head "
                "on a device, and the model in float32."
            )
        if not is_copied(inner):
            return inner
        self.notes.append(f"The model is in {str(inner.dtype).removeprefix('torch.')}; a copy in float32 was traced.")
        return copy.deepcopy(inner).float()

    def _refuse_text(self, tokenizer: "PreTrainedTokenizerBase | None") -> None:
        refuse_unknown_ids(self.ids, self.model, tokenizer)
        refuse_too_long(len(self.ids), self.model)
        if len(self.ids) < 2:
            raise ValueError(f"the prompt has {len(self.ids) or 'no'} token: a circuit needs two or more.")

    def _sources(
        self, name: str, sae: SparseAutoencoder, pairs: Mapping[str, tuple[HookPoint, HookPoint]], left_out: LeftOut
    ) -> dict[str, FeatureSource]:
        """One SAE's, by the name of what stands at one place."""
        if sae.b_dec.dtype != self.model.dtype or sae.b_dec.device != self.ids.device:
            moved = cast(nn.Module, copy.deepcopy(sae))  # of PreTrainedModel.to checkers know nothing
            sae = cast(SparseAutoencoder, moved.to(self.ids.device, self.model.dtype))
        tokens = torch.ones_like(self.ids, dtype=torch.bool)[None]
        keep = left_out.counted_in_blocks(tokens, self.ids[None])[0]
        own = [(part, *pairs[part]) for part in standing({name: sae})]
        if not isinstance(sae, CrossLayer):
            return {part: FeatureSource(name, sae, reads, writes, keep) for part, reads, writes in own}
        later = [writes for _, _, writes in own]
        return {
            part: LayerSource(name, sae, layer, reads, later[layer:], keep)
            for layer, (part, reads, _) in enumerate(own)
        }

    def source_of(self, node: Node) -> str:
        """The name in `sources` of what a feature node belongs to."""
        return next(
            name
            for name, source in self.sources.items()
            if source.owner == node.source and self.layers[source.reads] == node.layer
        )

    # -- the prompt ---------------------------------------------------------------------------------------------------
    def _note_the_prompt(self, cuts: CutPlaces) -> None:
        """Runs the model as it is, then once more to keep patterns, denominators, and what passes at every place."""
        seen: dict[HookPoint, Tensor] = {}
        reads = {source.reads for source in self.sources.values()}

        def look(place: HookPoint, x: Tensor) -> None:
            seen[place] = x.detach()[0]

        with torch.no_grad():
            own_hidden, own_logits = self._call(self.ids[None])
        self.own_hidden, self.logits = own_hidden[0], own_logits[0]
        with torch.no_grad(), ExitStack() as stack:
            passes = stack.enter_context(self._sites.passes())
            stack.enter_context(self._patterns.in_place(self.model))
            stack.enter_context(self._norms.in_place())
            for place in dict.fromkeys([cuts.entry, *cuts.all, *reads]):
                stack.enter_context(visiting(self._sites[place], partial(look, place), passes))
            hidden, _ = self._call(self.ids[None])
        self._patterns.frozen = self._norms.frozen = True
        silent = [layer for layer, block in enumerate(cuts.blocks) if not attends(block, self._patterns)]
        if silent:
            raise ValueError(
                f"layers {', '.join(map(str, silent))} of {type(self.model).__name__} do not attend through "
                "transformers' attention interface (a recurrent layer, or an attention of its own): they cannot be "
                "made linear, so no circuit can be traced."
            )
        self.hidden = hidden[0]
        self.places = [place for place in seen if place in cuts.all]
        self.embeddings = seen[cuts.entry]
        self.active: dict[str, ActiveFeatures] = {}
        self.constants = {place: torch.zeros_like(seen[place]) for place in self.places}
        self.errors = {place: seen[place].clone() for place in self.places}
        self.read = {name: seen[source.reads] for name, source in self.sources.items()}
        for name, source in self.sources.items():
            self.active[name] = features = source.active(self.read[name])
            for place, written in features.written.items():
                self.errors[place].index_add_(0, features.positions, -written)
            self.constants[source.writes[0]] += source.constant(self.read[name])
            if (passed := source.passed_on(self.read[name][None])) is not None:
                self.errors[source.writes[0]] -= passed[0]
        for place in self.places:
            self.errors[place] -= self.constants[place]

    def _call(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """What the LM head reads and the logits at the last token, (batch, d) and (batch, vocabulary)."""
        if torch.is_autocast_enabled(self.ids.device.type):
            raise ValueError("torch.autocast rounds what a circuit adds up exactly: call it outside of that block.")
        head, read = self.model.get_output_embeddings(), []
        assert isinstance(head, nn.Linear)
        handle = head.register_forward_pre_hook(lambda _, args: read.append(args[0][:, -1]))
        last = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(self.model.forward).parameters else {}
        try:
            with evaluating(self.model):
                output = self.model(input_ids=ids, use_cache=False, **last)
        finally:
            handle.remove()
        if len(read) != 1:
            raise ValueError(f"{type(self.model).__name__} calls its LM head {len(read)} times: it cannot be traced.")
        return read[0], output.logits[:, -1]

    def read_by_head(self, batch: int) -> Tensor:
        """What the LM head reads at the last token, (batch, d), when the model runs on copies of the prompt."""
        return self._call(self.ids.expand(batch, -1))[0]

    # -- attention ----------------------------------------------------------------------------------------------------
    @property
    def n_layers(self) -> int:
        return len(self._blocks)

    def attention_of(self, layer: int) -> nn.Module:
        """The module of a layer that attends.

        Raises:
            ValueError: If there are several, or one attends twice.
        """
        found = [module for module in self._blocks[layer].modules() if module in self._patterns.frozen_for]
        if len(found) != 1 or len(self._patterns.scores[found[0]]) != 1:
            raise ValueError(f"layer {layer} of {type(self.model).__name__} attends more than once.")
        return found[0]

    def scores_of(self, layer: int) -> Scores:
        """What the attention of a layer made of the prompt."""
        return self._patterns.scores[self.attention_of(layer)][0]

    @contextmanager
    def watching(self, module: nn.Module) -> Iterator[list[Tensor]]:
        """Queries and keys of one attention, in a pass of the linear model inside."""
        self._patterns.watched, self._patterns.seen = module, []
        try:
            yield self._patterns.seen
        finally:
            self._patterns.watched, self._patterns.seen = None, []

    # -- the linear model ---------------------------------------------------------------------------------------------
    def written(self) -> dict[HookPoint, Tensor]:
        """(S, d) at each place: features and errors, without what is constant and what `skip` passes on."""
        values = {place: error.clone() for place, error in self.errors.items()}
        for features in self.active.values():
            for place, written in features.written.items():
                values[place].index_add_(0, features.positions, written)
        return values

    def run(self, written: Mapping[HookPoint, Tensor], embeddings: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """One pass of the linear model; gradients reach what it is given.

        Args:
            written: (batch, S, d) at every place, in the place of `written()`.
            embeddings: (batch, S, d), in the place of `embeddings`.

        Returns:
            What each source reads, (batch, S, d_in), and what the LM head reads at the last token, (batch, d).
        """
        reads: dict[str, Tensor] = {}

        def read(name: str, x: Tensor) -> None:
            reads[name] = x

        with ExitStack() as stack:
            passes = stack.enter_context(self._sites.passes())
            stack.enter_context(self._patterns.in_place(self.model))
            stack.enter_context(self._norms.in_place())
            entry = splicing(self._sites[self._entry], lambda _: embeddings, passes)
            stack.enter_context(entry)
            for name, source in self.sources.items():
                stack.enter_context(visiting(self._sites[source.reads], partial(read, name), passes))
            for place in self.places:
                edit = partial(self._at, place, written[place], reads)
                stack.enter_context(splicing(self._sites[place], edit, passes))
            hidden, _ = self._call(self.ids.expand(len(embeddings), -1))
        return reads, hidden

    def _at(self, place: HookPoint, written: Tensor, reads: Mapping[str, Tensor], _: Tensor) -> Tensor:
        total = written + self.constants[place]
        for name, source in self.sources.items():
            if place == source.writes[0] and (passed := source.passed_on(reads[name])) is not None:
                total = total + passed
        return total

    @contextmanager
    def really(self, edits: Mapping[str, Callable[[Tensor], Mapping[HookPoint, Tensor]]]) -> Iterator[None]:
        """The model itself, with an addition where sources write: each edit gets what is read, and returns it.

        Args:
            edits: By source; from (batch, S, d_in) to what is added at each of its places, (batch, S, d_out).
        """
        added: dict[HookPoint, list[Tensor]] = {place: [] for name in edits for place in self.sources[name].writes}

        def read(edit: Callable[[Tensor], Mapping[HookPoint, Tensor]], x: Tensor) -> None:
            for place, value in edit(x).items():
                added[place].append(value)

        def add(place: HookPoint, y: Tensor) -> Tensor:
            return y + torch.stack(added[place]).sum(0)

        with ExitStack() as stack:
            passes = stack.enter_context(self._sites.passes())
            for name, edit in edits.items():
                source = self.sources[name]
                stack.enter_context(visiting(self._sites[source.reads], partial(read, edit), passes))
            for place in added:
                stack.enter_context(splicing(self._sites[place], partial(add, place), passes))
            yield

    def _refuse_what_is_not_linear(self) -> None:
        """The linear model must be the model, and affine: at 0 and at twice its input too."""
        factors = torch.tensor([1.0, 0.0, 2.0], dtype=self.embeddings.dtype, device=self.ids.device)[:, None, None]
        whole = {place: factors * value for place, value in self.written().items()}
        with torch.no_grad():
            reads, hidden = self.run(whole, factors * self.embeddings)
        self.read_of_constants = {name: x[1] for name, x in reads.items()}
        self.rebuilt_hidden, self.hidden_of_constants = hidden[0], hidden[1]
        for name, (one, none, two) in {**reads, _HEAD: hidden}.items():
            size = one.abs().max()
            own = self.own_hidden if name == _HEAD else self.read[name]
            gap = (one - own).abs().max() / size
            bend = (two - 2 * one + none).abs().max() / size
            if gap > _GAP or bend > _BEND[self.model.dtype]:
                raise ValueError(self._why_not(name, float(gap), float(bend)))

    def _why_not(self, name: str, gap: float, bend: float) -> str:
        where = "what the LM head reads" if name == _HEAD else f"what SAE {name!r} reads"
        norms = f" Norms that are not understood: {', '.join(self._norms.unknown)}." if self._norms.unknown else ""
        return (
            f"with attention patterns and norms held, {type(self.model).__name__} is not linear between its MLPs: "
            f"{where} is {gap:.1e} of its size away from the model's own, and bends by {bend:.1e}. Its blocks do "
            f"something else besides attention and MLP, so no circuit can be traced.{norms}"
        )


def is_copied(model: nn.Module) -> bool:
    """Whether a model is traced in a copy in float32, which takes twice its memory or more.

    Args:
        model: The model, or a wrapper around it.
    """
    return inner_model(model).dtype not in _BEND


def _trained_elsewhere(saes: Mapping[str, SparseAutoencoder], model: PreTrainedModel) -> list[str]:
    """A note for SAEs that were trained on a model of another name. Folders and organisations may differ."""
    own = model.name_or_path or ""
    told: dict[str, list[str]] = {}
    for name, sae in saes.items():
        base = sae.config.base_model or ""
        if own and base and PurePath(own).name != PurePath(base).name:
            told.setdefault(base, []).append(repr(name))
    return [
        f"{', '.join(names)} {'was' if len(names) == 1 else 'were'} trained on {without_folders(base)}; this model is "
        f"{without_folders(own)}. Features may mean nothing here."
        for base, names in told.items()
    ]
