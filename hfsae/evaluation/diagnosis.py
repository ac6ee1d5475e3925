"""The usual mistakes in the use of an SAE, each undone in turn: what it does then tells whether that was it."""

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hfsae.autoencoder.model import SparseAutoencoder
from hfsae.configuration import SAEConfig
from hfsae.data import TokenBatch
from hfsae.evaluation.calibration import read_rows
from hfsae.evaluation.formulas import explained_variance, l0
from hfsae.evaluation.output_places import OutputPlace
from hfsae.evaluation.sums import reconstruction_sums
from hfsae.evaluation.text_batches import read_batches, take
from hfsae.hooks import HookPoint, available_hook_points, portable_name, width
from hfsae.in_model import hook_points_of

# Trials look at many places of the model, so they get fewer tokens, and some places at once.
_TRIAL_TOKENS, _PLACES_AT_ONCE = 4096, 8
# A lost scale is looked for among powers of two, then between them.
_POWERS, _REFINEMENTS = range(-8, 9), (0.5, 0.25, 0.125)

# A few texts differ from the evaluation's by this much: a share of the recorded L0 (at least one feature), a factor
# of the unexplained variance, and a little for unexplained variance near 0.
_L0_SHARE, _UNEXPLAINED_FACTOR, _UNEXPLAINED_SLACK = 0.25, 1.25, 0.02
# What must be explained where nothing was recorded.
_LEAST_EXPLAINED = 0.5


@dataclass(frozen=True)
class Figures:
    """What a self-check looks at; None where nothing was recorded."""

    l0: float | None
    explained_variance: float | None

    def __str__(self) -> str:
        shown = (f"{'–' if value is None else format(value, '.4g')}" for value in (self.l0, self.explained_variance))
        return "L0 {}, explained variance {}".format(*shown)

    def fit(self, recorded: "Figures") -> bool:
        """Whether these may be the recorded figures, measured on a few other texts."""
        assert self.l0 is not None and self.explained_variance is not None
        if recorded.l0 is not None and abs(self.l0 - recorded.l0) > max(_L0_SHARE * recorded.l0, 1.0):
            return False
        if recorded.explained_variance is None:
            return self.explained_variance >= _LEAST_EXPLAINED
        allowed = _UNEXPLAINED_FACTOR * (1 - recorded.explained_variance) + _UNEXPLAINED_SLACK
        return 1 - self.explained_variance <= allowed


class UndoneMistake(NamedTuple):
    """What an SAE does once a mistake is undone, and what the mistake then was."""

    figures: Figures
    cause: str


@dataclass(frozen=True)
class CheckSetup:
    """What is checked, and on what."""

    sae: SparseAutoencoder
    model: PreTrainedModel
    texts: Any
    tokenizer: Any
    max_tokens: int
    batch_size: int

    def batches(self, config: SAEConfig) -> list[TokenBatch]:
        """The text, cut as a config says."""
        return read_batches(
            self.texts,
            self.tokenizer,
            self.model,
            {"sae": config},
            max_tokens=self.max_tokens,
            batch_size=self.batch_size,
        )

    def few(self, config: SAEConfig) -> list[TokenBatch]:
        """The same, as much of it as a trial gets."""
        return list(take(self.batches(config), _TRIAL_TOKENS))

    def figures(self, source: Tensor, target: Tensor, factor: float = 1.0) -> Figures:
        """What the SAE makes of activations (N, d) times a factor, which an autoencoder's reconstruction is rid of."""
        device = self.sae.device
        output = self.sae((factor * source).to(device))
        assert output.reconstruction is not None and output.features is not None
        target, written = target.to(device), output.reconstruction
        if not self.sae.config.is_transcoder:
            written = written / factor
        sums = reconstruction_sums(target, written, output.features, target.mean(0))
        return Figures(l0(sums), explained_variance(sums))

    def figures_of_sides(self, sides: Sequence[OutputPlace], rows: Mapping[HookPoint, Tensor]) -> Figures:
        """What the SAE makes of activations (N, d) by hook point: the means over its sides, as they are recorded."""
        joined = torch.cat([rows[place] for place in sides[0].reads], 1).to(self.sae.device)
        of_each = []
        for side in sides:
            output = side.alone(self.sae, self.sae)(joined)
            assert output.reconstruction is not None and output.features is not None
            target = rows[side.target].to(self.sae.device)
            of_each.append(reconstruction_sums(target, output.reconstruction, output.features, target.mean(0)))
        return Figures(l0(of_each[0]), fmean(map(explained_variance, of_each)))


def undone_mistakes(setup: CheckSetup) -> Iterator[UndoneMistake]:
    """Every usual mistake undone: text cut otherwise, other places, other scales, processed weights."""
    yield from _other_tokens(setup)
    yield from _other_places(setup)
    source, target = hook_points_of(setup.sae.config, setup.model)
    rows = read_rows(setup.model, setup.few(setup.sae.config), {source, target}, of_first_process=False)
    yield _other_scale(setup, rows[source], rows[target])
    yield from _processed_weights(setup, source, rows[source], rows[target])


