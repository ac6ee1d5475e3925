"""What crosscoders of every rule share: sources, each with a width and a scale of its own, and the way to single ones.

To the arithmetic a crosscoder is an SAE whose rows are those of its sources, one behind the other. Every source adds
its part to a feature's pre-activation, and one selection is made over the sum. Each source has a decoder of its own.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import field, fields
from typing import Any, cast

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor

from hfsae.autoencoder.outputs import SAEOutput, StepState
from hfsae.configuration import LANGUAGE_MODEL, SAEConfig, places_in
from hfsae.functional import SparseFeatures
from hfsae.modeling import SAE
from hfsae.suggestions import did_you_mean


@strict
class SourcesConfig(SAEConfig):
    """What every crosscoder's config holds beside that of its rule.

    Args:
        source_names: What the sources are called, in the order in which their rows lie behind each other.
        source_widths: Size of the activations of each; `d_in` is their sum, which may be left out.
        source_models: The language model of each source, as the fields `base_model`, `base_model_revision`, ... say it
            of one; these are then those of the first source. None where all are places of one model.

    Raises:
        ValueError: If names, widths and models are not as many, a name comes twice, or a width is not positive.
            Likewise with a target, a skip connection or an input transform, which would mix the sources.
    """

    source_names: list[str] = field(default_factory=list)
    source_widths: list[int] = field(default_factory=list)
    source_models: list[dict[str, Any]] | None = None

    def _resolve_sizes(self, expansion_factor: float | None) -> None:
        self.d_in = self.d_in or sum(self.source_widths)
        super()._resolve_sizes(expansion_factor)

    @property
    def input_widths(self) -> list[int]:
        return list(self.source_widths)

    @property
    def is_crosscoder(self) -> bool:
        return True

    @property
    def models_by_source(self) -> dict[str, dict[str, Any]]:
        return dict(zip(self.source_names, self.source_models or [], strict=False))

    @property
    def source_places(self) -> list[str | None]:
        """Where each source is read: the parts of `hook_point`, or all at the same place."""
        places: list[str | None] = [None] if self.hook_point is None else [*places_in(self.hook_point)]
        return places * len(self.source_names) if len(places) == 1 else places

    def validate_sources(self):
        names, widths = self.source_names, self.source_widths
        if not names or len(names) != len(widths) or len(set(names)) != len(names) or min(widths) < 1:
            raise ValueError(
                "a crosscoder needs source_names, each once, and as many source_widths, each at least 1; got "
                f"{names} and {widths}."
            )
        if sum(widths) != self.d_in:
            raise ValueError(
                f"d_in={self.d_in} must be the sum of source_widths={widths}, {sum(widths)}; leave it out."
            )
        if len(self.source_places) != len(names):
            raise ValueError(f"hook_point={self.hook_point!r} must join {len(names)} places, one for each of {names}.")
        if self.source_models is not None and len(self.source_models) != len(names):
            raise ValueError(f"source_models must hold one language model for each of {names}.")
        for name in {name for record in self.source_models or [] for name in record} - set(LANGUAGE_MODEL):
            raise ValueError(f"source_models holds {name!r}, which is none of {', '.join(LANGUAGE_MODEL)}.")
        if self.is_transcoder or self.skip or self.input_transform != "none":
            raise ValueError(
                "a crosscoder writes each source where it reads it: it takes no target_hook_point, no skip and no "
                "input_transform."
            )


class Crosscoder(SAE):
    """What crosscoders of every rule do; activations are (..., d_in), joined, or given by source."""

    config: SourcesConfig

    def _declare(self, config: Any) -> None:
        super()._declare(config)
        self.register_buffer("input_scale", torch.ones(len(config.source_widths), dtype=torch.float32))

    @property
    def _scale_in(self) -> Tensor:
        """(d_in,): each source's scale at its dimensions."""
        widths = self.config.source_widths
        return torch.cat([scale.expand(width) for scale, width in zip(self.input_scale, widths, strict=True)])

    @property
    def source_norms(self) -> Tensor:
        """How long what each feature writes into each source is in scaled space, (n_features, sources)."""
        return torch.stack([rows.norm(dim=1) for rows in self.decoder_rows.split(self.config.source_widths, 1)], 1)

    def split(self, activations: Tensor) -> dict[str, Tensor]:
        """Joined activations or reconstructions (..., d_in) by source, views of them."""
        parts = self._check(activations).split(self.config.source_widths, -1)
        return dict(zip(self.config.source_names, parts, strict=True))

    def join(self, activations: Tensor | Mapping[str, Tensor], *, partial: bool = False) -> Tensor:
        """Activations by source, one behind the other: (..., d_in). Joined ones stay as they are.

        Args:
            activations: (..., width) for each source, with the same leading dimensions.
            partial: Whether sources may be missing. A missing one stands at its centre, `b_dec`: where that is
                subtracted it adds nothing to any pre-activation.

        Raises:
            ValueError: If there is no such source, one is missing, or its shape does not fit.
            TypeError: If activations are no floating point tensor.
        """
        if not isinstance(activations, Mapping):
            return activations
        names, widths = self.config.source_names, self.config.source_widths
        if not activations:
            many = "at least one" if partial else "each"
            raise ValueError(f"no activations are given: give those of {many} of the sources {', '.join(names)}.")
        centres = self.split(self.b_dec / self._scale_in) if partial else {}
        return joined(activations, names, widths, self.W_dec, instead=centres)

    def pre_activations(
        self, activations: Tensor | Mapping[str, Tensor], features: Sequence[int] | Tensor | None = None
    ) -> Tensor:
        """As of any SAE; see `join` for sources that are missing."""
        return super().pre_activations(self.join(activations, partial=True), features)

    def encode(
        self, activations: Tensor | Mapping[str, Tensor], features: Sequence[int] | Tensor | None = None
    ) -> Tensor:
        """As of any SAE; also from some of the sources alone: `join` says what stands for the missing ones."""
        return super().encode(self.join(activations, partial=True), features)

    def encode_sparse(
        self, activations: Tensor | Mapping[str, Tensor], features: Sequence[int] | Tensor | None = None
    ) -> SparseFeatures:
        """As of any SAE; also from some of the sources alone: `join` says what stands for the missing ones."""
        return super().encode_sparse(self.join(activations, partial=True), features)

    def forward(
        self, activations: Tensor | Mapping[str, Tensor], target: Tensor | None = None, state: StepState | None = None
    ) -> SAEOutput:
        """As of any SAE, from all sources; `split` gives the reconstruction by source."""
        return super().forward(self.join(activations), target, state)

    @torch.no_grad()
    def source(self, name: str) -> SAE:
        """The SAE of one source alone, of the class that has this crosscoder's rule, with weights of its own.

        Its features are those of `encode({name: x})`, and it writes what they write into this source.

        Raises:
            ValueError: If there is no such source.
        """
        config, names = self.config, self.config.source_names
        if name not in names:
            raise ValueError(f"there is no source {name!r}, but {', '.join(names)}.{did_you_mean(name, names)}")
        place = names.index(name)
        sae_class = next(base for base in type(self).__mro__ if not issubclass(base, Crosscoder))
        stored = copy.deepcopy(config.to_diff_dict())
        options = {
            option.name: stored[option.name] for option in fields(sae_class.config_class) if option.name in stored
        }
        width, end = config.source_widths[place], sum(config.source_widths[: place + 1])
        options |= {"d_in": width, "d_out": width, "metrics": None, "rescale_by_decoder_norm": False}
        options["aligned"] = False  # the rows of all sources together are
        options["hook_point"] = config.source_places[place]
        options |= config.language_model_of(name)
        if isinstance(recorded := options.get("training"), dict):
            portable = places_in(str(recorded.get("portable_name")))
            if 1 < len(portable) == len(names):
                options["training"] = {**recorded, "portable_name": portable[place]}
        alone = sae_class(sae_class.config_class(**options)).to(device=self.device, dtype=self.dtype)  # type: ignore
        own, others = slice(end - width, end), self.b_dec.clone()
        others[own] = 0
        bias = self.encoder_bias if config.subtract_b_dec else self.encoder_bias + self.encoder_rows @ others
        read_and_written = {"encoder.weight": self.encoder_rows, "W_dec": self.decoder_rows}
        parts = {name: rows[:, own] for name, rows in read_and_written.items()}
        parts |= {"encoder.bias": bias, "b_dec": self.b_dec[own], "input_scale": self.input_scale[place]}
        alone.load_state_dict({**self.state_dict(), **parts})
        return alone.train(self.training)


