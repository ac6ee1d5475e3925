"""What the rules of `sharded_selection` pick where features lie in several processes, on both paths.

torchrun --nproc_per_node 2 -m tests.training.picked FOLDER
"""

import sys
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed import init_process_group
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from hfsae.functional import Above, BatchTopK, GroupMax, Selection, TopK
from hfsae.parallel import sharded_selection
from hfsae.parallel.launching import part
from hfsae.parallel.sharded_selection import of_all

N_FEATURES, N_TOKENS = 64, 33

RULES: dict[str, Selection] = {
    "top": TopK(5),
    "top-of-most": TopK(40),  # more than a process has
    "batch": BatchTopK(3),
    "batch-of-all": BatchTopK(60),  # more than are positive
    "groups": GroupMax(8),
    "above": Above(0.25),
}


def batches() -> dict[str, Tensor]:
    """Pre-activations (N, n): all different, of few values with many ties, and hardly any positive."""
    generator = torch.Generator().manual_seed(3)
    normal = torch.randn(N_TOKENS, N_FEATURES, generator=generator)
    return {"normal": normal, "tied": (normal * 2).round() / 2, "negative": normal - 3, "zero": normal * 0}


def main(folder: str) -> None:
    """Writes for each rule and batch the mask of all processes together, by both paths."""
    init_process_group("gloo")
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    found = {}
    for kind, pre in batches().items():
        own = pre.chunk(mesh.size(), dim=1)[mesh.get_local_rank()].contiguous()
        for name, rule in RULES.items():
            shared = of_all(rule, mesh)
            pattern, values = shared.select(lambda own=own: iter(own.tensor_split(3)), own.shape[1])
            assert torch.equal(values, own[pattern.tokens, pattern.features])
            by_entries = pattern.to_dense(torch.ones_like(values)).bool()
            sharded_selection.FEW_CANDIDATES = 0
            counted = shared.mask(own)
            sharded_selection.FEW_CANDIDATES = 1024
            for path, mask in (("dense", shared.mask(own)), ("sparse", by_entries), ("counted", counted)):
                found[name, kind, path] = DTensor.from_local(mask, mesh, [Shard(1)]).full_tensor()
    if mesh.get_local_rank() == 0:
        torch.save(found, Path(folder) / "found.pt")
    part()


if __name__ == "__main__":
    main(sys.argv[1])
