"""SAEs too wide for one device: each process holds some of the features, and steps on the rows of all processes.

Weights, gradients and Adam's moments are DTensors (`torch.distributed.tensor`) cut along the features. So clipping
sees the whole gradient, and nothing but `b_dec` and `W_skip` is held twice. In a step a process encodes by its own
features, of which those are active that the rule of the whole SAE picks (`hfsae.parallel.sharded_selection`). Each
process writes what its own features say, and the parts are added up, as are penalties. The backward pass needs no
exchange but for the gradient of what is held whole.

Of an SAE whose features are selected in groups, as those of a cross-layer transcoder by layer, each process holds a
part of every group. While it is cut, what has a row for each feature of all groups is (groups, n, ...), cut along n.
"""

import copy
from collections.abc import Mapping
from dataclasses import replace
from itertools import accumulate, pairwise

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor
from torch.func import functional_call

from hfsae.autoencoder.model import SparseAutoencoder
from hfsae.autoencoder.outputs import SAEOutput, StepState
from hfsae.autoencoder.strategies import Partition, is_shardable
from hfsae.functional import GroupMax, Selection
from hfsae.parallel.sharded_selection import SHARED, of_all

_OF_GROUPS = Shard(1)
"""How what has a row for each feature of several groups is cut, as (groups, n, ...)."""

OF_NO_FEATURE = ("b_dec", "W_skip")
"""Parameters that have no row or number for each feature, even where they are as wide; no process cuts them."""


