"""Dead features get a new start from `resample` or `repoint`; `firing.FiringCounter` tells which are dead.

Resampling points their rows at tokens that are reconstructed badly (Bricken et al. 2023, Towards Monosemanticity,
"Neuron resampling").

Features that stay dead are pointed at what is missed (`repoint`). A transcoder does not subtract a centre from what it
reads, so its biases move with the mean of the activations. Then many features drift below 0 on nearly all tokens.
There `auxk` gives them no gradient. Each end gets its own: the encoder row what was read where much is missed, the
decoder row what is missed there. An autoencoder reads what it misses: there both rows are what is missed. In its short
runs features fall out of the k strongest and stay out, since `auxk` takes long to bring them back.
"""

from collections.abc import Callable
from itertools import zip_longest
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.tensor import DTensor

from hfsae.functional import TopK
from hfsae.functional.alignment import align
from hfsae.functional.massive_tokens import MassiveTokens
from hfsae.modeling import SAE
from hfsae.parallel.sharded_sae import OF_NO_FEATURE, own_part, rows_of_own, shape_of_whole, whole
from hfsae.processes import process

# A revived encoder row is this much of a living one's mean norm, so that it fires now and then but does not shout.
_ENCODER_SHARE = 0.2


@torch.no_grad()
def resample(
    sae: SAE,
    optimiser: torch.optim.Optimizer,
    activations: Tensor,
    dead: Tensor,
    starts: dict[str, float],
    seed: int,
    reconstruct: Callable[[Tensor], Tensor] | None = None,
    together: bool = True,
) -> Tensor:
    """Gives dead features a new start from tokens that are reconstructed badly.

    Decoder rows become normalised, centred activations drawn without replacement with probability ∝ ‖error‖⁴, at the
    mean norm of living rows where rows are free. Encoder rows become the same direction at 0.2 × the mean norm of
    living encoder rows. The feature's other parameters go back to where they started, biases and thresholds in units
    of the encoder row. Its Adam moments go to 0.

    Args:
        sae: The SAE, edited in place; may be cut along its features (`hfsae.parallel.sharded_sae`).
        optimiser: Its Adam.
        activations: (N, d_in) tokens of this process.
        dead: (n_features,) bool.
        starts: Per-feature parameters by name and the value each started from.
        seed: Of the draw.
        reconstruct: Its `scaled_reconstruction`; None where it is not cut.
        together: Whether all processes hold this SAE, or a part of it, and call this with the same `dead`. All then
            use the tokens of process 0.

    Returns:
        The features that were revived: (m,) with m at most the number of tokens whose error is not 0.
    """
    scaled = sae.scaled(activations)
    made = (reconstruct or sae.scaled_reconstruction)(scaled)
    chosen = _draw(scaled, made, int(dead.sum()), seed, together)
    features = dead.nonzero()[: len(chosen), 0]
    directions = torch.nn.functional.normalize(chosen - whole(sae.b_dec), dim=1)
    living = ~dead
    norms = {"encoder.weight": _mean_norm(sae.encoder.weight, living) * _ENCODER_SHARE}
    norms["W_dec"] = 1.0 if sae.unit_decoder_rows else _mean_norm(sae.W_dec, living)
    for name, parameter in sae.named_parameters():
        if name not in norms and name not in starts:
            continue
        mine, rows = rows_of_own(parameter, features)
        if name in norms:
            own_part(parameter)[rows] = directions[mine] * norms[name]
        else:
            # Biases and thresholds count in units of the encoder row, which is shorter now than it was at the start.
            share = _ENCODER_SHARE if name in sae._in_scaled_space else 1.0
            own_part(parameter)[rows] = starts[name] * share
        for moment in optimiser.state.get(parameter, {}).values():
            if moment.shape == parameter.shape:
                own_part(moment)[rows] = 0
    return features


def _draw(scaled: Tensor, made: Tensor, wanted: int, seed: int, together: bool) -> Tensor:
    """(m, d) rows of `scaled`, whose reconstructions are known, the same on every process that holds the SAE."""
    error = (made - scaled).float().square().sum(1).square()
    available = int(torch.count_nonzero(error))
    generator = torch.Generator().manual_seed(seed)
    count = min(wanted, available)
    rows = torch.multinomial(error.double().cpu(), count, generator=generator) if count else torch.zeros(0).long()
    chosen = scaled[rows.to(scaled.device)].contiguous()
    if together and process()[1] > 1:
        # Processes see different tokens: the first one's draw is everyone's, its length included.
        length = torch.tensor(len(chosen), device=chosen.device)
        dist.broadcast(length, 0)
        if dist.get_rank() != 0:
            chosen = chosen.new_empty(int(length), scaled.shape[1])
        dist.broadcast(chosen, 0)
    return chosen


