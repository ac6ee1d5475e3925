"""Placement: how the processes of a run share its SAEs. One class for each value of `sae_placement`.

* `Replicate`: every process holds every SAE and steps on rows of its own; gradients are averaged.
* `Spread`: each process owns some of the SAEs, weights and optimiser, and steps them on the rows of all processes.
  Where a process has several devices, each device has some of them.
* `Shard`: each process holds some of the features of every SAE (`sharded_sae.py`), and steps on all rows.
"""

from collections.abc import Iterable, Mapping
from typing import TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from hfsae.autoencoder.model import SparseAutoencoder
from hfsae.functional import TopK
from hfsae.parallel.dealing import deal, deal_devices, devices_here, refuse_idle
from hfsae.parallel.exchange import from_owners, rows_of_all
from hfsae.parallel.sharded_sae import ShardedSAE, refuse_unfit
from hfsae.parallel.sharded_selection import FEW_CANDIDATES

T = TypeVar("T")


class Placement:
    """How the processes of a run share its SAEs.

    Args:
        processes: How many there are.
        accelerator: That of the run; None for a forecast, which exchanges nothing.

    Attributes:
        shares_saes: Whether every process has each SAE, or a part of each; else each has SAEs of its own.
    """

    shares_saes = True

    def __init__(self, processes: int, accelerator: Accelerator | None = None):
        self.processes = processes
        self._accelerator = accelerator

    @property
    def accelerator(self) -> Accelerator:
        assert self._accelerator is not None, "a forecast has no accelerator"
        return self._accelerator

    # -- who has what -------------------------------------------------------------------------------------------------
    def refuse_too_few(self, saes: int) -> None:
        """Raises a ValueError where so many SAEs are too few for the processes."""

    def refuse_unfit(self, sae: SparseAutoencoder) -> None:
        """Raises a ValueError where an SAE, whose weights are not looked at, cannot be placed so."""

    def owners(self, parameters: Mapping[str, int]) -> dict[str, int]:
        """The rank of the process that writes each SAE, by name; `parameters` says how large each is."""
        return dict.fromkeys(parameters, 0)

    def trained_by(self, rank: int, owners: Mapping[str, int]) -> list[str]:
        """The names of the SAEs that a process steps."""
        return list(owners)

    def devices(self, parameters: Mapping[str, int]) -> dict[str, torch.device]:
        """The device of each SAE of this process, by name."""
        return dict.fromkeys(parameters, self.accelerator.device)  # type: ignore[arg-type, return-value]

    @property
    def share_of_text(self) -> tuple[int, int]:
        """The rank of this process among the processes that share the text of the measurement, and their number."""
        return self.accelerator.process_index, self.processes

    def gather(self, values: Mapping[str, T], names: Iterable[str]) -> dict[str, T]:
        """Plain values by SAE: those of this process's SAEs and of all others, in the order of the names."""
        return dict(values)

    # -- in a step ----------------------------------------------------------------------------------------------------
    def step_module(self, sae: SparseAutoencoder) -> nn.Module:
        """What a step calls in the place of an SAE, with its arguments; may change the SAE's parameters."""
        return sae

    def step_rows(self, batch: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
        """The rows by hook point that the SAEs of this process step on: those of all processes.

        Args:
            batch: This process's rows.
            dtype: What the rows were kept in, and travel as.
        """
        return rows_of_all(batch, self.accelerator, dtype)

    def rows_of_step(self, rows: Tensor) -> Tensor:
        """The rows that one step of an SAE works on in all processes, from the rows that `step_rows` gave this one."""
        return rows

    @property
    def averaged(self) -> int:
        """How many processes a gradient is averaged over."""
        return 1

    def reduce(self, tensor: Tensor, reduction: str) -> Tensor:
        """A statistic of a step over all processes that step on rows of their own: its `"sum"` or `"mean"`."""
        return tensor

    # -- what it costs ------------------------------------------------------------------------------------------------
    @property
    def feature_parts(self) -> int:
        """Into how many parts the features of an SAE are cut."""
        return 1

    @property
    def row_shares(self) -> int:
        """The batches of how many processes one step of an SAE works on."""
        return self.processes

    @property
    def _all_reduce(self) -> float:
        """Bytes that a process sends for each byte of an all-reduce."""
        return 2 * (self.processes - 1) / self.processes

    def bytes_exchanged(self, sae: SparseAutoencoder, tokens: int, active: float) -> float:
        """Bytes that a process sends in a step of an SAE besides rows.

        Args:
            sae: The SAE.
            tokens: Tokens in the step.
            active: Active features of a token.
        """
        raise NotImplementedError("abstract: a placement says what its processes exchange")


class Replicate(Placement):
    """Every process holds every SAE and steps on rows of its own; gradients are averaged (DDP)."""

    def step_module(self, sae: SparseAutoencoder) -> nn.Module:
        return self.accelerator.prepare_model(sae)

    def step_rows(self, batch: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
        return batch

    def rows_of_step(self, rows: Tensor) -> Tensor:
        if self.processes == 1:
            return rows
        # A process may have a few more rows than another, where steps take whole sequences.
        count = self.accelerator.gather(torch.tensor([len(rows)], device=rows.device)).min()  # type: ignore[union-attr]
        return self.accelerator.gather(rows[:count].contiguous())  # type: ignore[return-value]

    @property
    def averaged(self) -> int:
        return self.processes

    def reduce(self, tensor: Tensor, reduction: str) -> Tensor:
        if self.processes == 1:
            return tensor
        return self.accelerator.reduce(tensor, reduction)  # type: ignore[return-value]

    @property
    def row_shares(self) -> int:
        return 1

    def bytes_exchanged(self, sae: SparseAutoencoder, tokens: int, active: float) -> float:
        return self._all_reduce * 4 * sum(parameter.numel() for parameter in sae.parameters())


class Spread(Placement):
    """Each process owns some of the SAEs, and steps them on the rows of all processes."""

    shares_saes = False

    def refuse_too_few(self, saes: int) -> None:
        refuse_idle(saes, self.processes)

    def owners(self, parameters: Mapping[str, int]) -> dict[str, int]:
        return deal(parameters, self.processes)

    def trained_by(self, rank: int, owners: Mapping[str, int]) -> list[str]:
        return [name for name, owner in owners.items() if owner == rank]

    def devices(self, parameters: Mapping[str, int]) -> dict[str, torch.device]:
        return deal_devices(parameters, devices_here(self.accelerator))

    @property
    def share_of_text(self) -> tuple[int, int]:
        """A process measures its own SAEs on the whole text."""
        return 0, 1

    def gather(self, values: Mapping[str, T], names: Iterable[str]) -> dict[str, T]:
        return from_owners(values, names)

    def bytes_exchanged(self, sae: SparseAutoencoder, tokens: int, active: float) -> float:
        return 0.0


class Shard(Placement):
    """Each process holds some of the features of every SAE, and steps on the rows of all (tensor parallel)."""

    def refuse_unfit(self, sae: SparseAutoencoder) -> None:
        refuse_unfit(sae, self.processes)

    def step_module(self, sae: SparseAutoencoder) -> nn.Module:
        return ShardedSAE(sae, self.accelerator) if self.processes > 1 else sae

    @property
    def feature_parts(self) -> int:
        return self.processes

    def bytes_exchanged(self, sae: SparseAutoencoder, tokens: int, active: float) -> float:
        candidates = 0.0
        if self.processes > 1 and isinstance(sae.training_selection(), TopK):
            # The values themselves, or of each group of features four histograms of 256 counts.
            few = active / sae.n_groups * self.processes <= FEW_CANDIDATES
            counts = self._all_reduce * 4 * 256 * sae.n_groups
            candidates = 4 * tokens * (active * (self.processes - 1) if few else counts)
        return self._all_reduce * 4 * tokens * sae.config.d_out + candidates


_PLACEMENTS: dict[str, type[Placement]] = {"replicate": Replicate, "spread": Spread, "shard": Shard}


def placement_of(sae_placement: str, accelerator: Accelerator) -> Placement:
    """The placement that an argument names, over the processes of a run."""
    return _PLACEMENTS[sae_placement](accelerator.num_processes, accelerator)


def planned_placement(sae_placement: str, processes: int) -> Placement:
    """The same over so many processes that are not there yet."""
    return _PLACEMENTS[sae_placement](processes)
