"""SAEs too wide for one device: each process holds some of the features, and steps on the rows of all processes.

Weights, gradients and Adam's moments are DTensors (`torch.distributed.tensor`) cut along the features, so that
clipping sees the whole gradient and nothing but `b_dec` is held twice. In a step a process encodes against its own
features and takes the k best of each token as candidates; the candidates' values go round, and those among the k best
of all processes count. Each process writes what its own features say, and the parts are added up. The backward pass
needs no exchange but for the gradient of `b_dec`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor
from torch.func import functional_call

from hfsae.configuration import SAEConfig
from hfsae.functional import Selection, SparsePattern, TopK
from hfsae.functional.selection import Chunks
from hfsae.modeling import SAE
from hfsae.outputs import SAEOutput, StepState

# What holds one row or number for each feature; everything else is kept whole in every process.
_BY_FEATURE = ("encoder.weight", "encoder.bias", "W_dec")


def refuse_unfit(sae: SAE, revival: str, processes: int) -> None:
    """Raises where an SAE cannot be cut into so many parts.

    Args:
        sae: The SAE; its weights are not looked at.
        revival: How its dead features come back.
        processes: The number of processes.

    Raises:
        ValueError: Says why.
    """
    config, why = sae.config, None
    if not sae.can_be_sharded:
        why = f"cuts topk SAEs (without groupmax and multi_topk), not {config.model_type.removeprefix('hfsae_')}"
    elif config.n_features % processes:
        why = f"gives each process as many features, which {config.n_features} on {processes} processes are not"
    elif config.n_features < processes * sae.config.k:  # type: ignore[attr-defined]
        why = f"needs k={sae.config.k} candidates in each process"  # type: ignore[attr-defined]
    elif revival == "resample":
        why = "revives dead features by auxk, not by resampling"
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

    def __init__(self, sae: SAE, accelerator: Accelerator):
        super().__init__()
        self._mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
        for name, parameter in list(sae.named_parameters()):
            placement = Shard(0) if name in _BY_FEATURE else Replicate()
            _set(sae, name, nn.Parameter(_cut(parameter.detach(), self._mesh, placement)))
        for parameter in sae.parameters():
            # Of what is kept whole, each process finds a part of the gradient.
            assert isinstance(parameter, DTensor)
            parameter.register_hook(lambda grad, to=parameter.placements: grad.redistribute(placements=to))
        self.sae = sae
        self._part = _part(sae, self._mesh)

    def forward(self, activations: Tensor, target: Tensor | None, state: StepState) -> SAEOutput:
        """A training step's loss of the whole SAE.

        Args:
            activations: (N, d_in), the same on every process.
            target: (N, d_out) likewise, where it is a transcoder.
            state: The trainer's view of the step, of all features.
        """
        if state.dead is not None:
            state = replace(
                state, dead=distribute_tensor(state.dead, self._mesh, [Shard(0)], src_data_rank=None).to_local()
            )
        tensors = {name: _local(parameter) for name, parameter in self.sae.named_parameters()}
        output: SAEOutput = functional_call(
            self._part, {**tensors, **dict(self.sae.named_buffers())}, (activations, target), {"state": state}
        )
        assert output.statistics is not None
        firing = DTensor.from_local(output.statistics.tokens_firing, self._mesh, [Shard(0)]).full_tensor()
        output.statistics.tokens_firing, output.statistics.l0 = firing, firing.sum() / len(activations)
        output.features = None  # of this process alone
        return output

    def join(self) -> None:
        """Makes the SAE whole again, on every process."""
        for name, parameter in list(self.sae.named_parameters()):
            _set(self.sae, name, nn.Parameter(whole(parameter.detach())))


def _cut(tensor: Tensor, mesh: DeviceMesh, placement: Placement) -> DTensor:
    """A tensor that every process has whole, of which each keeps its own part: nothing is sent."""
    return distribute_tensor(tensor, mesh, [placement], src_data_rank=None)


def _set(sae: SAE, name: str, parameter: nn.Parameter) -> None:
    module, _, own = name.rpartition(".")
    setattr(sae.get_submodule(module), own, parameter)


def _local(parameter: Tensor) -> Tensor:
    """This process's part of a parameter, as autograd is to see it."""
    assert isinstance(parameter, DTensor)
    kept_whole = parameter.placements[0].is_replicate()
    return parameter.to_local(grad_placements=[Partial()] if kept_whole else parameter.placements)


