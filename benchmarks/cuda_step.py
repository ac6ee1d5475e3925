"""Training steps on a GPU against the dense PyTorch step of topk under torch.compile, and each kernel by itself.

    python benchmarks/cuda_step.py [--architectures topk batch_topk matryoshka] [--widths 4096 12288 32768 131072]
        [--tokens 16384 65536] [--k 32] [--output FILE]

Both steps run in bfloat16 (autocast) with float32 parameters on activations that are on the device. Ours is all that
`Learner.step` does: loss, backward, projection, clipping, Adam, renormalisation, dead-feature counts, log sums; as it
is, without CUDA graphs, and with a hundredth of the features dead (auxk). The dense one is forward, loss, backward,
clipping and fused Adam. Times are medians over the repeats, between CUDA events. Every kernel is first held
against its plain counterpart. Last the way from token ids to an SAE, the language model of GPT-2's size with random
weights: speed does not depend on them. Writes JSON, prints tables; needs a CUDA GPU with Triton.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count, product
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, TrainerCallback

from hfsae import SAE, SAETrainer, SAETrainingArguments
from hfsae.architectures import config_class_of
from hfsae.autoencoder.initialisation import initialise
from hfsae.functional import SparsePattern, kernels
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


class Unrecorded(Learner):
    """A learner that launches the kernels of every step one by one."""

    @property
    def _can_replay(self) -> bool:
        return False


def our_step(
    architecture: str, rows: Tensor, n: int, k: int, learner_class: type[Learner] = Learner, dead: float = 0.0
) -> Callable[[], object]:
    """A step of the trainer, with a share of the features dead throughout."""
    torch.manual_seed(0)
    config = config_class_of(architecture)(d_in=rows.shape[1], n_features=n, k=k)
    sae = initialise(SAE.from_config(config).to(DEVICE), rows[:8192])  # type: ignore[arg-type]
    args = SAETrainingArguments(
        training_tokens=100_000 * len(rows),
        train_batch_tokens=len(rows),
        learning_rate=1e-5,
        revival="auxk" if dead else "none",
        bf16=True,
    )
    learner, steps = learner_class("", sae, args, Accelerator()), count()

    def step() -> None:
        learner.firing.tokens_since_fired[: round(dead * n)] = learner.plan.dead_window
        learner.step([rows], next(steps))

    return step


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


class Clock(TrainerCallback):
    """Notes when the device has done a quarter of the steps, and all."""

    def __init__(self, steps: int):
        self.first, self.last = steps // 4, steps
        self.times: dict[int, float] = {}

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step in (self.first, self.last):
            torch.cuda.synchronize()
            self.times[state.global_step] = time.perf_counter()

    @property
    def seconds_a_step(self) -> float:
        return (self.times[self.last] - self.times[self.first]) / (self.last - self.first)


def end_to_end(architecture: str, n: int, k: int, batch: int, steps: int = 240, context: int = 128) -> float:
    """Tokens a second from token ids through eight blocks of a GPT-2 into an SAE, the first quarter not counted."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config())
    ids = torch.randint(model.config.vocab_size, (2 * steps * batch // context, context))
    clock = Clock(steps)
    with tempfile.TemporaryDirectory() as folder:
        args = SAETrainingArguments(
            output_dir=folder,
            hook_point="resid_post.7",
            architecture=architecture,
            n_features=n,
            k=k,
            bf16=True,
            context_length=context,
            lm_batch_sequences=batch // context,
            train_batch_tokens=batch,
            training_tokens=steps * batch,
            exclude_special_tokens=False,
            save_steps=0,
            eval_tokens=0,
            disable_tqdm=True,
        )
        SAETrainer(args=args, model=model, train_dataset=ids, callbacks=[clock]).train()
    return batch / clock.seconds_a_step


def steps_of(architecture: str, tokens: int, args: argparse.Namespace) -> Iterator[dict]:
    """The whole step for every width with batches of so many tokens."""
    rows = torch.randn(tokens, args.d_in, device=DEVICE)
    for n in args.widths:
        step = partial(our_step, architecture, rows, n, args.k)
        makers: dict[str, Callable[[], Callable[[], object]]] = {
            "step_ms": step,
            "unrecorded_ms": partial(step, learner_class=Unrecorded),
            "hundredth_dead_ms": partial(step, dead=0.01),
            "dense_compiled_ms": partial(dense_step, rows, n, args.k),
        }
        found: dict = {"architecture": architecture, "n_features": n, "tokens": tokens}
        for name, make in makers.items():
            found[name] = milliseconds(make(), args.repeats) if _fits(name, tokens, n) else None
            torch.cuda.empty_cache()  # each leaves its memory to the next
        yield found


def _fits(name: str, tokens: int, n: int) -> bool:
    """Whether the dense step's three or four (N, n) tensors leave room for the rest."""
    return name != "dense_compiled_ms" or 12 * tokens * n < torch.cuda.get_device_properties(0).total_memory / 2


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description="Training steps on a GPU against the dense step of topk in PyTorch.")
    parser.add_argument("--architectures", nargs="+", default=["topk"], help="each has a k")
    parser.add_argument("--widths", type=int, nargs="*", default=[4096, 12288, 32768, 131072])
    parser.add_argument("--tokens", type=int, nargs="+", default=[16384, 65536])
    parser.add_argument("--d_in", type=int, default=768)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--widths_from_text", type=int, nargs="*", default=[12288, 32768])
    parser.add_argument("--batches_from_text", type=int, nargs="*", default=[16384, 32768, 65536])
    parser.add_argument("--output", type=Path, default=Path("runs/cuda_step.json"))
    args = parser.parse_args()
    if not torch.cuda.is_available() or not kernels.serves(torch.zeros(1, device=DEVICE)):
        raise SystemExit("no CUDA GPU with Triton was found: these figures can only be measured on one")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, d = {args.d_in}, k = {args.k}")
    results: dict[str, list] = {"kernels": [], "steps": [], "end_to_end": []}
    rows = torch.randn(args.tokens[0], args.d_in, device=DEVICE)
    for n in args.widths:
        for row in kernel_times(rows, n, args.k, args.repeats):
            results["kernels"].append({"n_features": n, "tokens": len(rows), **row})
            differs = "" if row["equals_plain"] else " DIFFERS"
            print(f"n {n}: {row['kernel']} {row['ms']:.2f} ms, PyTorch's {row['plain_ms']:.2f}{differs}", flush=True)
    print("| architecture | N | n | step, ms | M tokens/s | launch by launch | 1/100 dead | dense compiled | ratio |")
    print("|---|---|---|---|---|---|---|---|---|")
    for architecture, tokens in product(args.architectures, args.tokens):
        for row in steps_of(architecture, tokens, args):
            results["steps"].append(row)
            ours, dense = row["step_ms"], row["dense_compiled_ms"]
            against = f"{dense:.2f} | {dense / ours:.2f}" if dense else "not run |"
            others = f"{row['unrecorded_ms']:.2f} | {row['hundredth_dead_ms']:.2f}"
            speed = tokens / ours / 1e3
            sizes = f"{architecture} | {tokens} | {row['n_features']}"
            print(f"| {sizes} | {ours:.2f} | {speed:.2f} | {others} | {against} |", flush=True)
    for architecture, n, batch in product(args.architectures, args.widths_from_text, args.batches_from_text):
        speed = end_to_end(architecture, n, args.k, batch)
        run = {"architecture": architecture, "n_features": n, "batch": batch}
        results["end_to_end"].append({**run, "tokens_per_second": speed})
        print(f"token ids to {architecture}, n {n}, batches of {batch}: {speed / 1e6:.2f} M tokens/s", flush=True)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    machine = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}
    args.output.write_text(json.dumps({**machine, **vars(args), "output": str(args.output), **results}, indent=2))


if __name__ == "__main__":
    main()
