"""A cross-layer transcoder in a model's forward pass, layer by layer: `by_layer`.

The output at a layer depends on what earlier layers have read in the same pass. Each step stands where a transcoder of
its layer would: `attach_all` and `evaluate_together` take them by name.
"""

import copy
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from hfsae.architectures.cross_layer import CrossLayer
from hfsae.architectures.layers import training_of_layer
from hfsae.autoencoder.outputs import SAEOutput
from hfsae.configuration import SAEConfig
from hfsae.functional import SparseFeatures, at_least_float32
from hfsae.functional.features import refuse_other_features


def by_layer(sae: CrossLayer) -> "dict[str, LayerStep]":
    """The layers of a cross-layer transcoder by name, in their order.

    Called by hand they are for one pass at a time. Each context of `attach_all` has a pass of its own.

    Example:
        >>> with attach_all(model, by_layer(sae), splice=True) as runs:  # doctest: +SKIP
        ...     logits = model(input_ids).logits
    """
    shared = _Pass()
    return {name: LayerStep(sae, layer, shared) for layer, name in enumerate(sae.config.source_names)}


@dataclass
class _Pass:
    """The features of the layers that a forward pass has come to, as they were read and as they were edited."""

    read: dict[int, SparseFeatures] = field(default_factory=dict)
    edited: dict[int, SparseFeatures] = field(default_factory=dict)


class LayerStep:
    """One layer of a cross-layer transcoder: its features, and what those of all layers up to it write there.

    Args:
        sae: The cross-layer transcoder.
        layer: The number of the layer.
        shared: What the steps of one pass have in common; the first layer begins a pass.

    Attributes:
        sae: The cross-layer transcoder.
        layer: The number of the layer.
        config: What the config of a transcoder of this layer would be: where it reads and writes, which tokens it
            leaves out.
    """

    edits_go_on = True
    """Whether features that are edited at one place have effects at later ones."""

    def __init__(self, sae: CrossLayer, layer: int, shared: _Pass):
        self.sae, self.layer, self._shared = sae, layer, shared
        whole = sae.config
        known = {option.name for option in fields(SAEConfig)}  # type: ignore[arg-type]
        options = {name: value for name, value in copy.deepcopy(whole.to_diff_dict()).items() if name in known}
        options |= {"d_in": whole.source_widths[layer], "d_out": whole.output_widths[layer], "metrics": None}
        options |= {"n_features": whole.features_per_layer, "subtract_b_dec": False}
        options |= {"hook_point": whole.source_places[layer], "target_hook_point": whole.target_places[layer]}
        options["training"] = training_of_layer(whole, layer)
        self.config = SAEConfig(**options)

    def of_a_context(self, passes: "dict[int, _Pass]") -> "LayerStep":
        """The same step with another pass, so that contexts of several threads or models do not mix theirs.

        Args:
            passes: The passes of the context, by what they take the place of.
        """
        step = copy.copy(self)
        step._shared = passes.setdefault(id(self._shared), _Pass())
        return step

    @property
    def device(self) -> torch.device:
        """Where its weights lie."""
        return self.sae.device

    def __call__(self, activations: Tensor) -> SAEOutput:
        """Reads activations (..., d), and gives the output at this layer, with what earlier layers have read."""
        if self.layer == 0:
            self._shared.read.clear()
            self._shared.edited.clear()
        features = self.sae.encode_layer(self.layer, activations)
        self._shared.read[self.layer] = self._shared.edited[self.layer] = features
        written = self._written(self._shared.read, activations)
        return SAEOutput(reconstruction=written, features=features)  # type: ignore[arg-type]

    def decode(self, features: Tensor | SparseFeatures, activations: Tensor) -> Tensor:
        """The output here (..., d_out) with these features of the layer; later layers go on with them, too."""
        refuse_other_features(features, (*activations.shape[:-1], self.config.n_features))
        if not isinstance(features, SparseFeatures):
            features = SparseFeatures.from_dense(features)
        self._shared.edited[self.layer] = features
        return self._written(self._shared.edited, activations)

    def _written(self, features: dict[int, SparseFeatures], activations: Tensor) -> Tensor:
        sae, target = self.sae, self.layer
        if missing := [sae.config.source_names[layer] for layer in range(target) if layer not in features]:
            raise ValueError(
                f"the output at {sae.config.source_names[target]} depends on {', '.join(missing)}, where this "
                "pass has read nothing: give all layers, sae.by_layer()."
            )
        made = sae.b_dec.split(sae.config.output_widths)[target]
        if sae.config.skip:
            x = (at_least_float32(activations.to(sae.dtype)) * sae.input_scale[target]).to(sae.dtype)
            made = made + x @ sae.W_skip[target].T
        for source in range(target + 1):
            made = made + features[source].to(sae.dtype).decode(sae.rows_between(source, target))
        return (at_least_float32(made) / sae.output_scale[target]).to(sae.dtype)
