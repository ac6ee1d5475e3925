#!/usr/bin/env bash
# torch 2.13.0: a hook with `with_kwargs=True` that is removed in the middle of a pass is still called, without kwargs.
#
# A module copies the list of its hooks before it calls the first, but looks up which of them want keyword arguments as
# it comes to each. A hook that another one removes meanwhile, or another thread, stands in the copy and no longer there.
# Expected: that it is called as it was registered, hook(module, args, kwargs), or not at all.
# Seen: it is called once more, as hook(module, args), and as hook(module, args, output) behind the forward. A hook with
# the signature of its kind fails then with a missing argument; one that takes anything reads the output as the kwargs.
# Exits with 0 while that is so, with 1 when it has changed.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q --disable-pip-version-check torch==2.13.0 numpy
"$folder/env/bin/python" - <<'PYTHON'
import sys

import torch
from torch import nn


def given_to_a_removed_hook(register: str) -> list[list[str]]:
    """The types of what a hook gets in two passes, where the hook before it removes it in the first."""
    module = nn.Linear(2, 2)
    calls = []
    # Registered first, so called first.
    getattr(module, register)(lambda *_: handle.remove(), with_kwargs=True)
    handle = getattr(module, register)(
        lambda *given: calls.append([type(one).__name__ for one in given]), with_kwargs=True
    )
    module(torch.zeros(1, 2))
    module(torch.zeros(1, 2))
    return calls


print("torch", torch.__version__)
before = given_to_a_removed_hook("register_forward_pre_hook")
behind = given_to_a_removed_hook("register_forward_hook")
print("a removed pre-hook got", before)
print("a removed forward hook got", behind)
sys.exit(not (before == [["Linear", "tuple"]] and behind == [["Linear", "tuple", "Tensor"]]))
PYTHON
