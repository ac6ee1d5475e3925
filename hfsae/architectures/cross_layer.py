"""What cross-layer transcoders of every rule share: features of each layer, which write at it and all later ones.

Layer l's features read x_l, before its MLP, and are selected among themselves. What the MLP of layer t writes is
predicted by `ŷ_t = (Σ over l ≤ t of Σ z_i W_dec[l][i, t] + b_dec[t]) / s_t` (Ameisen et al. 2025, "Circuit Tracing").
The activations of all layers lie behind each other, as a crosscoder's sources do.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from functools import reduce
from typing import TYPE_CHECKING, Any, Literal, Self, cast

import torch
from torch import Tensor, nn
from transformers import initialization as init

from hfsae.architectures.layers import LayersConfig, training_of_layer
from hfsae.architectures.sources import joined
from hfsae.autoencoder.objective import TrainingStep, auxk_loss
from hfsae.autoencoder.outputs import SAEOutput, StepState
from hfsae.autoencoder.parameters import bare_linear
from hfsae.autoencoder.strategies import plain
from hfsae.functional import (
    Elementwise,
    Pattern,
    Selection,
    SparseFeatures,
    SparsePattern,
    at_least_float32,
    encode,
)
from hfsae.functional.encode import Path
from hfsae.functional.stacked import stacked, sum_of_ends
from hfsae.modeling import SAE
from hfsae.suggestions import did_you_mean

if TYPE_CHECKING:
    from hfsae.architectures.layer_steps import LayerStep


@plain
class CrossLayer(SAE):
    """What cross-layer transcoders of every rule do.

    Activations and targets are (..., d_in) and (..., d_out), those of all layers behind each other, or given by
    layer. Features of layer l are `l · n` to `(l + 1) · n`, with n = `config.features_per_layer`.

    Stored tensors:

    * `encoder.weight` (n_features, d), `encoder.bias` (n_features,)
    * `W_dec.l` (n, (L − l) · d_out of a layer) for every layer l: what its features write at layer l and at each later
      one
    * `b_dec` (d_out,), `input_scale` (L,), `output_scale` (L,)
    * with `tied_decoder`: `W_dec.l` (n, d_out of a layer) and `decoder_scale.l` (n, L − l)
    * with `skip`: `W_skip` (L, d_out of a layer, d), from each layer to itself
    """

    config: LayersConfig
    W_dec: nn.ParameterList  # type: ignore[assignment]

    @property
    def n_groups(self) -> int:  # type: ignore[override]
        return self.config.n_layers

    # -- tensors ------------------------------------------------------------------------------------------------------
    def _declare_matrices(self, config: Any) -> None:
        n, layers = config.features_per_layer, config.n_layers
        d_in, d_out = config.d_in // layers, config.d_out // layers
        self.encoder = bare_linear(d_in, config.n_features)
        targets = [layers - layer for layer in range(layers)]
        widths = [d_out] * layers if config.tied_decoder else [d_out * later for later in targets]
        self.W_dec = nn.ParameterList([nn.Parameter(torch.empty(n, width)) for width in widths])
        if config.tied_decoder:
            self.decoder_scale = nn.ParameterList([nn.Parameter(torch.empty(n, later)) for later in targets])
        if config.skip:
            self.W_skip = nn.Parameter(torch.empty(layers, d_out, d_in))

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        # Tied: at first each feature writes at its own layer alone.
        for scale in self.decoder_scale if module is self and self.config.tied_decoder else []:
            init.copy_(scale, torch.eye(1, scale.shape[1], device=scale.device).expand_as(scale))

    def _init_matrices(self) -> None:
        """Random rows of unit norm, what a feature writes at all layers being one row."""
        for rows in (self.encoder.weight, *self.W_dec):
            init.normal_(rows)
            init.copy_(rows, nn.functional.normalize(rows.detach(), dim=1))

    def _declare(self, config: Any) -> None:
        super()._declare(config)
        for name in ("input_scale", "output_scale"):
            self.register_buffer(name, torch.ones(config.n_layers, dtype=torch.float32))

    @property
    def _scale_in(self) -> Tensor:
        return self.input_scale.repeat_interleave(self.config.d_in // self.config.n_layers)

    @property
    def _scale_out(self) -> Tensor:
        return self.output_scale.repeat_interleave(self.config.d_out // self.config.n_layers)

    @property
    def decoder_weights(self) -> list[nn.Parameter]:
        return list(self.W_dec)

    def rows_of_layer(self, layer: int) -> Tensor:
        """What the features of a layer write in scaled space at it and all later ones, (n, (L − layer) · d_out)."""
        if not self.config.tied_decoder:
            return self.W_dec[layer]
        return (self.decoder_scale[layer][:, :, None] * self.W_dec[layer][:, None, :]).flatten(1)

    def rows_between(self, source: int, target: int) -> Tensor:
        """What the features of a layer write in scaled space at it or a later one, (n, d_out of a layer)."""
        later = target - source
        if self.config.tied_decoder:
            return self.decoder_scale[source][:, later, None] * self.W_dec[source]
        width = self.config.output_widths[target]
        return self.W_dec[source][:, later * width : (later + 1) * width]

    @property
    def decoder_norms(self) -> Tensor:
        """How long what each feature writes at all layers together is, (n_features,)."""
        return torch.cat([self.rows_of_layer(layer).norm(dim=1) for layer in range(self.config.n_layers)])

    @property
    def decoder_rows(self) -> Tensor:
        raise ValueError("features of a cross-layer transcoder have decoder rows by layer: sae.rows_of_layer(layer).")

    @property
    def encoder_blocks(self) -> list[tuple[int, Tensor]]:
        width = self.config.source_widths[0]
        return [(layer * width, weight) for layer, (weight, _) in enumerate(self._encoders())]

    @property
    def decoder_blocks(self) -> list[tuple[int, Tensor]]:
        width = self.config.output_widths[0]
        return [(layer * width, self.rows_of_layer(layer)) for layer in range(self.config.n_layers)]

    # -- encode -------------------------------------------------------------------------------------------------------
    def _by_layer(self, x: Tensor) -> list[Tensor]:
        return [part.contiguous() for part in x.split(self.config.source_widths, -1)]

    def _encoders(self) -> list[tuple[Tensor, Tensor]]:
        n = self._of_one_group
        return list(zip(self.encoder.weight.split(n), self.encoder.bias.split(n), strict=True))

    def _encode(self, x: Tensor, selection: Selection, path: Path) -> tuple[Pattern, Tensor]:
        found = []
        for layer, (rows, (weight, bias)) in enumerate(zip(self._by_layer(x), self._encoders(), strict=True)):
            found.append(encode(rows, weight, bias, None, self._rule_of(selection, layer), path))
        return stacked(found)

    def _rule_of(self, selection: Selection, layer: int) -> Selection:
        """The rule for the features of one layer, which are selected among themselves."""
        n = self._of_one_group
        if not isinstance(selection, Elementwise):
            return selection
        return cast(Selection, selection.at(torch.arange(layer * n, layer * n + n, device=self.device)))

    def pre_activations_of_scaled(self, scaled: Tensor, features: Tensor | None = None) -> Tensor:
        parts = zip(self._by_layer(scaled), self._encoders(), strict=True)
        if features is None:
            return torch.cat([nn.functional.linear(rows, *encoder) for rows, encoder in parts], -1)
        layers = features.div(self._of_one_group, rounding_mode="floor")
        pre = scaled.new_empty(*scaled.shape[:-1], len(features))
        for layer, (rows, _) in enumerate(parts):
            wanted = (layers == layer).nonzero()[:, 0]
            own = features[wanted]
            made = nn.functional.linear(rows, self.encoder.weight[own], self.encoder.bias[own])
            pre = pre.index_copy(-1, wanted, made)
        return pre

    def at_some(self, x: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        return self.pre_activations_of_scaled(x, chosen), self.decoder_norms[chosen]

    # -- decode -------------------------------------------------------------------------------------------------------
    def written(self, pattern: Pattern, values: Tensor) -> Tensor:
        sizes = [self._of_one_group] * self.n_groups
        parts = enumerate(pattern.blocks(values, sizes))
        return sum_of_ends([part.decode(own, self.rows_of_layer(layer)) for layer, (part, own) in parts])

    def offset(self, scaled: Tensor) -> Tensor:
        if not self.config.skip:
            return self.b_dec
        passed = [rows @ weight.T for rows, weight in zip(self._by_layer(scaled), self.W_skip, strict=True)]
        return self.b_dec + torch.cat(passed, -1)

    def auxk(self, step: TrainingStep) -> Tensor:
        """The dead features of each layer learn what is missed at it and at all later ones."""
        dead, config = step.state.dead, self.config
        assert dead is not None
        n, terms = self._of_one_group, [step.reconstruction.new_zeros(())]
        layers = zip(self._by_layer(step.x), self._encoders(), dead.split(n), strict=True)
        for layer, (rows, encoder, own) in enumerate(layers):
            # Of all processes: each must take part in what the others sum up.
            n_dead = int(step.state.partition.total(torch.count_nonzero(own)))
            if not n_dead:
                continue
            writes = slice(sum(config.output_widths[:layer]), None)
            state = replace(step.state, dead=own, n_dead=min(n, n_dead + -n_dead % 16))
            target, made = step.target[:, writes], step.reconstruction[:, writes]
            part = replace(step, x=rows, target=target, reconstruction=made, state=state)
            terms.append(auxk_loss(part, *encoder, None, self.rows_of_layer(layer)))
        return reduce(torch.add, terms)

    @torch.no_grad()
    def fold_input_scale(self, keep: Literal["features", "unit_rows"] = "features") -> Self:
        """As of any SAE; of a cross-layer transcoder, which has many scales, features alone can be kept."""
        if keep != "features":
            raise ValueError(
                f"a cross-layer transcoder has a scale for each layer: keep must be 'features', got {keep!r}."
            )
        for layer, (encoder, rows) in enumerate(
            zip(self.encoder.weight.chunk(self.n_groups), self.W_dec, strict=True)
        ):
            encoder.mul_(self.input_scale[layer])
            later = self.output_scale[layer:]
            if self.config.tied_decoder:
                self.decoder_scale[layer].div_(later)
            else:
                rows.unflatten(1, (len(later), -1)).div_(later[:, None])
        self.b_dec.div_(self._scale_out)
        if self.config.skip:
            self.W_skip.mul_((self.input_scale / self.output_scale)[:, None, None])
        for scale in (self.input_scale, self.output_scale):
            scale.fill_(1.0)
        self.config.scale_inputs = False
        return self

    # -- use ----------------------------------------------------------------------------------------------------------
    def split(self, activations: Tensor) -> dict[str, Tensor]:
        """Joined reconstructions, or what lies like them (..., d_out), by layer: views of them."""
        parts = activations.split(self.config.output_widths, -1)
        return dict(zip(self.config.source_names, parts, strict=True))

    def join(self, activations: Tensor | Mapping[str, Tensor]) -> Tensor:
        """Activations by layer, one behind the other: (..., d_in). Joined ones stay as they are.

        Args:
            activations: (..., width) for each layer, with the same leading dimensions.

        Raises:
            ValueError: If there is no such layer, one is missing, or its shape does not fit.
            TypeError: If activations are no floating point tensor.
        """
        if not isinstance(activations, Mapping):
            return activations
        return joined(activations, self.config.source_names, self.config.source_widths, self.encoder.weight)

    def pre_activations(
        self, activations: Tensor | Mapping[str, Tensor], features: Sequence[int] | Tensor | None = None
    ) -> Tensor:
        """As of any SAE, of all layers: (..., n_features)."""
        return super().pre_activations(self.join(activations), features)

    def encode(
        self, activations: Tensor | Mapping[str, Tensor], features: Sequence[int] | Tensor | None = None
    ) -> Tensor:
        """As of any SAE; from the activations of some layers alone, too: features of the others are then 0."""
        if not isinstance(activations, Mapping):
            return super().encode(activations, features)
        dense = self.encode_sparse(activations).to_dense()
        return dense if features is None else dense[..., self._as_indices(features)]

    def encode_sparse(
        self, activations: Tensor | Mapping[str, Tensor], features: Sequence[int] | Tensor | None = None
    ) -> SparseFeatures:
        """As of any SAE; from the activations of some layers alone, too: features of the others are then 0."""
        if not isinstance(activations, Mapping):
            return super().encode_sparse(activations, features)
        if not activations:
            raise ValueError(
                f"no activations are given: give those of some layers, {', '.join(self.config.source_names)}."
            )
        for name in activations:
            self.layer_named(name)
        config, weight = self.config, self.encoder.weight
        given = [layer for layer, name in enumerate(config.source_names) if name in activations]
        names, widths = (
            [config.source_names[layer] for layer in given],
            [config.source_widths[layer] for layer in given],
        )
        whole = joined(activations, names, widths, weight)
        rows = dict(zip(given, whole.reshape(-1, sum(widths)).split(widths, 1), strict=True))
        selection, parts = self.selection(), []
        for layer, encoder in enumerate(self._encoders()):
            if layer in rows:
                x = (at_least_float32(rows[layer]) * self.input_scale[layer]).to(weight.dtype)
                parts.append(encode(x, *encoder, None, self._rule_of(selection, layer), "sparse"))
            else:
                nothing = torch.zeros(len(whole.reshape(-1, sum(widths))), dtype=torch.int64, device=weight.device)
                parts.append((SparsePattern(nothing[:0], nothing, config.features_per_layer), weight.new_zeros(0)))
        pattern, pre = stacked(parts)
        found = SparseFeatures(pattern, self.activation(pattern, pre), whole.shape[:-1])
        return found if features is None else found.among(self._as_indices(features).unique())

    def layer_named(self, layer: int | str) -> int:
        """The number of a layer that is given by it or by its name.

        Raises:
            ValueError: If there is no such layer.
        """
        names = self.config.source_names
        if isinstance(layer, int) and 0 <= layer < len(names):
            return layer
        if layer not in names:
            raise ValueError(f"there is no layer {layer!r}, but {', '.join(names)}.{did_you_mean(str(layer), names)}")
        return names.index(str(layer))

    def encode_layer(self, layer: int | str, activations: Tensor) -> SparseFeatures:
        """The features of one layer alone, (..., n) with n = `config.features_per_layer`.

        Args:
            layer: Its number, or its name.
            activations: (..., d), what is read there.

        Raises:
            ValueError: If there is no such layer, or activations have another size.
        """
        number, config = self.layer_named(layer), self.config
        found = self.encode_sparse({config.source_names[number]: activations})
        sizes = [config.features_per_layer] * config.n_layers
        return SparseFeatures(*found.pattern.blocks(found.entry_values, sizes)[number], found.leading_shape)

    @torch.no_grad()
    def layer(self, layer: int | str, writes: int | str | None = None) -> SAE:
        """The features of one layer as a transcoder of the class that has this rule, with weights of its own.

        Args:
            layer: The layer whose features it has, by its number or name.
            writes: The layer that it writes at, the same or a later one; None for the same. It adds `b_dec` at its own
                layer alone, and passes on by `skip` there alone.

        Raises:
            ValueError: If there is no such layer, it is an earlier one, or the config does not say where it reads and
                writes.
        """
        config, source = self.config, self.layer_named(layer)
        target = source if writes is None else self.layer_named(writes)
        place, target_place = config.source_places[source], config.target_places[target]
        if target < source or place is None or target_place is None:
            raise ValueError(
                f"the features of layer {config.source_names[source]} write at it and later ones, not at "
                f"{config.source_names[target]}."
                if target < source
                else "the config does not say where the layers read and write: set hook_point and target_hook_point."
            )
        n, d_in, d_out = config.features_per_layer, config.source_widths[source], config.output_widths[target]
        sae_class = next(base for base in type(self).__mro__ if not issubclass(base, CrossLayer))
        known = {option.name for option in fields(sae_class.config_class)}  # type: ignore[arg-type]
        options = {name: value for name, value in copy.deepcopy(config.to_diff_dict()).items() if name in known}
        options |= {"d_in": d_in, "d_out": d_out, "n_features": n, "hook_point": place}
        options |= {"target_hook_point": target_place, "subtract_b_dec": False, "metrics": None}
        options |= {"skip": config.skip and target == source, "training": training_of_layer(config, source)}
        alone = sae_class(sae_class.config_class(**options)).to(device=self.device, dtype=self.dtype)  # type: ignore
        own = slice(source * n, source * n + n)
        bias = self.b_dec.split(config.output_widths)[target]
        parts = {
            "encoder.weight": self.encoder.weight[own],
            "encoder.bias": self.encoder.bias[own],
            "W_dec": self.rows_between(source, target),
            "b_dec": bias if target == source else torch.zeros_like(bias),
            "input_scale": self.input_scale[source],
            "output_scale": self.output_scale[target],
        }
        if options["skip"]:
            parts["W_skip"] = self.W_skip[source]
        if (threshold := getattr(self, "threshold", None)) is not None:
            parts["threshold"] = threshold[own] if alone.get_tensor("threshold").dim() else threshold.view(-1)[source]
        alone.load_state_dict(parts)
        return alone.train(self.training)

    def by_layer(self) -> "dict[str, LayerStep]":
        """The layers by name, as what stands in a language model: see `hfsae.architectures.layer_steps`."""
        from hfsae.architectures.layer_steps import by_layer

        return by_layer(self)

    def forward(
        self,
        activations: Tensor | Mapping[str, Tensor],
        target: Tensor | Mapping[str, Tensor] | None = None,
        state: StepState | None = None,
    ) -> SAEOutput:
        """As of any SAE, from all layers; `split` gives the reconstruction by layer."""
        if isinstance(target, Mapping):
            target = joined(target, self.config.source_names, self.config.output_widths, self.encoder.weight)
        return super().forward(self.join(activations), target, state)
