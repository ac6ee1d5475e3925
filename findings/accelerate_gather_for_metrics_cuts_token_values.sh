#!/usr/bin/env bash
# accelerate 1.15.0: gather_for_metrics drops most of the last batch where a tensor has a value for each token, even on
# one process.
#
# It is said to drop duplicates in the last batch on a distributed system. What it does: with the last batch of a prepared
# DataLoader it cuts every tensor to as many first rows as the data set has rows beyond whole batches. A loss for each
# token, flattened as cross_entropy wants it, has rows x tokens entries, and is cut to `rows` of them. These are the first
# tokens of the first row, so the mean of the rest does not only miss a part but leans on beginnings. One process has no
# duplicates and no peer, and is cut all the same. A data set of whole batches alone shows nothing of it.
# Expected: on one process gather_for_metrics gives back what it got.
# Seen with rows of 8 tokens in batches of 4 rows, and in the place of a loss the position of the token, 0 to 7:
#   rows of data   values of the last batch: given, back   mean: right, seen
#   8              32, 32                                  3.5, 3.5
#   9              8, 1                                    3.5, 3.446
#   10             16, 2                                   3.5, 3.409
#   11             24, 3                                   3.5, 3.388
# gather() gives all back. No warning is given. Exits with 0 while that is so, with 1 when it has changed.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/check.py" <<'PYTHON'
import sys

import accelerate
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

accelerator = Accelerator(cpu=True)
print("accelerate", accelerate.__version__, "processes", accelerator.num_processes)
right = accelerator.num_processes == 1
for rows, given, back, seen in ((8, 32, 32, 3.5), (9, 8, 1, 3.446), (10, 16, 2, 3.409), (11, 24, 3, 3.388)):
    positions = torch.arange(8.0).expand(rows, 8).contiguous()
    loader = accelerator.prepare(DataLoader(positions, batch_size=4))
    found, plain, sizes = [], [], []
    for batch in loader:
        values = batch.flatten()
        sizes += [len(values)]
        found += [accelerator.gather_for_metrics(values)]
        plain += [accelerator.gather(values)]
    mean = torch.cat(found).mean().item()
    print(f"{rows} rows: last batch {sizes[-1]} values, {len(found[-1])} come back; mean {mean:.3f}")
    right &= (sizes[-1], len(found[-1])) == (given, back) and abs(mean - seen) < 1e-3
    right &= torch.cat(plain).mean().item() == 3.5 and sum(map(len, plain)) == 8 * rows
sys.exit(not right)
PYTHON

python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q --disable-pip-version-check torch==2.13.0 accelerate==1.15.0
"$folder/env/bin/python" -W ignore "$folder/check.py"
