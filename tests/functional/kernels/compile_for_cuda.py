"""Compiles every kernel for a GPU that need not be there, and prints their assembly, one JSON object a line.

python -m tests.functional.kernels.compile_for_cuda COMPUTE_CAPABILITY
"""

import json
import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from hfsae.functional.kernels import above, decoder_rows, largest, products, screened

INTEGERS = {"indices", "starts", "ends", "further", "features", "offsets", "groups", "wanted"}
SIZES = {"width", "n", "n_rows", "n_groups", "k", "blocks"}
FLOATS = {"cut": "*fp32", "least": "fp32", "parts": "*fp32"}
BLOCKS = {"ENTRIES": 8, "COLUMNS": 256}
# Each kernel with its constants as `hfsae` launches it, and what it writes where that is not what it reads.
KERNELS = [
    (products._sum_rows, BLOCKS, "fp32"),
    (products._join, {"COLUMNS": 256}, "fp32"),
    (products._inner_products, BLOCKS, "fp32"),
    (products._sum_values, {"VALUES": 256}, "fp32"),
    (largest._group_maxima, {"GROUP": 32, "GROUPS": 64, "SOME": False}, None),
    (largest._group_maxima, {"GROUP": 32, "GROUPS": 64, "SOME": True}, None),
    (largest._select, {"GROUP": 0, "SLOTS": 1024, "SOME": False}, "i64"),
    (largest._select, {"GROUP": 32, "SLOTS": 1024, "SOME": True}, "i64"),
    (screened._product_where, {"TOKENS": 16, "FEATURES": 64, "COLUMNS": 32}, "fp32"),
    (above._count, {"EACH": True, "BLOCK": 2048}, "i64"),
    (above._write, {"EACH": False, "BLOCK": 2048}, None),
    (decoder_rows._remove_parallel, {"COLUMNS": 1024}, None),
    (decoder_rows._renormalise, {"COLUMNS": 1024}, None),
]


def assembly(kernel, constants: dict, read: str, written: str | None, capability: int) -> str:
    """The PTX of one kernel that reads numbers of type `read`."""
    if "BITS" in kernel.arg_names:
        constants = {**constants, "BITS": 16 if read == "bf16" else 32}

    def type_of(name: str) -> str:
        if name in constants:
            return "constexpr"
        if name in SIZES:
            return "i32"
        if name in FLOATS:
            return FLOATS[name]
        return "*i64" if name in INTEGERS else f"*{written or read}" if name == "out" else f"*{read}"

    signature = {name: type_of(name) for name in kernel.arg_names}
    values = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    target = GPUTarget("cuda", capability, 32)
    return triton.compile(ASTSource(kernel, signature, values), target=target, options={"num_warps": 4}).asm["ptx"]


if __name__ == "__main__":
    for read in ("bf16", "fp32"):
        for kernel, constants, written in KERNELS:
            ptx = assembly(kernel, constants, read, written, int(sys.argv[1]))
            print(json.dumps({"kernel": kernel.__name__, "read": read, "ptx": ptx}), flush=True)
