#!/usr/bin/env bash
# torch 2.13.0: torch.nn.functional.pad of an int64 tensor fills with another number than it was given, above 2**53.
#
# The fill value passes through a double on its way, whatever the tensor's type. 2**53 + 1 is filled in as 2**53, and the
# largest int64, a usual mark for "none, sorts last", as the smallest one on x86: it then sorts first. Nothing is said.
# torch.full and Tensor.new_full with the same numbers are right.
# Seen: pad of [1] with 9223372036854775807 ends in -9223372036854775808, with 9007199254740993 in 9007199254740992.
# Exits with 0 while that is so, with 1 when it has changed. x86-64 only: the conversion is the processor's.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q --disable-pip-version-check torch==2.13.0 numpy
"$folder/env/bin/python" -W ignore - <<'PYTHON'
import sys

import torch
from torch.nn.functional import pad

LARGEST, ODD = torch.iinfo(torch.int64).max, 2**53 + 1
one = torch.ones(1, dtype=torch.int64)
found = [pad(one, (0, 1), value=number)[1].item() for number in (LARGEST, ODD)]
right = [one.new_full((1,), number).item() for number in (LARGEST, ODD)]
print(torch.__version__, "pad:", *found, "new_full:", *right)
sys.exit(found != [-LARGEST - 1, ODD - 1] or right != [LARGEST, ODD])
PYTHON