def joined(
    activations: Mapping[str, Tensor],
    names: Sequence[str],
    widths: Sequence[int],
    like: Tensor,
    instead: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Activations by name, one behind the other: (..., sum of widths), on the device and in the dtype of `like`.

    Args:
        activations: (..., width) by name, with the same leading dimensions.
        names: What they are called, in their order.
        widths: The size of each.
        like: Some parameter.
        instead: What stands for a name that is missing, (width,); None where none may be missing.

    Raises:
        ValueError: If there is no such name, one is missing, or a shape does not fit.
        TypeError: If activations are no floating point tensor.
    """
    for name, part in activations.items():
        if name not in names:
            raise ValueError(f"there is no source {name!r}, but {', '.join(names)}.{did_you_mean(name, names)}")
        if not isinstance(part, Tensor) or not part.is_floating_point():
            got = part.dtype if isinstance(part, Tensor) else type(part).__name__
            raise TypeError(f"activations of {name} must be a floating point tensor, got {got}.")
    missing = [name for name in names if name not in activations]
    if missing and not instead:
        raise ValueError(f"no activations of {', '.join(missing)} are given: only `encode` can do without.")
    leading = next(iter(activations.values())).shape[:-1]
    for name, width in zip(names, widths, strict=True):
        if name in activations and activations[name].shape != (*leading, width):
            expected, got = (*leading, width), tuple(activations[name].shape)
            raise ValueError(f"activations of {name} must have shape {expected}, one row a token, got {got}.")
    parts = [activations.get(name, (instead or {}).get(name)) for name in names]
    return torch.cat([cast(Tensor, part).to(like).expand(*leading, -1) for part in parts], -1)
