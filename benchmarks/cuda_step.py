"""The training step of topk on a GPU against the dense PyTorch step under torch.compile, and each kernel by itself.

    python benchmarks/cuda_step.py [--widths 4096 12288 32768 131072] [--tokens 16384] [--k 32] [--output FILE]

Both steps run in bfloat16 (autocast) with float32 parameters on activations that are on the device. Ours is all that
`Learner.step` does: loss, backward, projection, clipping, Adam, renormalisation, dead-feature counts, log sums. The
dense one is forward, loss, backward, clipping and fused Adam. Times are medians over the repeats, between CUDA events.
Every kernel is first held against its plain counterpart. Writes JSON, prints a table; needs a CUDA GPU with Triton.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from hfsae import SAE, SAETrainingArguments, TopKSAEConfig
from hfsae.functional import SparsePattern, kernels
from hfsae.initialisation import initialise
from hfsae.training.learner import Learner

DEVICE = "cuda"


def milliseconds(run: Callable[[], object], repeats: int) -> float:
    """The median time of a call, after three that are not counted (the first compiles)."""
    times = []
    for i in range(repeats + 3):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        if i >= 3:
            times.append(begin.elapsed_time(end))
    return median(times)


def kernel_times(rows: Tensor, n: int, k: int, repeats: int) -> list[dict]:
    """Each kernel and its counterpart in PyTorch, with the bytes it has to move at the least."""
    from hfsae.functional.kernels import products
    from hfsae.functional.kernels.largest import largest

    n_tokens, d = rows.shape
    table = torch.randn(n, d, device=DEVICE)
    pre = F.linear(rows.bfloat16(), table.bfloat16())
    features = largest(pre, k)
    per_token = torch.full((n_tokens,), k, device=DEVICE)
    pattern = SparsePattern(features.flatten(), per_token, n)
    values = pre.gather(1, features).float().flatten()
    order, token_of, _ = pattern._feature_major
    shuffled, parts, entries = values[order], pattern._feature_parts, n_tokens * k
    gather = 4 * entries * d
    pairs: dict[str, tuple[Callable, Callable, int]] = {
        "top-k": (lambda: largest(pre, k), lambda: pre.topk(k, sorted=False), 2 * n_tokens * n),
        "decode": (
            lambda: products.sum_rows(values, pattern.features, pattern.offsets, table),
            lambda: F.embedding_bag(features, table, per_sample_weights=values.view(-1, k), mode="sum"),
            gather + 4 * n_tokens * d,
        ),
        "inner products": (
            lambda: products.inner_products(pattern.features, pattern.offsets, rows, table),
            lambda: torch.bmm(table[features], rows[:, :, None]).flatten(),
            gather + 4 * n_tokens * d,
        ),
        "weight gradient": (
            lambda: products.sum_long_rows(shuffled, token_of, parts, rows),
            lambda: torch.zeros_like(table).index_add_(0, pattern.features, values[:, None] * rows[pattern.tokens]),
            gather + 4 * n * d,
        ),
    }
    found = []
    for name, (ours, plain, moved) in pairs.items():
        if name == "top-k":
            same = torch.equal(pre.gather(1, ours()).sort().values, plain().values.sort().values)
        else:
            same = torch.allclose(ours(), plain(), rtol=1e-3, atol=1e-2)
        time = milliseconds(ours, repeats)
        found.append(
            {
                "kernel": name,
                "equals_plain": same,
                "ms": time,
                "plain_ms": milliseconds(plain, repeats),
                "terabytes_per_second": moved / time / 1e9,
            }
        )
    return found


def our_step(rows: Tensor, n: int, k: int) -> Callable[[], object]:
    """A step of the trainer."""
    torch.manual_seed(0)
    sae = initialise(SAE.from_config(TopKSAEConfig(d_in=rows.shape[1], n_features=n, k=k)).to(DEVICE), rows[:8192])
    args = SAETrainingArguments(
        training_tokens=100_000 * len(rows),
        train_batch_tokens=len(rows),
        learning_rate=1e-5,
        revival="none",
        bf16=True,
    )
    learner, steps = Learner("", sae, args, Accelerator()), iter(range(100_000))
    return lambda: learner.step([rows], next(steps))


def dense_step(rows: Tensor, n: int, k: int) -> Callable[[], object]:
    """The step as one writes it in PyTorch, compiled."""
    d = rows.shape[1]
    torch.manual_seed(0)
    w_dec = F.normalize(torch.randn(n, d, device=DEVICE), dim=1).requires_grad_()
    w_enc = w_dec.detach().clone().requires_grad_()
    b_enc, b_dec = (torch.zeros(size, device=DEVICE, requires_grad=True) for size in (n, d))
    parameters = [w_enc, b_enc, w_dec, b_dec]
    optimiser = torch.optim.Adam(parameters, lr=1e-5, fused=True)

    @torch.compile
    def loss_of(x: Tensor) -> Tensor:
        pre = F.linear(x - b_dec, w_enc, b_enc)
        kept = pre.topk(k, dim=-1, sorted=False)
        z = torch.zeros_like(pre).scatter(1, kept.indices, kept.values.relu())
        return (z @ w_dec + b_dec - x).float().square().sum(1).mean()

    def step() -> None:
        with torch.autocast(DEVICE, torch.bfloat16):
            loss = loss_of(rows)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return step


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description="The topk step on a GPU against dense PyTorch.")
    parser.add_argument("--widths", type=int, nargs="+", default=[4096, 12288, 32768, 131072])
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--d_in", type=int, default=768)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--output", type=Path, default=Path("runs/cuda_step.json"))
    args = parser.parse_args()
    if not torch.cuda.is_available() or not kernels.serves(torch.zeros(1, device=DEVICE)):
        raise SystemExit("no CUDA GPU with Triton was found: these figures can only be measured on one")
    rows = torch.randn(args.tokens, args.d_in, device=DEVICE)
    results = []
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, N = {args.tokens}, d = {args.d_in}, k = {args.k}"
    )
    print("| n | our step, ms | dense compiled, ms | ratio | ours, M tokens/s | kernels: ms (PyTorch's) |")
    print("|---|---|---|---|---|---|")
    for n in args.widths:
        found = kernel_times(rows, n, args.k, args.repeats)
        ours = milliseconds(our_step(rows, n, args.k), args.repeats)
        torch.cuda.empty_cache()
        dense = milliseconds(dense_step(rows, n, args.k), args.repeats)
        torch.cuda.empty_cache()
        results.append({"n_features": n, "step_ms": ours, "dense_compiled_ms": dense, "kernels": found})
        each = ", ".join(
            f"{row['kernel']} {row['ms']:.2f} ({row['plain_ms']:.2f}){'' if row['equals_plain'] else ' DIFFERS'}"
            for row in found
        )
        speed = args.tokens / ours / 1e3
        print(f"| {n} | {ours:.2f} | {dense:.2f} | {dense / ours:.2f} | {speed:.2f} | {each} |", flush=True)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    machine = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}
    args.output.write_text(
        json.dumps({**machine, **vars(args), "output": str(args.output), "results": results}, indent=2)
    )


if __name__ == "__main__":
    main()
