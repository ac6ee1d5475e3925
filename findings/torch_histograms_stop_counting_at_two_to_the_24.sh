#!/usr/bin/env bash
# torch 2.13.0, CPU: a bin of torch.histc and torch.histogram counts to 16,777,216 and no further, once for
# each thread, where the input is float32. No warning is given.
#
# Counts are kept in the dtype of the input. To a float32 of 2^24 adding 1 changes nothing. Each thread has counts of its
# own, which are added up at the end. So the same tensor has other histograms with other numbers of threads: a workstation
# shows the right one, and a container with one core another. Bins that are full are all equal, so the shape is wrong,
# too, and density=True makes wrong densities of it. torch.ao's HistogramObserver calibrates quantised models by histc.
# Expected: the number of values in each bin, as NumPy's histogram of the same values gives it.
# Seen, 40, 20 and 10 million values in three bins, in millions:
#   float32, 1 thread    16.8, 16.8, 10   densities by bin width 0.385, 0.385, 0.230
#   float32, 2 threads   21.8, 16.8, 10
#   float64, 1 thread    40, 20, 10       densities 0.571, 0.286, 0.143
#   NumPy, float32       40, 20, 10
# Exits with 0 while that is so, with 1 when it has changed.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/check.py" <<'PYTHON'
import sys

import numpy
import torch

GIVEN = [40_000_000, 20_000_000, 10_000_000]
FULL = [min(count, 2**24) for count in GIVEN]
x = torch.cat([torch.full((count,), place) for count, place in zip(GIVEN, (0.5, 1.5, 2.5))])


def counts(x, threads):
    torch.set_num_threads(threads)
    found = torch.histogram(x, bins=3, range=(0, 3))
    assert torch.equal(found.hist, torch.histc(x, bins=3, min=0, max=3))
    return [int(count) for count in found.hist]


one, two, exact = counts(x, 1), counts(x, 2), counts(x.double(), 1)
torch.set_num_threads(1)
density = torch.histogram(x, bins=3, range=(0, 3), density=True).hist.tolist()
by_numpy = numpy.histogram(x.numpy(), bins=3, range=(0, 3))[0].tolist()
print("torch", torch.__version__, "1 thread", one, "2 threads", two, "float64", exact, "numpy", by_numpy)
print("densities", [round(value, 3) for value in density])
right = one == FULL and two != one and exact == by_numpy == GIVEN
right &= all(abs(value - count / sum(FULL)) < 1e-3 for value, count in zip(density, FULL))
sys.exit(not right)
PYTHON

python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q --disable-pip-version-check torch==2.13.0 numpy
"$folder/env/bin/python" -W ignore "$folder/check.py"
