"""`LayersConfig`: what the config of a cross-layer transcoder holds, whatever its rule: the layers of a model."""

from dataclasses import field
from typing import Any

from huggingface_hub.dataclasses import strict

from hfsae.configuration import SAEConfig, places_in


@strict
class LayersConfig(SAEConfig):
    """What every cross-layer transcoder's config holds beside that of its rule.

    Args:
        n_features: Features of all layers together, as many of each; or `expansion_factor`, of each layer.
        source_names: What the layers are called, in their order: the places that they read.
        source_widths: Size of the activations that each reads, the same of all; `d_in` is their sum.
        tied_decoder: Whether a feature writes the same direction at all layers, with a scale of its own at each. That
            takes one decoder row a feature. (EleutherAI's clt-training calls it `per_source_tied` with
            `post_encoder_scale`.) Otherwise it has a direction of its own at each.

    Raises:
        ValueError: If there are no layers, a name comes twice, widths differ, or sizes are no multiples of the number
            of layers. Likewise if `subtract_b_dec` or `input_transform` is set, which have no meaning between two
            places.
    """

    subtract_b_dec: bool = False
    source_names: list[str] = field(default_factory=list)
    source_widths: list[int] = field(default_factory=list)
    tied_decoder: bool = False

    def _resolve_sizes(self, expansion_factor: float | None) -> None:
        self.d_in = self.d_in or sum(self.source_widths)
        super()._resolve_sizes(expansion_factor)

    @property
    def n_layers(self) -> int:
        """How many layers there are."""
        return len(self.source_names)

    @property
    def features_per_layer(self) -> int:
        """How many features read each layer."""
        return self.n_features // self.n_layers

    @property
    def input_widths(self) -> list[int]:
        return list(self.source_widths)

    @property
    def output_widths(self) -> list[int]:
        return [self.d_out // self.n_layers] * self.n_layers

    @property
    def source_places(self) -> list[str | None]:
        """Where each layer is read: the parts of `hook_point`."""
        return [None] * self.n_layers if self.hook_point is None else [*places_in(self.hook_point)]

    @property
    def target_places(self) -> list[str | None]:
        """Where each layer is written: the parts of `target_hook_point`."""
        return [None] * self.n_layers if self.target_hook_point is None else [*places_in(self.target_hook_point)]

    @property
    def is_transcoder(self) -> bool:
        return True

    @property
    def is_cross_layer(self) -> bool:
        return True

    def validate_sources(self):
        names, widths = self.source_names, self.source_widths
        if not names or len(names) != len(widths) or len(set(names)) != len(names) or len(set(widths)) != 1:
            raise ValueError(
                "a cross-layer transcoder needs source_names, its layers, each once, and as many source_widths, all "
                f"the same; got {names} and {widths}."
            )
        if sum(widths) != self.d_in or self.d_out % len(names) or self.n_features % len(names):
            raise ValueError(
                f"d_in={self.d_in} must be the sum of source_widths={widths}, and d_out={self.d_out} and "
                f"n_features={self.n_features} multiples of the number of layers, {len(names)}."
            )
        if getattr(self, "k", 1) > self.features_per_layer:
            raise ValueError(f"k={self.k} is of every layer, which has {self.features_per_layer} features.")  # type: ignore
        for name, places in (("hook_point", self.source_places), ("target_hook_point", self.target_places)):
            if len(places) != len(names):
                raise ValueError(f"{name}={getattr(self, name)!r} must join {len(names)} places, one for each layer.")
        if getattr(self, "hierarchical", False):
            raise ValueError("a cross-layer transcoder has a k for each layer, and takes no hierarchical.")
        if self.subtract_b_dec or self.rescale_by_decoder_norm:
            raise ValueError("a cross-layer transcoder takes neither subtract_b_dec nor rescale_by_decoder_norm.")


def training_of_layer(config: LayersConfig, layer: int) -> dict[str, Any] | None:
    """The summary of the training, with the portable name of one layer's place in place of those of all."""
    if not isinstance(config.training, dict):
        return config.training
    names = places_in(str(config.training.get("portable_name")))
    named = {"portable_name": names[layer]} if 1 < len(names) == config.n_layers else {}
    return {**config.training, **named}
