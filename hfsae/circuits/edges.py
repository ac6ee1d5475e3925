"""Edges of a circuit by batched backward passes through the linear model."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from hfsae.circuits.influence import ROWS_AT_ONCE, influence_on_logits
from hfsae.circuits.replacement import LocalReplacement
from hfsae.circuits.targets import Targets
from hfsae.hooks import HookPoint

# Batches between two rankings of what is traced next, as in circuit-tracer.
_BATCHES_A_RANKING = 4


class Progress(Protocol):
    """What is told how many features were traced."""

    def update(self, n: float | None = 1) -> object: ...


@dataclass(frozen=True)
class AllFeatures:
    """Every active feature of a prompt, source after source.

    Attributes:
        names: The sources, in the order of a forward pass.
        source: (N,) int64, index in `names`.
        positions: (N,) int64.
        features: (N,) int64.
        values: (N,).
    """

    names: list[str]
    source: Tensor
    positions: Tensor
    features: Tensor
    values: Tensor

    @classmethod
    def of(cls, replacement: LocalReplacement) -> "AllFeatures":
        order = {place: number for number, place in enumerate(replacement.places)}
        names = sorted(replacement.sources, key=lambda name: order[replacement.sources[name].writes[0]])
        active = [replacement.active[name] for name in names]
        return cls(
            names,
            torch.cat([torch.full_like(found.positions, number) for number, found in enumerate(active)]),
            torch.cat([found.positions for found in active]),
            torch.cat([found.features for found in active]),
            torch.cat([found.values for found in active]),
        )

    def __len__(self) -> int:
        return len(self.source)


@dataclass(frozen=True)
class EdgeRows:
    """Edges into some nodes.

    Attributes:
        features: (n,) int64, the features that have a row, in rising order, as numbers in `AllFeatures`.
        into_logits: (T, columns). Columns are all features, then errors place by place, then embeddings.
        constants: (n + T,), what biases add to each node.
        traced: (n, columns), the rows of the features, in the order in which they were traced.
        places: (n,) int64, for each of `features` its row in `traced`.
    """

    features: Tensor
    into_logits: Tensor
    constants: Tensor
    traced: Tensor
    places: Tensor

    def parts(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Some rows at a time, in the order of `features`: which (m,), and their edges (m, columns)."""
        for part in torch.arange(len(self.features)).split(ROWS_AT_ONCE):
            yield part, self.traced[self.places[part]]


class Backward:
    """One pass of the linear model, from which gradients of many targets at once go back.

    Args:
        replacement: The model at the prompt.
        features: All its features.
    """

    def __init__(self, replacement: LocalReplacement, features: AllFeatures):
        self._replacement, self._features = replacement, features
        whole = replacement.written() | {None: replacement.embeddings}
        self._leaves: dict[HookPoint | None, Tensor] = {
            place: value[None].clone().requires_grad_() for place, value in whole.items()
        }
        written = {place: leaf for place, leaf in self._leaves.items() if place is not None}
        with torch.enable_grad():
            self._reads, self._hidden = replacement.run(written, self._leaves[None])

    def into_features(self, chosen: Tensor) -> Tensor:
        """Rows of edges (n, columns) into n features. Memory grows with n."""
        outputs, gradients = [], []
        for number, name in enumerate(self._features.names):
            row = (self._features.source[chosen] == number).nonzero()[:, 0]
            if len(row):
                active, here = self._replacement.active[name], self._index_in_source(chosen[row], number)
                outputs.append(self._reads[name])
                gradients.append(outputs[-1].new_zeros(len(chosen), *outputs[-1].shape))
                gradients[-1][row, 0, active.positions[here]] = active.readers[here]
        return self._rows(outputs, gradients, len(chosen))

    def into_logits(self, vectors: Tensor) -> Tensor:
        """Rows of edges (T, columns) into targets (T, d)."""
        return self._rows([self._hidden], [vectors[:, None]], len(vectors))

    def into(self, output: Tensor, chosen: Tensor) -> Tensor:
        """Rows (n, columns) into n sums over what passed in the same pass, weighted by `chosen` (n, *shape)."""
        return self._rows([output], [chosen], len(chosen))

    def _index_in_source(self, chosen: Tensor, number: int) -> Tensor:
        return chosen - int((self._features.source < number).sum())

    def _rows(self, outputs: list[Tensor], gradients: list[Tensor], n: int) -> Tensor:
        replacement = self._replacement
        leaves = list(self._leaves)
        found: dict[HookPoint | None, Tensor | None] = dict.fromkeys(leaves)
        if tied := [(output, by) for output, by in zip(outputs, gradients, strict=True) if output.requires_grad]:
            with torch.autograd.set_detect_anomaly(False):  # which cannot look into a batch of gradients
                made = torch.autograd.grad(
                    [output for output, _ in tied],
                    [self._leaves[leaf] for leaf in leaves],
                    [by for _, by in tied],
                    retain_graph=True,
                    allow_unused=True,
                    is_grads_batched=True,
                )
            found = {
                leaf: None if gradient is None else gradient[:, 0] for leaf, gradient in zip(leaves, made, strict=True)
            }
        features = torch.zeros(n, len(self._features), dtype=self._hidden.dtype, device=self._hidden.device)
        start = 0
        for name in self._features.names:
            active = replacement.active[name]
            for place, written in active.written.items():
                if (gradient := found[place]) is not None:
                    columns = features[:, start : start + len(active)]
                    _add_products(columns, gradient, written, active.positions)
            start += len(active)
        others = [(found[place], replacement.errors[place]) for place in replacement.places]
        others.append((found[None], replacement.embeddings))
        products = [
            torch.einsum("bsd,sd->bs", gradient, value) if gradient is not None else features.new_zeros(n, len(value))
            for gradient, value in others
        ]
        return torch.cat([features, *products], dim=1)


