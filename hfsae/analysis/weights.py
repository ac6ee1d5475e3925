"""What the weights alone tell of a feature: the tokens it promotes and suppresses, and the features it is close to."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hfsae.analysis.never_trained import all_but, ruled_out, untrained_tokens
from hfsae.attachment import refuse_swapped
from hfsae.autoencoder import SparseAutoencoder
from hfsae.autoencoder.given import refuse_no_sae
from hfsae.functional.precision import own_precision
from hfsae.hooks import HookPoint, splice
from hfsae.hooks.access import never_passed
from hfsae.hooks.devices import input_device
from hfsae.hooks.layout import DecoderLayout
from hfsae.hooks.probe import seen_at
from hfsae.hooks.quiet import evaluating
from hfsae.in_model import hook_points_of

_FEATURES_AT_ONCE = 256
_BINS = 50
# Columns of one group, of which the maximum is looked at first.
_GROUP = 32

# Roles whose activation is, or is added to, the residual stream; and roles whose activation a matrix brings there.
_IN_THE_STREAM = {"resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"}
_BEFORE_A_MATRIX = {"attn_z", "mlp_act"}


class LogitEffects(NamedTuple):
    """The tokens whose logits features change most; (n, k) each, strongest first.

    Attributes:
        promoted: Token ids, int32.
        promoted_by: By how much their logit rises, float32.
        suppressed: Token ids, int32.
        suppressed_by: By how much their logit falls, a negative number, float32.
        counts: int32 (n, bins), how many tokens of the vocabulary lie in each of equal bins; None in older
            collections.
        range: float32 (n, 2), where the first bin starts and the last one ends.
        left_out: int32 (m,), the tokens that the model was never trained on (`untrained_tokens`). They are in no list
            and no bin. None in older collections, whose lists may hold some.
    """

    promoted: Tensor
    promoted_by: Tensor
    suppressed: Tensor
    suppressed_by: Tensor
    counts: Tensor | None = None
    range: Tensor | None = None
    left_out: Tensor | None = None


class Neighbours(NamedTuple):
    """The nearest features by the cosine of weight rows; (n, k) each, nearest first.

    Attributes:
        decoder: Features whose decoder rows are nearest, int32.
        decoder_cosines: float32.
        encoder: Features whose encoder rows are nearest, int32.
        encoder_cosines: float32.
    """

    decoder: Tensor
    decoder_cosines: Tensor
    encoder: Tensor
    encoder_cosines: Tensor


@torch.no_grad()
@own_precision()
def logit_effects(
    sae: SparseAutoencoder, model: PreTrainedModel, features: Sequence[int] | Tensor | None = None, *, k: int = 10
) -> LogitEffects:
    """What features say to the vocabulary directly, past all layers in between.

    A feature's direction, at a root mean square of 1, takes the place of the last block's output. It goes through the
    model's own final norm and unembedding. The logits of a residual stream of zeros are taken off. Lengths do not
    matter, so features can be compared; how much one adds depends on its activation and on the rest of the stream.

    Tokens that the model was never trained on are left out: nothing taught their logits to mean anything. Tokens that
    the model rules out, with logits of −inf, are in no list either.

    Args:
        sae: An SAE that writes into the residual stream, or to the input of the matrix that ends attention or MLP.
            What comes after that matrix within the block, such as Gemma 2's norms, is passed by.
        model: Its language model.
        features: The features wanted; None for all.
        k: Tokens on each side.

    Raises:
        ValueError: If the SAE's output does not go into the residual stream by itself, or `k` is negative.

    Example:
        >>> effects = logit_effects(sae, model, [17])  # doctest: +SKIP
        >>> tokenizer.batch_decode(effects.promoted[0, :, None])  # doctest: +SKIP
        [' self', ' cls', ' other', ...]
    """
    refuse_swapped(sae, model)
    if k < 0:
        raise ValueError(f"k is {k}: expected 0 tokens or more.")
    chosen = chosen_features(sae, features)
    left_out = untrained_tokens(model)
    found: list[list[Tensor]] = []
    with evaluating(model):
        directions = stream_directions(sae, model, chosen)
        nothing = _logits(model, torch.zeros_like(directions[:1]))
        tokens = all_but(nothing.shape[1], torch.cat([left_out, ruled_out(nothing)])).to(nothing.device)
        k = min(k, len(tokens))
        for some in directions.split(_FEATURES_AT_ONCE):
            effects = (_logits(model, some) - nothing).index_select(1, tokens)
            (up, raised), (down, lowered) = (
                (tokens[best.indices].int(), best.values) for best in (effects.topk(k), effects.topk(k, largest=False))
            )
            found.append([up, raised, down, lowered, *_histograms(effects)])
    return LogitEffects(*(torch.cat(column).cpu() for column in zip(*found, strict=True)), left_out=left_out.int())


def _histograms(effects: Tensor) -> tuple[Tensor, Tensor]:
    """Counts (n, bins) of each row's finite values in equal bins, and the rows' smallest and largest (n, 2)."""
    if not effects.shape[1]:
        return effects.new_zeros(len(effects), _BINS, dtype=torch.int32), effects.new_zeros(len(effects), 2)
    low, high = effects.aminmax(dim=1)
    if not (low.isfinite() & high.isfinite()).all():
        counts, ranges = zip(*(_histograms(row[row.isfinite()][None]) for row in effects), strict=True)
        return torch.cat(counts), torch.cat(ranges)
    # Of a row of equal values the bins are around them, as those of `torch.histc`.
    spread = (high == low).to(low.dtype)
    first, last = low - spread, high + spread
    bins = ((effects - first[:, None]) * _BINS / (last - first)[:, None]).int().clamp(0, _BINS - 1)
    bins += _BINS * torch.arange(len(bins), dtype=torch.int32, device=bins.device)[:, None]
    counts = torch.bincount(bins.flatten(), minlength=_BINS * len(bins))
    return counts.view(-1, _BINS).int(), torch.stack([low, high], 1)


@torch.no_grad()
def stream_directions(sae: SparseAutoencoder, model: PreTrainedModel, features: Tensor) -> Tensor:
    """The directions (n, hidden_size) along which features change the residual stream, in the model's dtype."""
    into_stream = _into_stream(sae, model)
    if into_stream is None:
        place = sae.config.target_hook_point or sae.config.hook_point
        raise ValueError(
            f"the output at {place} does not go into the residual stream by itself, so its features have no "
            "direct effect on logits; feature_effects measures the whole effect."
        )
    return into_stream(sae.feature_directions[features.to(sae.W_dec.device)].to(input_device(model), model.dtype))


