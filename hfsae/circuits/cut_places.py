"""Where a model is cut so that it is linear in between: where SAEs write, and where MLPs do."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from hfsae.hooks import HookPoint
from hfsae.hooks.layout import DecoderLayout

_RAW_MLP = "mlp.hook_out"


@dataclass(frozen=True)
class CutPlaces:
    """The places of one model that are cut.

    Attributes:
        entry: Where embeddings enter the first block.
        all: Every place that is cut.
        bare: Layers whose MLP no SAE writes; what it writes is all error.
        layers: The layer of each place, and of each place where an SAE reads.
        blocks: The model's blocks.
    """

    entry: HookPoint
    all: frozenset[HookPoint]
    bare: list[int]
    layers: dict[HookPoint, int]
    blocks: nn.ModuleList

    @classmethod
    def find(cls, model: PreTrainedModel, pairs: Mapping[str, tuple[HookPoint, HookPoint]]) -> "CutPlaces":
        """Finds them.

        Args:
            model: A causal LM.
            pairs: Where each SAE reads and writes.

        Raises:
            ValueError: If some block does not say where its MLP writes, with the block. Likewise for an SAE whose
                features are not linear in the residual stream, or do not write to it.
            HookPointError: If the model has no recognisable decoder.
        """
        layout = DecoderLayout(model)
        if layout.streams is not None:
            raise ValueError(
                f"{type(model).__name__} has {layout.streams.number} residual streams side by side, which circuits "
                "are not traced through."
            )
        _refuse_outside_of_the_stream(layout, pairs)
        written = {target for _, target in pairs.values()}
        cut, bare, layers = set(written), [], {}
        for layer, block in enumerate(layout.blocks):
            place = layout.places(layer).get("mlp_out")
            raw = layout.transformer_lens_places(layer).get(_RAW_MLP)
            if place is None:
                parts = ", ".join(name for name, _ in block.named_children())
                raise ValueError(
                    f"layer {layer} of {type(model).__name__} offers no mlp_out (its parts are {parts}), so its "
                    "nonlinear part cannot be cut out and no circuit can be traced."
                )
            layers[place] = layer
            if not written & {place, raw}:
                cut.add(place)
                bare.append(layer)
        for pair in pairs.values():
            layers |= {place: layer for place in pair if (layer := layout.layer_of(place.path)) is not None}
        entry = HookPoint(layout.block_path(0), "input")
        return cls(entry, frozenset(cut), bare, layers, layout.blocks)


def _refuse_outside_of_the_stream(layout: DecoderLayout, pairs: Mapping[str, tuple[HookPoint, HookPoint]]) -> None:
    """Refuses SAEs inside of an MLP, or outside of the blocks."""
    for name, pair in pairs.items():
        for place in pair:
            layer = layout.layer_of(place.path)
            if layer is None:
                raise ValueError(f"SAE {name!r} is at {place}, outside of the blocks that a circuit goes through.")
            raw = layout.transformer_lens_places(layer).get(_RAW_MLP)
            inside = raw is not None and place.path.startswith(f"{raw.path}.") and place != raw
            if inside or "mlp_act" in layout.roles(place):
                raise ValueError(
                    f"SAE {name!r} is at {place}, inside of an MLP, where nothing is linear: circuits take "
                    "transcoders from mlp_in to mlp_out, and SAEs of the residual stream or of attn_out."
                )
