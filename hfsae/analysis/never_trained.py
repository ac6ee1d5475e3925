"""Tokens that a language model never learned: their rows of the unembedding all stand at one place.

A vocabulary holds tokens that no training text had: rows that fill it up, reserved names, bytes that UTF-8 never uses.
Training pushes the logits of all of these down in the same way at every step, and nothing else ever moves them. So
their rows end close together, while the rows of tokens that occurred each went their own way.

Source: Land and Bartolo (2024), arXiv:2405.05417, section 2.2.
"""

from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hfsae.hooks.inner import inner_model
from hfsae.hooks.quantised import plain_weight

# Fewer rows close together may be tokens that mean the same.
_FEWEST = 4
# So close, as a part of the distance of a typical row, that training cannot have told the rows apart.
_NEAR = 0.05
# As far apart as rows of tokens never trained may stand: where a model was trained without weight decay, each keeps
# the random numbers that it started with.
_LOOSEST = 0.1
# How much farther from the middle a row may be than the middle's nearest ones.
_SPREAD = 2.0

_DIRECTIONS, _WINDOW, _SEEDS, _ROWS_AT_ONCE = 16, 32, 32, 8192

_known: WeakKeyDictionary[nn.Module, tuple[tuple[int, int], Tensor]] = WeakKeyDictionary()


@torch.no_grad()
def untrained_tokens(model: PreTrainedModel) -> Tensor:
    """The tokens of a language model that it was never trained on, by its unembedding alone.

    The closest group of four rows or more is looked for. It is that of tokens never trained if its rows stand within
    a tenth of the distance of a typical row from its middle. Then all rows belong to it that are at most twice as far
    from its middle as those four. So do rows within a twentieth of the distance of a typical row.

    Args:
        model: The language model.

    Returns:
        int64 ids in ascending order, on the CPU. None where no such group is there, or where the model has no matrix
        of one row a token: an untrained model has none.

    Example:
        >>> tokenizer.convert_ids_to_tokens(untrained_tokens(model))  # doctest: +SKIP
        ['À', 'Á', 'rame', 'ecimal', ...]
    """
    head = inner_model(model).get_output_embeddings()
    weight = plain_weight(head)
    if not isinstance(head, nn.Module) or weight is None or weight.ndim != 2 or weight.is_meta:
        return torch.empty(0, dtype=torch.int64)
    held = head.weight  # what is quantised or offloaded is read into another tensor each time
    version = (held.data_ptr(), held._version) if isinstance(held, Tensor) else (0, 0)
    if head not in _known or _known[head][0] != version:
        _known[head] = version, _untrained_rows(weight).cpu()
    return _known[head][1].clone()


def all_but(n_tokens: int, left_out: Tensor) -> Tensor:
    """int64, the tokens of a vocabulary without some of them, in ascending order."""
    kept = torch.ones(n_tokens, dtype=torch.bool)
    kept[left_out[left_out < n_tokens]] = False
    return kept.nonzero()[:, 0]


def ruled_out(logits: Tensor) -> Tensor:
    """int64, on the CPU: the tokens with a logit of −inf in some row (n, vocabulary), where a change has no number."""
    return (logits == -torch.inf).any(0).nonzero()[:, 0].cpu()


def left_out_note(left_out: Tensor | None) -> str:
    """What pages and the terminal say beside lists that some tokens are left out of; nothing where none is."""
    n = 0 if left_out is None else len(left_out)
    return f"{n:,} tokens that the model was never trained on are left out." if n else ""


def _untrained_rows(rows: Tensor) -> Tensor:
    """The rows (n, width) that stand together, as `untrained_tokens` says."""
    if len(rows) <= 2 * _FEWEST:
        return torch.empty(0, dtype=torch.int64)
    closest = _closest(rows, _seeds(rows))
    distances = _distances(rows, rows[closest].float().mean(0))
    typical, spread = distances.median(), distances[closest].median()
    if spread > _LOOSEST * typical:
        return torch.empty(0, dtype=torch.int64)
    near = distances <= max(_NEAR * typical, _SPREAD * spread)
    # From the middle of all of them, which four rows alone tell badly.
    distances = _distances(rows, rows[near].float().mean(0))
    spread = distances[near].median()
    return (distances <= max(_NEAR * distances.median(), _SPREAD * spread)).nonzero()[:, 0]


def _closest(rows: Tensor, seeds: Tensor) -> Tensor:
    """Of the groups of some rows, each with those nearest to it, the one that is closest together."""
    centres = rows[seeds].float()
    # Squared distances less the square of each seed, which leaves the order as it is.
    groups = torch.cat([some.float().square().sum(1, True) - 2 * some.float() @ centres.T for some in _parts(rows)])
    nearest = groups.topk(_FEWEST, dim=0, largest=False).indices.T
    across = torch.cdist(rows[nearest].float(), centres[:, None], compute_mode="donot_use_mm_for_euclid_dist")
    return nearest[across.flatten(1).amax(1).argmin()]


def _distances(rows: Tensor, point: Tensor) -> Tensor:
    return torch.cat([(some.float() - point).norm(dim=1) for some in _parts(rows)])


def _seeds(rows: Tensor) -> Tensor:
    """Rows that have another one close by, the closest first.

    Comparing all rows with all is too slow for large vocabularies. Rows that stand together follow one another along
    any direction, so each is compared with the next few along some random ones, in the coordinates of these.
    """
    generator = torch.Generator().manual_seed(0)
    axes = torch.randn(rows.shape[1], _DIRECTIONS, generator=generator, dtype=torch.float32).to(rows.device)
    places = torch.cat([some.float() @ axes for some in _parts(rows)])
    nearest = places.new_full((len(places),), torch.inf)
    for column in places.T:
        order = column.argsort()
        ordered, closest = places[order], nearest[order]
        for step in range(1, min(_WINDOW, len(rows) - 1) + 1):
            apart = (ordered[step:] - ordered[:-step]).square_().sum(1)
            for side in (closest[step:], closest[:-step]):
                torch.minimum(side, apart, out=side)
        nearest[order] = closest
    return nearest.topk(min(_SEEDS, len(nearest)), largest=False).indices


def _parts(rows: Tensor) -> tuple[Tensor, ...]:
    """Some rows at a time, of which copies in float32 are made."""
    return rows.split(_ROWS_AT_ONCE)