def _mean_norm(rows: Tensor, living: Tensor) -> Tensor | float:
    norms = whole(rows.norm(dim=1))[living]
    return norms.mean() if len(norms) else 1.0


# Features that stay dead are repointed up to this share of the run: what is new late is unlearned no more, what dies
# after it stays dead.
REPOINTED_UNTIL = 0.95
# From this share of the run on they start settled. With the first half so too (embedded language model, 16x, k = 32,
# 300,000 tokens, topk and jumprelu), 2.3 and 3.3 % of layer 1 were dead, but explained variance was 0.930 and 0.945.
# With the second half alone it was 3.5 and 3.5 %, 0.931 and 0.947; never settled 5.1 and 5.0 %, 0.931 and 0.947.
SETTLED_FROM = 0.5
# A revived feature is on its strongest of about so many tokens as strong as a living one on its own. The token that it
# is pointed at is another: among them it would be the strongest, and the feature silent elsewhere.
_LEVEL_TOKENS = 512
# So large a share of living features is weaker on its own than a repointed one of a transcoder. In an autoencoder so
# strong a one would write more than is missed, in the place of features that are needed: its architecture says how
# large a share there (`weaker_than_repointed`). With 0.2, 0.3 and 0.5, topk at k = 32 explained 0.905, 0.904 and
# 0.902, and 0.5, 0.3 and 0.5 % never fired (embedded language model, 16x, 400,000 tokens, seed 0).
_WEAKER_IN_TRANSCODER = 0.5
# So many living features are asked.
_LIVING = 1024
# An encoder row of this cosine with the direction of massive tokens reads little else. A direction within ten random
# ones has a cosine of 0.3 with each.
_STANDS_FOR = 0.7


@torch.no_grad()
def stand_for_massive_tokens(sae: SAE, features: Tensor, massive: MassiveTokens) -> Tensor:
    """Which of some features are silent because no massive token has come: they read nothing else, and are not dead.

    Args:
        sae: The SAE; may be cut along its features, when every process must call this.
        features: (n_features,) bool, the same on every process.
        massive: The massive tokens of the run so far.

    Returns:
        (n_features,) bool, some of `features`; none of a transcoder.
    """
    found = torch.zeros_like(features)
    asked = features.nonzero()[:, 0]
    if sae.config.is_transcoder or not len(asked) or not massive.directions.any():
        return found
    mine, rows = rows_of_own(sae.encoder.weight, asked)
    cosines = F.normalize(own_part(sae.encoder.weight)[rows].float(), dim=1) @ massive.directions[0].T
    reads_it = torch.zeros(len(asked), device=features.device)
    reads_it[mine] = (cosines.abs().amax(1) > _STANDS_FOR).float()
    if isinstance(sae.encoder.weight, DTensor):
        dist.all_reduce(reads_it)
    found[asked] = reads_it > 0
    return found