def refuse_unfit(sae: SparseAutoencoder, processes: int) -> None:
    """Raises where an SAE cannot be cut into so many parts.

    Args:
        sae: The SAE; its weights are not looked at.
        processes: The number of processes.

    Raises:
        ValueError: Says why.
    """
    config, rule, why = sae.config, sae.training_selection(), None
    if not is_shardable(sae) or not isinstance(rule, SHARED):
        why = f"does not know how to cut {config.model_type.removeprefix('hfsae_')}"
    elif sae.compares_features:
        why = "deals features to processes, which cannot be held against each other then, as orthogonality asks"
    elif (n := config.n_features // sae.n_groups) % processes:
        of = "" if sae.n_groups == 1 else " of each layer"
        why = f"gives each process as many features{of}, which {n} on {processes} processes are not"
    elif isinstance(rule, GroupMax) and rule.k % processes:
        why = f"gives each process as many whole groups, which k={rule.k} on {processes} processes are not"
    if why is not None:
        raise ValueError(f"sae_placement='shard' {why}. Change that, or use another sae_placement.")


class ShardedSAE(nn.Module):
    """Steps an SAE whose features lie in several processes; called as the SAE itself, with the same rows everywhere.

    The parameters of the SAE become DTensors, until `join`. Losses and statistics are those of the whole SAE, the same
    on every process.

    Args:
        sae: The SAE, whole and the same on every process; edited in place.
        accelerator: The run's accelerator, of several processes.
    """

    def __init__(self, sae: SparseAutoencoder, accelerator: Accelerator):
        super().__init__()
        self._mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
        groups = self._groups = sae.n_groups
        for name, parameter in list(sae.named_parameters()):
            placement = _placement(sae, name, parameter)
            _set(sae, name, nn.Parameter(_cut(_like(parameter.detach(), placement, groups), self._mesh, placement)))
        for parameter in sae.parameters():
            # Of what is kept whole, each process finds a part of the gradient.
            assert isinstance(parameter, DTensor)
            parameter.register_hook(lambda grad, to=parameter.placements: grad.redistribute(placements=to))
        self.sae = sae
        self._partition = Shards(self._mesh)
        # What computes with this process's features, without weights of its own.
        with torch.device("meta"):
            self._part: SparseAutoencoder = type(sae)(copy.deepcopy(sae.config)).train()  # type: ignore[call-arg]

    def forward(self, activations: Tensor, target: Tensor | None, state: StepState) -> SAEOutput:
        """A training step's loss of the whole SAE.

        Args:
            activations: (N, d_in), the same on every process.
            target: (N, d_out) likewise, where it is a transcoder.
            state: The trainer's view of the step, of all features.
        """
        dead = state.dead
        if dead is not None:
            dead = _cut(dead.unflatten(0, (self._groups, -1)), self._mesh, _OF_GROUPS).to_local().flatten()
        state = replace(state, dead=dead, partition=self._partition)
        output: SAEOutput = functional_call(self._part, self._tensors(), (activations, target), {"state": state})
        statistics = output.statistics
        assert statistics is not None
        own = statistics.tokens_firing.unflatten(0, (self._groups, -1))
        firing = DTensor.from_local(own, self._mesh, [_OF_GROUPS]).full_tensor().flatten()
        statistics.tokens_firing, statistics.l0 = firing, firing.sum() / len(activations)
        if (kept := statistics.smallest_kept) is not None:
            statistics.smallest_kept = DTensor.from_local(kept, self._mesh, [Partial("min")]).full_tensor()
        output.features = None  # of this process alone
        return output

    @torch.no_grad()
    def scaled_reconstruction(self, scaled: Tensor) -> Tensor:
        """As `SparseAutoencoder.scaled_reconstruction`, of the whole SAE."""
        tensors = {f"part.{name}": tensor for name, tensor in self._tensors().items()}
        return functional_call(_Reconstruction(self._part, self._partition), tensors, (scaled,))

    def _tensors(self) -> dict[str, Tensor]:
        """What the part of the SAE computes with."""
        parameters = {name: _local(parameter) for name, parameter in self.sae.named_parameters()}
        return parameters | dict(self.sae.named_buffers())

    def join(self) -> None:
        """Makes the SAE whole again, on every process."""
        for name, parameter in list(self.sae.named_parameters()):
            _set(self.sae, name, nn.Parameter(whole(parameter.detach())))


def _placement(sae: SparseAutoencoder, name: str, parameter: Tensor) -> Placement:
    """Along what a parameter is cut."""
    n, rows = sae.config.n_features, parameter.shape[:1]
    if name in OF_NO_FEATURE or rows not in ((n,), (n // sae.n_groups,)):
        return Replicate()
    return _OF_GROUPS if sae.n_groups > 1 and rows == (n,) else Shard(0)


def _like(tensor: Tensor, placement: Placement, groups: int) -> Tensor:
    """A whole tensor as it is when it is cut so."""
    return tensor.unflatten(0, (groups, -1)) if placement == _OF_GROUPS else tensor


def _cut(tensor: Tensor, mesh: DeviceMesh, placement: Placement) -> DTensor:
    """A tensor that every process has whole, of which each keeps its own part: nothing is sent."""
    return distribute_tensor(tensor, mesh, [placement], src_data_rank=None)


def _set(sae: SparseAutoencoder, name: str, parameter: nn.Parameter) -> None:
    module, _, own = name.rpartition(".")
    setattr(sae.get_submodule(module), own, parameter)


def _local(parameter: Tensor) -> Tensor:
    """This process's part of a parameter, as autograd is to see it."""
    assert isinstance(parameter, DTensor)
    placement = parameter.placements[0]
    local = parameter.to_local(grad_placements=[Partial()] if placement.is_replicate() else parameter.placements)
    return local.flatten(0, 1) if placement == _OF_GROUPS else local


def whole(tensor: Tensor) -> Tensor:
    """A tensor put together, where it is cut: every process must call this."""
    if not isinstance(tensor, DTensor):
        return tensor
    put_together = tensor.full_tensor()
    return put_together.flatten(0, 1) if tensor.placements[0] == _OF_GROUPS else put_together


def shape_of_whole(tensor: Tensor) -> torch.Size:
    """The shape of `whole(tensor)`, for which nothing is sent."""
    of_groups = isinstance(tensor, DTensor) and tensor.placements[0] == _OF_GROUPS
    return torch.Size([tensor.shape[:2].numel(), *tensor.shape[2:]]) if of_groups else tensor.shape


def stored(tensor: Tensor, keep: bool) -> Tensor | None:
    """A tensor put together for a file: in the host's memory where it was cut, and only for a process that keeps it.

    Every process must call this; none has more than one tensor whole on its device at a time.
    """
    put_together = whole(tensor)
    if not keep:
        return None
    return put_together if put_together is tensor else put_together.cpu()


def own_part(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, to be edited in place; the tensor itself where it is not cut."""
    if not isinstance(tensor, DTensor):
        return tensor
    local = tensor.to_local()
    return local.view(-1, *local.shape[2:]) if tensor.placements[0] == _OF_GROUPS else local


def placed_like(tensor: Tensor, other: Tensor) -> Tensor:
    """A whole tensor on the device of `other`, and cut as `other` is, where both have one shape."""
    if not isinstance(other, DTensor) or tensor.shape != shape_of_whole(other):
        return tensor.to(other.device)
    (placement,) = other.placements
    return _cut(_like(tensor.to(other.device), placement, len(other)), other.device_mesh, placement)


def load_whole(sae: SparseAutoencoder, tensors: Mapping[str, Tensor]) -> None:
    """Loads stored tensors into an SAE, whether it is whole or cut; strict."""
    now = sae.state_dict()
    sae.load_state_dict({name: placed_like(t, now[name]) if name in now else t for name, t in tensors.items()})


def rows_of_own(tensor: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Which of some rows of a tensor this process holds: (m,) bool, and where they stand in its `own_part`."""
    if not isinstance(tensor, DTensor):
        return torch.ones_like(rows, dtype=torch.bool), rows
    own = len(tensor.to_local())
    place = rows - own * tensor.device_mesh.get_local_rank()
    mine = (place >= 0) & (place < own)
    return mine, place[mine]


class Shards(Partition):
    """Each process holds as many features, in order, and all see the same rows."""

    def __init__(self, mesh: DeviceMesh):
        self._mesh = mesh

    def rule(self, selection: Selection) -> Selection:
        return of_all(selection, self._mesh)

    def total(self, part: Tensor) -> Tensor:
        parts = DTensor.from_local(part, self._mesh, [Partial()])
        return parts.redistribute(placements=[Replicate()]).to_local(grad_placements=[Replicate()])

    def share(self, added_once: Tensor) -> Tensor:
        return added_once / self._mesh.size()

    def sizes(self, blocks: list[int]) -> list[int]:
        own = sum(blocks) // self._mesh.size()
        first = own * self._mesh.get_local_rank()
        ends = [min(max(end - first, 0), own) for end in accumulate(blocks)]
        return [end - start for start, end in pairwise([0, *ends])]


class _Reconstruction(nn.Module):
    """`scaled_reconstruction` as a module's call, which can be given tensors."""

    def __init__(self, part: SparseAutoencoder, partition: Partition):
        super().__init__()
        self.part = part
        self._partition = partition

    def forward(self, scaled: Tensor) -> Tensor:
        return self.part.scaled_reconstruction(scaled, self._partition)