def has_logit_effects(sae: SparseAutoencoder, model: PreTrainedModel) -> bool:
    """Whether what features write goes into the residual stream, so that `logit_effects` can say where to."""
    return _into_stream(sae, model) is not None


def _into_stream(sae: SparseAutoencoder, model: PreTrainedModel) -> Callable[[Tensor], Tensor] | None:
    """What brings directions (n, d_out) into the residual stream; None where nothing does."""
    if len(sae.config.input_widths) > 1:
        return None  # a crosscoder writes at several places; that of one source is told by sae.source(name)
    point = hook_points_of(sae.config, model)[1]
    layout = DecoderLayout.find(model)
    if layout is None or layout.streams is not None:
        return None  # several streams mix from block to block, so none of them reaches the end as it is
    roles, module = layout.roles(point), model.get_submodule(point.path)
    if roles & _IN_THE_STREAM or (isinstance(module, nn.Embedding) and point.side == "output"):
        return lambda directions: directions
    # Around a matrix an adapter of PEFT is linear, too.
    if roles & _BEFORE_A_MATRIX and isinstance(getattr(module, "base_layer", module), nn.Linear | Conv1D):
        return lambda directions: module(directions) - module(torch.zeros_like(directions[:1]))
    return None


def _logits(model: PreTrainedModel, directions: Tensor) -> Tensor:
    """(n, vocabulary) float32, of the last block's output being each direction at root mean square 1."""
    size = directions.float().square().mean(1, keepdim=True).sqrt()
    unit = (directions / size.clamp(min=torch.finfo(torch.float32).tiny)).to(directions.dtype)
    ids = torch.zeros(len(unit), 1, dtype=torch.long, device=input_device(model))
    with splice(model, _last_output(model), lambda x: unit[:, None].expand_as(x)):
        return model(input_ids=ids, use_cache=False).logits[:, -1].float()


def _last_output(model: PreTrainedModel) -> HookPoint:
    """Where the stream leaves the blocks: the last block that text alone comes to, the last time that it does."""
    layout = DecoderLayout(model)
    for layer in reversed(range(len(layout.blocks))):
        point = layout.places(layer)["resid_post"]
        seen = seen_at(model, [point], layout)[point]
        if seen is None or seen.visits == 1:
            return point
        if seen.visits:
            return replace(point, visit=seen.visits - 1)
    raise never_passed(type(model).__name__, [layout.places(0)["resid_post"]])