def _other_tokens(setup: CheckSetup) -> Iterator[UndoneMistake]:
    """Text with or without BOS, special tokens and position 0."""
    config = setup.sae.config
    source, target = hook_points_of(config, setup.model)
    if setup.tokenizer is None or isinstance(setup.texts, str):
        return
    changes: list[tuple[dict[str, Any], str]] = []
    kept = "where language models keep activations of their own kind: it fits without"
    if 0 not in config.exclude_positions:
        positions = [0, *config.exclude_positions]
        changes.append(({"exclude_positions": positions}, f"Position 0 counts, {kept}"))
    if not config.exclude_special_tokens:
        changes.append(({"exclude_special_tokens": True}, f"Special tokens count, {kept}"))
    # A token before the text takes position 0 with it, so it helps where position 0 should not count. It undoes more.
    if getattr(setup.tokenizer, "bos_token_id", None) is not None:
        for bos in {True, False} - {config.prepend_bos}:
            how = "with" if bos else "without"
            changes.append(({"prepend_bos": bos}, f"Wrong BOS: it fits text {how} BOS"))
    for fields, cause in changes:
        changed = copy.copy(config)
        for name, value in fields.items():
            setattr(changed, name, value)
        rows = read_rows(setup.model, setup.few(changed), {source, target}, of_first_process=False)
        advice = ", ".join(f"config.{name} = {value}" for name, value in fields.items())
        yield UndoneMistake(setup.figures(rows[source], rows[target]), f"{cause}; set {advice}")


def _other_places(setup: CheckSetup) -> Iterator[UndoneMistake]:
    """The same text at every other place of the same width; a transcoder has two places that may be wrong."""
    model, config = setup.model, setup.sae.config
    source, target = hook_points_of(config, model)
    batches = setup.few(config)
    sides = {"hook_point": config.d_in} | ({"target_hook_point": config.d_out} if config.is_transcoder else {})
    for field, size in sides.items():
        own = source if field == "hook_point" else target
        places = [place for place in dict.fromkeys(available_hook_points(model).values()) if place != own]
        places = [place for place in places if width(model, place) == size]
        for start in range(0, len(places), _PLACES_AT_ONCE):
            some = places[start : start + _PLACES_AT_ONCE]
            rows = read_rows(model, batches, {source, target, *some}, of_first_process=False)
            for place in some:
                x = rows[place if field == "hook_point" else source]
                y = rows[target if config.is_transcoder and field == "hook_point" else place]
                called = portable_name(model, place) or str(place)
                cause = f"Wrong hook point: it fits {called}; set config.{field} = {str(place)!r}"
                yield UndoneMistake(setup.figures(x, y), cause)


def _other_scale(setup: CheckSetup, source: Tensor, target: Tensor) -> UndoneMistake:
    """The factor of the activations that suits the SAE best."""

    def best(powers: list[float]) -> tuple[float, Figures]:
        tried = [(power, setup.figures(source, target, 2.0**power)) for power in powers]
        return max(tried, key=lambda pair: pair[1].explained_variance or 0.0)

    power, figures = best([float(power) for power in _POWERS if power])
    for step in _REFINEMENTS:
        power, figures = best([power - step, power, power + step])
    scale = 2.0**power * float(setup.sae.input_scale)
    cause = f"Wrong scale: it fits activations {2.0**power:.3g} times as large; set input_scale to about {scale:.3g}"
    return UndoneMistake(figures, cause)


def _processed_weights(setup: CheckSetup, source: HookPoint, x: Tensor, target: Tensor) -> Iterator[UndoneMistake]:
    """Activations as libraries have them that process a language model's weights (TransformerLens)."""
    folded = [
        (
            bare,
            f"what {path} gives without its weight and bias, which fold_ln of TransformerLens folds into the layers "
            "after it; fold them in this model too",
        )
        for path, bare in _without_affine_norms(setup.model, source, x)
    ]
    if setup.sae.config.is_transcoder:
        centred = (
            _centred(target),
            "a target without its mean over dimensions, which center_writing_weights of TransformerLens takes off the "
            "weights and biases of the layers that write it; take it off in this model too",
        )
        for (read, reads), (written, writes) in itertools.product([(x, ""), *folded], [(target, ""), centred]):
            if it_fits := ", and ".join(filter(None, (reads, writes))):
                yield UndoneMistake(setup.figures(read, written), f"Processed weights: it fits {it_fits}")
        return
    centred = (
        _centred(x),
        "activations without their mean over dimensions, as centred weights (center_writing_weights of "
        "TransformerLens) give; set config.input_transform = 'center'",
    )
    normed = (
        _centred(x) / x.std(-1, keepdim=True),
        "activations after a layer norm; set config.input_transform = 'layer_norm'",
    )
    for rows, it_fits in [*folded, centred, normed]:
        yield UndoneMistake(setup.figures(rows, rows), f"Processed weights: it fits {it_fits}")


def _centred(rows: Tensor) -> Tensor:
    return rows - rows.mean(-1, keepdim=True)


def _without_affine_norms(model: PreTrainedModel, place: HookPoint, x: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Activations as they were before the weight and bias of a norm that they may come from, and that norm's path."""
    block = place.path.rpartition(".")[0]
    near = [place.path] if place.side == "output" else []
    if block:
        near += [f"{block}.{name}" for name, _ in model.get_submodule(block).named_children()]
    for path in dict.fromkeys(near):
        module = model.get_submodule(path)
        if getattr(module, "weight", None) is not None and module.weight.shape == x.shape[1:]:  # type: ignore[union-attr]
            weight, bias = _affine(module, x)
            yield path, (x - bias) / weight


def _affine(norm: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """What a norm multiplies by and adds, whatever it calls them, seen from what it makes of ±1 and of 0."""
    like = next(norm.parameters())
    signs = torch.ones(x.shape[1:], device=like.device, dtype=like.dtype)
    signs[::2] = -1
    bias = norm(torch.zeros_like(signs)[None])[0]
    weight = (norm(signs[None])[0] - bias) * signs
    return weight.to(x), bias.to(x)
