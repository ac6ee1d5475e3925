"""How a training step is carried out: where its features lie, and what the step of an architecture allows.

A trainer chooses a `Partition` and hands it over with the `StepState`. An architecture declares above its class what
its step allows: `@shardable`, `@replayable`. One that declares nothing is trained the plain way.
"""

from typing import TypeVar

from torch import Tensor

from hfsae.functional import Selection

Kind = TypeVar("Kind", bound=type)

_shardable: set[type] = set()
_replayable: set[type] = set()
_plain: set[type] = set()


class Partition:
    """All features lie in this process. `hfsae.parallel.sharded_sae` has the partition among several processes."""

    def rule(self, selection: Selection) -> Selection:
        """The rule by which this process picks its own of the features that a rule picks of all."""
        return selection

    def total(self, part: Tensor) -> Tensor:
        """What all features write together, or any other sum over them, from the part of this process's features.

        Differentiable: each process's part has the gradient of the sum.
        """
        return part

    def share(self, added_once: Tensor) -> Tensor:
        """This process's share of what is added once, such as `b_dec`."""
        return added_once

    def sizes(self, blocks: list[int]) -> list[int]:
        """How many features of each of these consecutive blocks lie in this process."""
        return blocks


WHOLE = Partition()


def shardable(sae_class: Kind) -> Kind:
    """Declares that the features of an architecture, and of its subclasses, can lie in several processes.

    The objective then looks at other features by way of the `TrainingStep` alone: `mse`, `mean_per_token`,
    `mean_weighted`, `reconstruct`, `rule`.
    """
    _shardable.add(sae_class)
    return sae_class


def replayable(sae_class: Kind) -> Kind:
    """Declares that every step of an architecture, and of its subclasses, runs alike.

    It runs the same operations on tensors of the same shapes, whatever the batch holds and whichever step it is, and
    reads nothing back. On a GPU it is then recorded once and replayed, with the step's `progress` as it was. A batch's
    budget of entries (`BatchTopK`) is dealt out before the part that is recorded, and `after_step` comes behind it.
    """
    _replayable.add(sae_class)
    return sae_class


def plain(sae_class: Kind) -> Kind:
    """Declares that an architecture is trained the plain way, even where its base classes declare more."""
    _plain.add(sae_class)
    return sae_class


def is_shardable(sae: object) -> bool:
    """Whether the features of an SAE can lie in several processes."""
    return _declares(sae, _shardable)


def is_replayable(sae: object) -> bool:
    """Whether every step of an SAE runs alike."""
    return _declares(sae, _replayable)


def _declares(sae: object, kind: set[type]) -> bool:
    own = [base for base in type(sae).__mro__ if base in kind or base in _plain]
    return bool(own) and own[0] not in _plain
