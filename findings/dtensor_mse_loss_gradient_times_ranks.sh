#!/usr/bin/env bash
# torch 2.13.0 and 2.15.0: the gradient of F.mse_loss of a DTensor cut over N ranks is N times too large.
#
# A batch and its targets are cut along the rows, Shard(0). mse_loss divides each rank's sum by that rank's own number of
# elements. Forward the mean over ranks is then taken, so the loss is right where all shards are equally large. Backward
# nothing makes up for it. The optimizer gets N times the gradient, and neither the loss nor a warning tells.
# With shards of unequal size the loss is wrong, too. huber_loss does the same; the mean of the squares and l1_loss are
# right, and so is mse_loss with reduction="sum", divided by hand.
# Expected: a DTensor's loss and gradient are those of the whole tensor.
# Seen on two ranks (gloo, CPU), with both releases:
#   4 rows  mse_loss: loss right, gradient times 2.0   mean of squares: loss right, gradient times 1.0
#   3 rows  mse_loss: loss wrong, gradient times 1.5 and 3.0   mean of squares: loss right, gradient times 1.0
# Runs 2.13.0. Exits with 0 while that is so, with 1 when it has changed.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q --disable-pip-version-check torch==2.13.0 numpy
cat > "$folder/check.py" <<'PYTHON'
import sys

import torch
import torch.distributed as dist
import torch.multiprocessing
import torch.nn.functional as F
from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh


def mean_of_squares(x, y):
    return ((x - y) ** 2).mean()


def rank(number, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=number, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    found = []
    for rows in (4, 3):
        generator = torch.Generator().manual_seed(0)
        x, y = torch.randn(2, rows, 3, generator=generator, dtype=torch.float64)
        for loss in (F.mse_loss, mean_of_squares):
            whole = x.clone().requires_grad_()
            wanted = loss(whole, y)
            wanted.backward()
            cut = distribute_tensor(x, mesh, [Shard(0)]).requires_grad_()
            value = loss(cut, distribute_tensor(y, mesh, [Shard(0)]))
            value.backward()
            right = torch.allclose(value.full_tensor(), wanted)
            times = sorted(set((cut.grad.full_tensor() / whole.grad).flatten().mul(1000).round().div(1000).tolist()))
            found.append((rows, loss.__name__, right, times))
    dist.destroy_process_group()
    if number == 0:
        print("torch", torch.__version__, *found, sep="\n")
        wanted = [True, [2.0], True, [1.0], False, [1.5, 3.0], True, [1.0]]
        sys.exit([part for row in found for part in row[2:]] != wanted)


if __name__ == "__main__":
    try:
        torch.multiprocessing.spawn(rank, args=(sys.argv[1],), nprocs=2)
    except torch.multiprocessing.ProcessExitedException:
        sys.exit(1)
PYTHON
OMP_NUM_THREADS=1 "$folder/env/bin/python" -W ignore "$folder/check.py" "$folder"