@torch.no_grad()
@own_precision()
def neighbours(sae: SparseAutoencoder, features: Sequence[int] | Tensor | None = None, *, k: int = 10) -> Neighbours:
    """The features that are nearest to features: by what they write, and by what they read.

    Args:
        sae: The SAE.
        features: The features wanted; None for all.
        k: Neighbours of each.

    Raises:
        ValueError: If there is no such feature, or `k` is negative.
    """
    if k < 0:
        raise ValueError(f"k is {k}: expected 0 neighbours or more.")
    chosen = chosen_features(sae, features).to(sae.device)
    return Neighbours(*_nearest(sae.decoder_blocks, chosen, k), *_nearest(sae.encoder_blocks, chosen, k))


def _nearest(blocks: list[tuple[int, Tensor]], chosen: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Ids and cosines (n, k) of the features whose rows, given in blocks with their first columns, are nearest."""
    unit = [(first, torch.nn.functional.normalize(rows.float(), dim=1)) for first, rows in blocks]
    n_features = sum(len(rows) for _, rows in unit)
    k = min(k, n_features - 1)
    found: list[tuple[Tensor, Tensor]] = []
    for some in chosen.split(_FEATURES_AT_ONCE):
        cosines = _cosines(unit, some, n_features)
        cosines[torch.arange(len(some)), some] = -torch.inf  # itself
        best, ids = _largest(cosines, k)
        found.append((ids.int(), best))
    ids, cosines = (torch.cat(column).cpu() for column in zip(*found, strict=True))
    return ids, cosines


def _cosines(unit: list[tuple[int, Tensor]], some: Tensor, n_features: int) -> Tensor:
    """(n, n_features) products of some features' rows with those of all, on the columns that both have."""
    if len(unit) == 1:
        return unit[0][1][some] @ unit[0][1].T
    made, start = unit[0][1].new_empty(len(some), n_features), 0
    for first, rows in unit:
        here = ((some >= start) & (some < start + len(rows))).nonzero()[:, 0]
        own = rows[some[here] - start]
        parts = []
        for other, theirs in unit:
            begin, end = max(first, other), min(first + own.shape[1], other + theirs.shape[1])
            columns = slice(begin - first, max(begin, end) - first), slice(begin - other, max(begin, end) - other)
            parts.append(own[:, columns[0]] @ theirs[:, columns[1]].T)
        made[here] = torch.cat(parts, 1)
        start += len(rows)
    return made


def _largest(rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Values and columns (n, k) of each row's largest, as `topk` finds them, a large one first.

    They are in the k groups of columns whose maxima are largest, so the other groups are seen once.
    """
    n_groups = rows.shape[1] // _GROUP
    if n_groups <= k:
        best = rows.topk(k)
        return best.values, best.indices
    grouped = n_groups * _GROUP
    groups = rows[:, :grouped].unflatten(1, (_GROUP, n_groups)).amax(1).topk(k, sorted=False).indices
    members = groups[:, None] + n_groups * torch.arange(_GROUP, device=rows.device)[:, None]
    rest = torch.arange(grouped, rows.shape[1], device=rows.device).expand(len(rows), -1)
    columns = torch.cat([members.flatten(1), rest], 1)
    best = rows.gather(1, columns).topk(k)
    return best.values, columns.gather(1, best.indices)


def chosen_features(sae: SparseAutoencoder, features: Sequence[int] | Tensor | None, *, once: bool = False) -> Tensor:
    """int64 indices of features, from indices or from a mask of all features.

    Args:
        sae: The SAE.
        features: Indices, a mask, or None for all.
        once: Whether a feature that is named twice is refused, where each has one row or one change.

    Raises:
        ValueError: If there is none, or one that the SAE does not have, or a mask of another length. Likewise for a
            feature that is named twice.
    """
    refuse_no_sae(sae)
    n_features = sae.config.n_features
    if features is None:
        return torch.arange(n_features)
    if not isinstance(features, Tensor) and any(isinstance(one, str) for one in features):
        raise ValueError(f"features {list(features)[:9]} are texts: expected indices.")
    chosen = torch.as_tensor(features).flatten().cpu()
    if chosen.dtype == torch.bool:
        if len(chosen) != n_features:
            raise ValueError(f"features are a mask of {len(chosen)}, but the SAE has {n_features} features.")
        chosen = chosen.nonzero()[:, 0]
    if len(chosen) and chosen.is_floating_point():
        raise ValueError(f"features {chosen.tolist()[:9]} are no whole numbers: expected indices.")
    chosen = chosen.long()
    if not len(chosen) or chosen.min() < 0 or chosen.max() >= n_features:
        raise ValueError(f"features {chosen.tolist()[:9]}: expected indices from 0 to {n_features - 1}, at least one.")
    if once and len(chosen.unique()) < len(chosen):
        numbers = chosen.tolist()
        twice = next(feature for feature in numbers if numbers.count(feature) > 1)
        raise ValueError(f"feature {twice} is named twice: name each feature once.")
    return chosen