@torch.no_grad()
def repoint(
    sae: SAE,
    optimiser: torch.optim.Optimizer,
    x: Tensor,
    target: Tensor | None,
    stuck: Tensor,
    dead: Tensor,
    seed: int,
    reconstruct: Callable[[Tensor], Tensor] | None = None,
    together: bool = False,
    settled: bool = False,
    massive: MassiveTokens | None = None,
) -> int:
    """Points dead features at the tokens where an SAE misses most.

    Decoder rows become the normalised error at tokens that are drawn with probability ∝ ‖error‖², each once while
    there are enough. They have the mean norm of living rows where rows are free. Encoder rows of an autoencoder become
    the same error, those of a transcoder the centred activation there. They have the mean norm of living rows; in an
    aligned SAE the product 1 with their decoder row. Biases bring the feature, on its strongest of some hundred other
    tokens, to where a living feature is on its own. In a transcoder that is the median one. In an autoencoder three
    tenths of them lie below it, four of matryoshka's. It is above the feature's threshold where there is one. Adam's
    moments of all go to 0.

    Encoder rows leave out the directions of massive tokens, and no feature is pointed at such a token. Else hundreds
    would fire there, or features that are needed would not be among the k. In a transcoder that has k features a token
    massive tokens are like others.

    Without second moments a feature that fires rarely is thrown far off by each of its gradients. Most die of it, and
    some land where they are needed. `settled` features stay where they were pointed: their second moments are those of
    the mean living feature.

    A cross-layer transcoder's are repointed layer by layer, at what their layer reads, and what is missed at it and
    later ones. With tied decoders that is what is missed at their layer, where alone they write at first.

    Args:
        sae: The SAE, edited in place; may be cut along its features (`hfsae.parallel.sharded_sae`).
        optimiser: Its Adam.
        x: (N, d_in) what it reads, the tokens of all processes that hold it.
        target: (N, d_out) what a transcoder is to write; None for an autoencoder.
        stuck: (n_features,) bool, which features to repoint; the same on every process.
        dead: (n_features,) bool, which are dead; the others are the living ones.
        seed: Of the draw.
        reconstruct: Its `scaled_reconstruction`; None where it is not cut.
        together: Whether every process holds this SAE, or a part of it, and calls this: what process 0 draws is used
            by all.
        settled: Whether they start from the second moments of living features.
        massive: The massive tokens of the run so far, which those of `x` join; None where these are all.

    Returns:
        How many features were repointed; none of a layer in which none lives.
    """
    scaled = sae.scaled(x.to(sae.dtype))
    massive = massive or MassiveTokens(sae.config.d_in, sae.n_groups, device=x.device)
    if not (sae.config.is_transcoder and isinstance(sae.training_selection(), TopK)):
        ordinary = ~massive.see(scaled)
        scaled, x, target = _among(ordinary, scaled, x, target)
    every = max(2, len(x) // _LEVEL_TOKENS)
    some, mean = sae.encoder_input(scaled[::every], own_part(sae.b_dec)), scaled.mean(0)
    others = torch.arange(len(x), device=x.device) % every > 0
    if len(x) > 1:
        scaled, x, target = _among(others, scaled, x, target)
    goal = scaled if target is None else sae.scaled_target(x.to(sae.dtype), target.to(sae.dtype))
    error = (goal - (reconstruct or sae.scaled_reconstruction)(scaled)).float()
    generator = torch.Generator().manual_seed(seed)
    shift, count = torch.zeros_like(sae.encoder.bias), 0
    of_layers = stuck.chunk(sae.n_groups), (~dead).chunk(sae.n_groups)
    for layer, (end, of_end, alive) in enumerate(zip(_ends(sae), *of_layers, strict=True)):
        features, living = of_end.nonzero()[:, 0], alive.nonzero()[:, 0]
        if not len(features) or not len(living):
            continue
        read, missed = scaled[:, end.reads], error[:, end.writes]
        # All 0 is no distribution, nor is what is no number: the loss of the step tells of that.
        share = missed.square().sum(1).nan_to_num(0.0, 0.0) + torch.finfo(torch.float32).tiny
        drawn = _different(share.double().cpu(), len(features), generator).to(x.device)
        living = living[torch.randperm(len(living), generator=generator)[:_LIVING].to(living.device)]
        # What is read at a token is mostly explained: a feature of it fires where little is missed, and is unlearned.
        toward = missed[drawn] if target is None else (read[drawn] - mean[end.reads]).float()
        encoder = F.normalize(massive.without(toward, layer), dim=1)
        decoder = F.normalize(missed[drawn], dim=1)
        _of_first_process(encoder, decoder, together=together)
        *norms, level = _numbers(sae, end, living, some)
        encoder *= norms[0].mean()
        decoder *= 1.0 if sae.unit_decoder_rows else norms[1].mean()
        if sae.config.aligned:
            align(encoder, decoder)
        mine, rows = rows_of_own(end.decoder, features)
        own_part(sae.encoder.weight)[end.first + rows] = encoder[mine].to(sae.dtype)
        own_part(end.decoder)[rows] = decoder[mine].to(sae.dtype)
        if end.scale is not None:
            own_part(end.scale)[rows] = torch.eye(1, end.scale.shape[1], device=x.device).to(sae.dtype)
        level_now = _highest(sae, some[:, end.reads], end.first + rows)
        weaker = sae.weaker_than_repointed if target is None else _WEAKER_IN_TRANSCODER
        own_part(shift)[end.first + rows] = level.kthvalue(1 + int(weaker * (len(level) - 1))).values - level_now
        _forget(sae, optimiser, end, features, living if settled else None)
        count += len(features)
    sae.shift_pre_activations(shift)
    return count


def _among(tokens: Tensor, scaled: Tensor, x: Tensor, target: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Rows of some tokens of what is read and of what is to be written."""
    return scaled[tokens], x[tokens], None if target is None else target[tokens]


def _different(weights: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """(count,) tokens drawn by weight, none twice before all are drawn once.

    Features of one token are equal in all that they have, so they learn the same and never part.
    """
    rounds, rest = divmod(count, len(weights))
    drawn = torch.multinomial(weights, rest, generator=generator) if rest else torch.zeros(0, dtype=torch.long)
    return torch.cat([torch.arange(len(weights)).repeat(rounds), drawn])


class _End(NamedTuple):
    """Features that read and write at one place: all of an SAE, or those of a layer where it has several.

    Attributes:
        first: The first one's row in this process's part of what has a row for each feature of all layers.
        reads: Columns of what is read.
        writes: Columns of the output, one for each number in a row of the decoder.
        decoder: A row for each of these features; may be cut.
        scale: How much each writes at its layer and at each later one, where it writes the same at all.
    """

    first: int
    reads: slice
    writes: slice
    decoder: Tensor
    scale: Tensor | None


def _ends(sae: SAE) -> list[_End]:
    width, width_out = sae.config.d_in // sae.n_groups, sae.config.d_out // sae.n_groups
    ends = []
    for layer, (decoder, scale) in enumerate(zip_longest(sae.decoder_weights, getattr(sae, "decoder_scale", ()))):
        reads, writes = layer * width, layer * width_out
        slices = slice(reads, reads + width), slice(writes, writes + decoder.shape[1])
        ends.append(_End(layer * len(own_part(decoder)), *slices, decoder, scale))
    return ends


def _forget(
    sae: SAE, optimiser: torch.optim.Optimizer, end: _End, features: Tensor, living: Tensor | None = None
) -> None:
    """Sets Adam's moments of some features to 0, or the second ones to those of the mean of living ones."""
    for name, parameter in sae.named_parameters():
        if parameter is end.decoder or parameter is end.scale:
            first = 0
        elif name not in OF_NO_FEATURE and shape_of_whole(parameter)[:1] == (sae.config.n_features,):
            first = end.first
        else:
            continue
        rows = first + rows_of_own(end.decoder, features)[1]
        for kind, moment in optimiser.state.get(parameter, {}).items():
            if moment.shape == parameter.shape:
                own, like = own_part(moment), living if kind == "exp_avg_sq" else None
                own[rows] = 0 if like is None else _mean_of_rows(own, first, end, like).to(moment.dtype)


def _mean_of_rows(own: Tensor, first: int, end: _End, features: Tensor) -> Tensor:
    """The mean of the rows of some features, which may lie in several processes; `own` are those of this one."""
    total = own[first + rows_of_own(end.decoder, features)[1]].float().sum(0)
    if isinstance(end.decoder, DTensor):
        dist.all_reduce(total)
    return total / len(features)


def _highest(sae: SAE, some: Tensor, rows: Tensor) -> Tensor:
    """How far above its threshold each of some features of this process gets on its strongest of some tokens."""
    pre = F.linear(some, own_part(sae.encoder_rows)[rows], own_part(sae.encoder_bias)[rows])
    threshold = dict(sae.named_parameters()).get("threshold")
    return (pre if threshold is None else pre - own_part(threshold)[rows]).amax(0)


def _numbers(sae: SAE, end: _End, features: Tensor, some: Tensor) -> Tensor:
    """(3, features): norms of encoder and decoder rows, and `_highest`; each process finds those of its own part."""
    mine, rows = rows_of_own(end.decoder, features)
    matrices = own_part(sae.encoder.weight)[end.first + rows], own_part(end.decoder)[rows]
    norms = [matrix.float().norm(dim=1) for matrix in matrices]
    numbers = torch.stack([*norms, _highest(sae, some[:, end.reads], end.first + rows)])
    if isinstance(end.decoder, DTensor):
        own, numbers = numbers, numbers.new_zeros(len(numbers), len(features))
        numbers[:, mine] = own
        dist.all_reduce(numbers)
    return numbers


def _of_first_process(*tensors: Tensor, together: bool) -> None:
    if together and process()[1] > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)
