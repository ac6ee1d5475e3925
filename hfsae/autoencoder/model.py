"""`SparseAutoencoder`: the tensors, the input scale, encode, decode and forward that all architectures share.

What an SAE is to its users beside computing, such as loading, the Hub and language models, `hfsae.modeling.SAE` adds.
"""

from collections.abc import Sequence
from functools import reduce
from typing import cast

import torch
from torch import Tensor

from hfsae.autoencoder.input_transform import taken_apart
from hfsae.autoencoder.objective import TrainingStep, auxk_loss
from hfsae.autoencoder.outputs import Downstream, SAEOutput, StepState, StepStatistics
from hfsae.autoencoder.parameters import Parameters
from hfsae.autoencoder.strategies import WHOLE, Partition
from hfsae.functional import (
    BatchTopK,
    DensePattern,
    Elementwise,
    Pattern,
    Picked,
    Selection,
    SparseFeatures,
    SparsePattern,
    at_least_float32,
    encode,
)
from hfsae.functional.encode import Path, goes_sparse
from hfsae.functional.features import refuse_other_features
from hfsae.functional.sparse_rows import rows_at


class SparseAutoencoder(Parameters):
    """Computes `z = activation(W_e (s·x − b_dec) + b_e)` and `x̂ = (Σ z_i W_dec[i] + b_dec) / s`."""

    # -- into scaled space and back -----------------------------------------------------------------------------------
    def scaled(self, activations: Tensor) -> Tensor:
        """Activations (..., d_in) as the encoder sees them: transformed and times `input_scale`, before `b_dec`."""
        x = taken_apart(self._check(activations).to(self.encoder.weight.dtype), self.config.input_transform)[0]
        return (at_least_float32(x) * self._scale_in).to(x.dtype)

    def scaled_target(self, activations: Tensor, target: Tensor | None) -> Tensor:
        """What a transcoder is to write, as it leaves the decoder: times `output_scale`.

        Args:
            activations: (..., d_in), what it reads.
            target: (..., d_out).

        Raises:
            ValueError: If there is no target, or not one row for each activation.
        """
        if target is None:
            raise ValueError(f"this SAE writes at {self.config.target_hook_point}: pass that activation as `target`.")
        expected = (*activations.shape[:-1], self.config.d_out)
        if target.shape != expected:
            raise ValueError(
                f"target must have shape {expected}, one row for each activation, got {(*target.shape,)}."
            )
        return (at_least_float32(target) * self._scale_out).to(self.encoder.weight.dtype)

    def _check(self, activations: Tensor) -> Tensor:
        if not isinstance(activations, Tensor) or not activations.is_floating_point():
            got = activations.dtype if isinstance(activations, Tensor) else type(activations).__name__
            raise TypeError(f"activations must be a floating point tensor, got {got}.")
        if activations.shape[-1:] != (self.config.d_in,):
            raise ValueError(
                f"activations must have shape (..., d_in={self.config.d_in}), got {tuple(activations.shape)}. "
                f"This SAE reads {self.config.hook_point or 'an unnamed hook point'} of "
                f"{self.config.base_model or 'an unnamed model'}."
            )
        return activations

    # -- use ----------------------------------------------------------------------------------------------------------
    def pre_activations(self, activations: Tensor, features: Sequence[int] | Tensor | None = None) -> Tensor:
        """`W_e (s·x − b_dec) + b_e` before any selection: (..., n_features), or only those of `features`."""
        index = None if features is None else self._as_indices(features)
        return self.pre_activations_of_scaled(self.scaled(activations), index)

    def pre_activations_of_scaled(self, scaled: Tensor, features: Tensor | None = None) -> Tensor:
        """The same from scaled activations (..., d_in)."""
        index = slice(None) if features is None else features
        x = self.encoder_input(scaled)
        return torch.nn.functional.linear(x, self.encoder_rows[index], self.encoder_bias[index])

    @property
    def _of_one_group(self) -> int:
        """Features of a group that lie in this process: all of them, but in a step of an SAE that is cut."""
        return len(self.encoder.bias) // self.n_groups

    @torch.no_grad()
    def level_of(self, scaled: Tensor, active: int) -> Tensor:
        """What a feature must exceed so that so many are active on the median token.

        Args:
            scaled: (N, d_in).
            active: How many features a token, of each of the groups that a budget is dealt to.

        Returns:
            (n_features,) equal within a group.
        """
        groups = self.pre_activations_of_scaled(scaled).float().chunk(self.n_groups, 1)
        levels = [own.topk(min(active, own.shape[1]), dim=1).values[:, -1].median() for own in groups]
        return torch.cat([level.expand(own.shape[1]) for level, own in zip(levels, groups, strict=True)])

    @property
    def _encoder_center(self) -> Tensor | None:
        return self.b_dec if self.config.subtract_b_dec else None

    def encoder_input(self, scaled: Tensor, b_dec: Tensor | None = None) -> Tensor:
        """What the encoder multiplies: scaled activations, less `b_dec` where it is subtracted.

        Args:
            scaled: (..., d_in).
            b_dec: The parameter as a plain tensor, of an SAE that is cut into DTensors; None takes its own.
        """
        center = self._encoder_center
        if center is None:
            return scaled
        return scaled - (center if b_dec is None else b_dec)

    def encode(self, activations: Tensor, features: Sequence[int] | Tensor | None = None) -> Tensor:
        """Dense feature activations, by the inference rule.

        Args:
            activations: (..., d_in), any float dtype and memory layout.
            features: Indices of the only features wanted. Where a feature's pre-activation alone decides whether it is
                active (all but topk), no others are computed.

        Returns:
            (..., n_features), or (..., len(features)) in their order.
        """
        selection = self.selection()
        if features is None or not isinstance(selection, Elementwise):
            dense = self.encode_sparse(activations).to_dense()
            return dense if features is None else dense[..., self._as_indices(features)]
        wanted = self._as_indices(features)
        pattern, column, values = self._encode_only(activations, wanted, selection)
        dense = values.new_zeros(pattern.n_tokens, len(wanted)).index_put((pattern.tokens, column), values)
        return dense.reshape(*activations.shape[:-1], len(wanted))

    def encode_sparse(self, activations: Tensor, features: Sequence[int] | Tensor | None = None) -> SparseFeatures:
        """The active features alone; nothing of size tokens × n_features is kept.

        Args:
            activations: (..., d_in).
            features: Indices of the only features wanted: the others are left out, and not computed where `encode`
                does not compute them either. The width stays n_features.

        Raises:
            IndexError: If there is no such feature.
        """
        selection, leading = self.selection(), self._check(activations).shape[:-1]
        if features is None:
            x = self.scaled(activations)
            pattern, pre = self._encode(x.reshape(-1, self.config.d_in), selection, path="sparse")
            return SparseFeatures(pattern, self.activation(pattern, pre), leading)
        wanted = self._as_indices(features).unique()
        if isinstance(selection, Elementwise):
            pattern, _, values = self._encode_only(activations, wanted, selection)
            return SparseFeatures(pattern, values, leading)
        return self.encode_sparse(activations).among(wanted)

    def _as_indices(self, features: Sequence[int] | Tensor) -> Tensor:
        """(m,) int64 of indices, of which negative ones count from the end, or of a mask.

        Raises:
            IndexError: If there is no such feature, or a mask has another length.
            TypeError: If they are no whole numbers.
        """
        n_features = self.config.n_features
        index = torch.as_tensor(features, device=self.encoder.weight.device).reshape(-1)
        if index.dtype == torch.bool:
            if len(index) != n_features:
                raise IndexError(f"features are a mask of {len(index)}, but there are {n_features} features.")
            return index.nonzero()[:, 0]
        if len(index) and index.is_floating_point():
            raise TypeError(f"features are {index.dtype}, expected whole numbers, or a mask.")
        if bool(((index < -n_features) | (index >= n_features)).any()):
            raise IndexError(f"features {index.tolist()[:9]}: expected indices from 0 to {n_features - 1}.")
        return torch.where(index < 0, index + n_features, index).long()

    def _encode_only(
        self, activations: Tensor, features: Tensor, selection: Elementwise
    ) -> tuple[SparsePattern, Tensor, Tensor]:
        """The entries of some features, each of which is decided by itself; their places among these; their values."""
        rows = self.pre_activations(activations, features)
        rows = rows.reshape(rows.shape[:-1].numel(), len(features))
        tokens, column = (selection.at(features).mask(rows.detach()) | rows.detach().isnan()).nonzero(as_tuple=True)
        per_token = torch.bincount(tokens, minlength=len(rows))
        if rows.dtype != self.encoder.weight.dtype:  # autocast decides which are active, and leaves values wide
            with torch.autocast(rows.device.type, enabled=False):
                rows = self.pre_activations(activations, features).reshape(rows.shape)
        pattern = SparsePattern(features[column], per_token, self.config.n_features)
        return pattern, column, self.activation(pattern, rows[tokens, column])

    def _encode(self, x: Tensor, selection: Selection, path: Path) -> tuple[Pattern, Tensor]:
        return encode(x, self.encoder_rows, self.encoder_bias, self._encoder_center, selection, path)

    def decode(self, features: Tensor | SparseFeatures, activations: Tensor | None = None) -> Tensor:
        """Activations (..., d_out) that the features stand for.

        Args:
            features: Dense (..., n_features), or what `encode_sparse` returned.
            activations: The activations (..., d_in) that were encoded. They are needed for `skip`, and where what was
                taken out of them must be put back (`input_transform` of `"layer_norm"` or `"constant_norm"`). With
                `"center"` they bring the mean back.

        Raises:
            ValueError: If they are needed and missing. Likewise if features or activations have another shape.
            TypeError: If features are no tensor.
        """
        config = self.config
        refuse_other_features(features, (config.n_features,))
        if activations is None and (config.skip or config.input_transform in ("layer_norm", "constant_norm")):
            why = "skip=True" if config.skip else f"input_transform={config.input_transform!r}"
            raise ValueError(f"with {why}, decode needs the activations too: sae.decode(features, activations).")
        if isinstance(features, SparseFeatures):
            pattern, values, leading = features.pattern, features.entry_values, features.leading_shape
        else:
            values, leading = features.reshape(-1, config.n_features), features.shape[:-1]
            pattern = DensePattern(values, torch.Tensor.bool)
        if activations is not None and self._check(activations).shape[:-1] != leading:
            raise ValueError(
                f"features of {tuple(leading)} tokens, but activations of {tuple(activations.shape[:-1])}: give "
                "those of the same tokens."
            )
        written = self.written(pattern, values.to(self.encoder.weight.dtype)).reshape(*leading, config.d_out)
        offset = self.offset(self.scaled(cast(Tensor, activations))) if config.skip else self.b_dec
        return self._unscaled(written + offset, activations)

    def offset(self, scaled: Tensor) -> Tensor:
        """What a reconstruction holds beside features, in scaled space: `b_dec`, and what `skip` passes on.

        Args:
            scaled: (..., d_in) scaled activations.

        Returns:
            (d_out,), or (..., d_out) with `skip`.
        """
        return self.b_dec + scaled @ self.W_skip.T if self.config.skip else self.b_dec

    def _unscaled(self, scaled: Tensor, activations: Tensor | None) -> Tensor:
        """Undoes the output scale and, where the activations are known, `input_transform`."""
        raw = (at_least_float32(scaled) / self._scale_out).to(scaled.dtype)
        if activations is None or self.config.input_transform == "none":
            return raw
        _, mean, spread = taken_apart(activations.to(self.encoder.weight.dtype), self.config.input_transform)
        return raw * spread + mean

    def forward(self, activations: Tensor, target: Tensor | None = None, state: StepState | None = None) -> SAEOutput:
        """Reconstructs activations; with a `state`, also takes a training step's loss.

        Args:
            activations: (..., d_in).
            target: (..., d_out), what a transcoder is to predict; only read with a `state`.
            state: The trainer's view of the step. Without it the inference rule applies and `loss` is None.

        Returns:
            An `SAEOutput`.
        """
        if state is not None:
            return self._training_step(activations, target, state)
        features = self.encode_sparse(activations)
        return SAEOutput(reconstruction=self.decode(features, activations), features=features)  # type: ignore[arg-type]

    def _training_step(self, activations: Tensor, target: Tensor | None, state: StepState) -> SAEOutput:
        x = self.scaled(activations).reshape(-1, self.config.d_in)
        goal = x
        if self.config.is_transcoder:
            goal = self.scaled_target(activations, target).reshape(-1, self.config.d_out)
        rule = state.picked or self.training_selection(state.progress)
        reconstruction, pattern, pre, values = self._reconstruct(x, rule, state.path, state.partition)
        step = TrainingStep(x, goal, pattern, pre, values, at_least_float32(reconstruction), state)
        losses = self.objective(step)
        if state.auxk_alpha and state.n_dead:
            losses["auxk"] = self.auxk(step)
        if state.downstream is not None:
            losses["kl"] = self._downstream(step, activations, state.downstream)
        features = SparseFeatures(pattern, values.detach(), activations.shape[:-1])
        written = step.reconstruction.detach().reshape(*activations.shape[:-1], self.config.d_out)
        firing = pattern.tokens_firing(values)
        statistics = StepStatistics(
            tokens_firing=firing,
            l0=firing.sum().float() / max(pattern.n_tokens, 1),
            variance=step.variance,
            kl_nats=None if state.downstream is None else state.downstream.kl,
            **self.training_statistics(step),
        )
        total = reduce(torch.add, [at_least_float32(term) for term in losses.values()])
        return SAEOutput(
            loss=total,  # type: ignore[arg-type]
            losses={name: term.detach() for name, term in losses.items()},
            reconstruction=self._unscaled(written, activations),  # type: ignore[arg-type]
            features=features,
            statistics=statistics,
        )

    def _downstream(self, step: TrainingStep, activations: Tensor, behind: Downstream) -> Tensor:
        """A term of the loss that lies in the language model: its value, and its gradient by the chain rule."""
        if behind.activations is None:
            made = self._unscaled(step.reconstruction, activations.reshape(-1, self.config.d_in))
        else:
            made = self.training_reconstruction(behind.activations, step.state.progress)
        return behind.loss + (behind.gradient * (made - made.detach())).sum()

    def scaled_gradient(self, gradient: Tensor, activations: Tensor) -> Tensor:
        """What a gradient with respect to the reconstruction is in scaled space, where the squared error is taken.

        Args:
            gradient: (N, d_out), with respect to the reconstruction in the language model's scale.
            activations: (N, d_in) that were read for it.

        Returns:
            (N, d_out).
        """
        with torch.enable_grad():
            written = torch.zeros_like(gradient, requires_grad=True)
            return torch.autograd.grad(self._unscaled(written, activations), written, gradient)[0]

    def training_reconstruction(self, activations: Tensor, progress: float = 1.0) -> Tensor:
        """What training makes of activations (N, d_in), in the language model's scale, by the training rule.

        Args:
            activations: (N, d_in). Gradients reach them.
            progress: How much of the run is done.

        Returns:
            (N, d_out).
        """
        rule = self.training_selection(progress)
        return self._unscaled(self._reconstruct(self.scaled(activations), rule, "auto", WHOLE)[0], activations)

    @torch.no_grad()
    def picked(self, activations: Tensor, state: StepState) -> Picked | None:
        """The entries of a training step whose rule asks the device how many there are.

        A step that is given them by `StepState.picked` asks nothing and does the same.

        Args:
            activations: (N, d_in).
            state: The step.

        Returns:
            The k·N entries of a batch's budget, or fewer where fewer are positive. None where nothing is asked: the
            rule picks as many of every token, or products are dense.
        """
        rule = self.training_selection(state.progress)
        x = self.scaled(activations)
        if not isinstance(rule, BatchTopK) or not goes_sparse(x, self.config.n_features, lambda: rule.k, state.path):
            return None
        pattern, pre = self._encode(x, rule, "sparse")
        assert isinstance(pattern, SparsePattern)
        return Picked(pattern.features, pattern.per_token, pre, rule.k * len(x))

    def _reconstruct(
        self, x: Tensor, rule: Selection, path: Path, partition: Partition
    ) -> tuple[Tensor, Pattern, Tensor, Tensor]:
        """The reconstruction of (N, d_in) scaled activations by a rule of training, and the entries that write it."""
        pattern, pre = self._encode(x, partition.rule(rule), path)
        values = self.activation(pattern, pre)
        written = self.written(pattern, values) + partition.share(self.offset(x))
        return partition.total(written), pattern, pre, values

    def written(self, pattern: Pattern, values: Tensor) -> Tensor:
        """What features write together in scaled space, (N, d_out)."""
        return pattern.decode(values, self.decoder_rows)

    def at_some(self, x: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Pre-activations (N, m) of some features, ascending, and how long what each of them writes is, (m,)."""
        rows, bias = rows_at(self.encoder_rows, chosen), self.encoder_bias[chosen]
        pre = torch.nn.functional.linear(self.encoder_input(x), rows, bias)
        return pre, rows_at(self.decoder_rows, chosen).norm(dim=1)

    def auxk(self, step: TrainingStep) -> Tensor:
        """The term of the loss by which dead features learn what is missed."""
        encoder = self.encoder_rows, self.encoder_bias, self._encoder_center
        return auxk_loss(step, *encoder, self.decoder_rows, self.signed)

    @torch.no_grad()
    def scaled_reconstruction(self, scaled: Tensor, partition: Partition = WHOLE) -> Tensor:
        """What training makes of (N, d_in) scaled activations, in scaled space, by the training rule."""
        return self._reconstruct(scaled, self.training_selection(), "auto", partition)[0]