def _add_products(columns: Tensor, gradient: Tensor, written: Tensor, positions: Tensor) -> None:
    """Adds `gradient[:, positions[i]] · written[i]` to column i; position by position, so that memory stays small.

    Positions rise, so the features of one stand together.
    """
    start = 0
    for position, number in enumerate(torch.bincount(positions).tolist()):
        end = start + number
        if number:
            columns[:, start:end] += gradient[:, position] @ written[start:end].T
        start = end


def trace_rows(
    replacement: LocalReplacement,
    features: AllFeatures,
    targets: Targets,
    *,
    max_features: int,
    batch_size: int,
    progress: Progress,
    offload: Path | None = None,
) -> EdgeRows:
    """Traces logits, then features, those with the strongest influence on what is traced already first.

    Args:
        replacement: The model at the prompt.
        features: All its features.
        targets: The logits.
        max_features: How many features get a row.
        batch_size: Targets of one backward pass.
        progress: Is told how far it is.
        offload: A file that holds the rows; None keeps them in memory.
    """
    total = min(max_features, len(features))
    backward = Backward(replacement, features)
    logits = torch.cat([backward.into_logits(part) for part in targets.vectors.split(batch_size)]).cpu()
    rows = _room(total, logits, offload)
    order = torch.zeros(0, dtype=torch.int64)
    while len(order) < total:
        if total == len(features):
            pending = torch.arange(total)
        else:
            levels = features.source.cpu()[order]
            influence = influence_on_logits(logits, rows[: len(order)], order, levels, targets.weights.to(logits))
            influence[order] = -torch.inf
            wanted = min(_BATCHES_A_RANKING * batch_size, total - len(order))
            # Layer by layer: a backward pass then goes through no more of the model than its targets have below them.
            pending = influence[: len(features)].topk(wanted).indices.sort().values
        for part in pending.split(batch_size):
            rows[len(order) : len(order) + len(part)] = backward.into_features(part.to(features.source.device)).cpu()
            order = torch.cat([order, part])
            progress.update(len(part))
    rising = order.argsort()
    constants = _constants(replacement, features, order[rising], targets)
    return EdgeRows(order[rising], logits, constants, traced=rows, places=rising)


def _room(total: int, logits: Tensor, offload: Path | None) -> Tensor:
    """(total, columns), rows that are to be filled, in memory or in a file."""
    columns = logits.shape[1]
    if offload is None:
        return torch.zeros(total, columns, dtype=logits.dtype)
    flat = torch.from_file(str(offload), shared=True, size=total * columns, dtype=logits.dtype)
    return flat.view(total, columns)


@torch.no_grad()
def _constants(replacement: LocalReplacement, features: AllFeatures, chosen: Tensor, targets: Targets) -> Tensor:
    """What the model's biases add to features and logits: a forward pass with nothing else in it says so."""
    added = torch.cat(
        [
            (active.readers * replacement.read_of_constants[name][active.positions]).sum(-1) + active.constants
            for name in features.names
            for active in [replacement.active[name]]
        ]
    )
    of_logits = targets.vectors @ replacement.hidden_of_constants + targets.constants
    return torch.cat([added.cpu()[chosen], of_logits.cpu()])