def whole(tensor: Tensor) -> Tensor:
    """A tensor put together, where it is cut: every process must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_part(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, to be edited in place; the tensor itself where it is not cut."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def placed_like(tensor: Tensor, other: Tensor) -> Tensor:
    """A whole tensor on the device of `other`, and cut as `other` is, where both have one shape."""
    if not isinstance(other, DTensor) or tensor.shape != other.shape:
        return tensor.to(other.device)
    return _cut(tensor.to(other.device), other.device_mesh, *other.placements)


def load_whole(sae: SAE, tensors: Mapping[str, Tensor]) -> None:
    """Loads stored tensors into an SAE, whether it is whole or cut; strict."""
    now = sae.state_dict()
    sae.load_state_dict({name: placed_like(t, now[name]) if name in now else t for name, t in tensors.items()})


def _part(sae: SAE, mesh: DeviceMesh) -> SAE:
    """An SAE of this process's features, without weights of its own."""

    class Part(_PartOfSAE, type(sae)):
        pass

    config: SAEConfig = type(sae.config).from_dict({**sae.config.to_dict(), "n_features": len(_local(sae.W_dec))})
    with torch.device("meta"):
        part = Part(config)
    part.mesh = mesh
    return part.train()


class _PartOfSAE(SAE):
    """Some features of an SAE, which share every token with those of the other processes."""

    mesh: DeviceMesh

    def training_selection(self) -> Selection:
        return self.strongest(self.config.k)  # type: ignore[attr-defined]

    def strongest(self, k: int) -> Selection:
        return _TopKOfAll(k, self.mesh)

    def offset(self, scaled: Tensor) -> Tensor:
        """This process's share of what is added once."""
        return super().offset(scaled) / self.mesh.size()

    def combined(self, written: Tensor) -> Tensor:
        parts = DTensor.from_local(written, self.mesh, [Partial()])
        return parts.redistribute(placements=[Replicate()]).to_local(grad_placements=[Replicate()])


@dataclass(frozen=True)
class _TopKOfAll:
    """The k largest pre-activations of every token over the features of all processes, of which it keeps its own."""

    k: int
    mesh: DeviceMesh

    def load(self, look: Callable[[], Tensor]) -> float:
        return self.k

    def mask(self, pre: Tensor) -> Tensor:
        candidates, features = pre.topk(min(self.k, pre.shape[1]), dim=-1)
        return torch.zeros_like(pre, dtype=torch.bool).scatter_(-1, features, self._are_kept(candidates))

    def select(self, chunks: Chunks, n_features: int) -> tuple[SparsePattern, Tensor]:
        own = min(self.k, n_features)
        pattern, candidates = TopK(own).select(chunks, n_features)
        kept = self._are_kept(candidates.view(-1, own))
        return SparsePattern(pattern.features[kept.flatten()], kept.sum(1), n_features), candidates[kept.flatten()]

    def _are_kept(self, candidates: Tensor) -> Tensor:
        """(N, k) bool: which of this process's candidates are among the k largest of all processes'.

        Args:
            candidates: (N, k), or fewer where this process has no more features to offer.
        """
        own = candidates.shape[1]
        padded = F.pad(candidates, (0, self.k - own), value=-torch.inf)
        everyone = DTensor.from_local(padded, self.mesh, [Shard(1)]).full_tensor()
        kept = torch.zeros_like(everyone, dtype=torch.bool)
        kept.scatter_(-1, everyone.topk(self.k, dim=-1, sorted=False).indices, True)
        return kept.chunk(self.mesh.size(), dim=-1)[self.mesh.get_local_rank()][:, :own]
