"""The whole training step of each architecture, as a ratio to one float32 encoder product.

    python benchmarks/step.py [--architectures topk gated] [--active 32 123] [--dense] [--dead 0.1] [--bf16] [--peers]
    python benchmarks/step.py --against CHECKOUT [...]

A step is what `Learner.step` does with activations that are there: forward, loss, backward, projection, clipping,
Adam, renormalisation, dead-feature counts, log sums. Steps and encoder products are timed in turn, so that whatever
else the machine does falls on both, and in memory that is kept as in a run, where the product is faster too; the
figures are medians and minima over the repeats. Peak memory is what the
process's resident size rose by over its size before the steps, weights and optimiser moments included in the latter
(Linux; on CUDA the allocator's peak). Writes JSON, prints a table. With `--against` steps of this checkout and of
another one, each in a process of its own, are taken in turn on the CPU, and their ratio is that of pairs.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch
from accelerate import Accelerator
from pairs import measure_pairs
from pairs import table as table_of_pairs
from peers import PEERS, Task, versions
from torch import Tensor

from hfsae import SAE, SAETrainingArguments
from hfsae.architectures import config_class_of
from hfsae.autoencoder.initialisation import initialise
from hfsae.host_memory import freed_memory_kept
from hfsae.training.learner import Learner

ARCHITECTURES = ("topk", "batch_topk", "matryoshka", "standard", "jumprelu", "gated")
# Where the number of active features is a result and not a setting, a "dense" step has half of them active.
CHOSEN_BY_PENALTY = ("standard", "jumprelu", "gated")
# A jumprelu step works on what is within half a bandwidth below a threshold too. Pre-activations of an untrained SAE
# crowd there; of a trained one so many times the active features lie within reach (embedded language model, 16x,
# target 20: 18 times at the start, 4.0 after 60 steps, 2.1 from step 150 on).
WITHIN_REACH = 2.1


@dataclass
class Shape:
    """What is trained on what."""

    tokens: int
    d_in: int
    n_features: int


@dataclass
class Timing:
    """One row of the table: seconds, and memory in bytes where it can be known."""

    who: str
    architecture: str
    l0: float
    step_median: float
    step_minimum: float
    product_median: float
    product_minimum: float
    peak_bytes: int | None

    @property
    def ratio(self) -> float:
        """Step against encoder product, medians."""
        return self.step_median / self.product_median

    @property
    def best_ratio(self) -> float:
        """The same of the minima: what is left where nothing else ran."""
        return self.step_minimum / self.product_minimum


def planted(shape: Shape, device: torch.device, seed: int = 0) -> Tensor:
    """(N, d) activations: 24 of 4d directions a token, some far more frequent than others, off centre, a little noise.

    Real residual streams are neither isotropic nor centred; a random normal batch would be both.
    """
    generator = torch.Generator().manual_seed(seed)
    n_true, per_token = 4 * shape.d_in, 24
    directions = torch.nn.functional.normalize(torch.randn(n_true, shape.d_in, generator=generator), dim=1)
    frequency = torch.arange(1, n_true + 1).float().pow(-0.7)
    present = torch.multinomial(frequency, shape.tokens * per_token, replacement=True, generator=generator)
    strength = torch.rand(shape.tokens, per_token, generator=generator) + 0.5
    rows = torch.nn.functional.embedding_bag(
        present.view(shape.tokens, per_token), directions, per_sample_weights=strength, mode="sum"
    )
    rows = rows * (shape.d_in / per_token) ** 0.5 + torch.randn(shape.d_in, generator=generator)
    return (rows + 0.05 * torch.randn(rows.shape, generator=generator)).to(device)


def make_learner(
    architecture: str, rows: Tensor, shape: Shape, active: int | None, dead: float, bf16: bool
) -> Learner:
    """A learner in the middle of a run: `active` features a token (None: half of all), a share of them dead.

    The learning rate is so low that the work of a step stays what it is.
    """
    config_class = config_class_of(architecture)
    by_k = "k" in config_class.__dataclass_fields__
    size = {"k": active} if by_k and active is not None else {}
    if architecture == "jumprelu" and active is not None:
        size = {"initial_l0": active}
    torch.manual_seed(0)
    sae = SAE.from_config(config_class(d_in=shape.d_in, n_features=shape.n_features, **size)).to(rows.device)
    initialise(sae, rows)
    if architecture in CHOSEN_BY_PENALTY:
        _activate(sae, rows, shape.n_features // 2 if active is None else active)
    args = SAETrainingArguments(
        training_tokens=100_000 * shape.tokens,
        train_batch_tokens=shape.tokens,
        learning_rate=1e-9,
        warmup_steps=0,
        revival="auxk" if dead else "none",
        bf16=bf16,
        use_cpu=rows.device.type == "cpu",
    )
    learner = Learner("", sae, args, Accelerator(cpu=args.use_cpu))
    if dead:
        silent = torch.arange(round(dead * shape.n_features), device=rows.device)
        sae.encoder.bias.data[silent] -= 1e3  # so that they stay dead however long is measured
        learner.firing.tokens_since_fired[silent] = learner.plan.dead_window
    return learner


@torch.no_grad()
def _activate(sae: SAE, rows: Tensor, active: int) -> None:
    """Moves the biases, or the thresholds, to where so many features a token of `rows` are active."""
    pre = sae.pre_activations(rows[:256])
    level = _exceeded_by(active, pre)
    if not hasattr(sae, "threshold"):
        sae.encoder.bias.sub_(level)
        return
    spread = 1.0
    if WITHIN_REACH * active < sae.config.n_features:
        spread = sae.config.bandwidth / 2 / (level - _exceeded_by(round(WITHIN_REACH * active), pre)).item()
    sae.encoder.weight.mul_(spread)
    sae.encoder.bias.mul_(spread)
    sae.threshold.fill_(max(spread * level.item(), 0.0))


def _exceeded_by(active: int, pre: Tensor) -> Tensor:
    """What so many pre-activations a token exceed."""
    return pre.flatten().kthvalue(pre.numel() - active * len(pre)).values


def time_in_turn(step: Callable[[], object], product: Callable[[], object], repeats: int) -> tuple[list, list]:
    """Seconds of each, measured one after the other, `repeats` times."""
    steps, products = [], []
    for _ in range(repeats):
        for timed, seconds in ((product, products), (step, steps)):
            _wait()
            begin = time.perf_counter()
            timed()
            _wait()
            seconds.append(time.perf_counter() - begin)
    return steps, products


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class PeakMemory:
    """How far memory rose above its level at the start of the block: `bytes`, or None where that cannot be known."""

    def __init__(self, device: torch.device):
        self._device = device
        self.bytes: int | None = None

    def __enter__(self) -> "PeakMemory":
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
        elif sys.platform == "linux":
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
            self._before = _resident("VmRSS")
        return self

    def __exit__(self, *exception: object) -> None:
        if self._device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated() - self._before
        elif sys.platform == "linux":
            self.bytes = _resident("VmHWM") - self._before


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


def measure(
    who: str, architecture: str, l0: float, step: Callable[[], object], rows: Tensor, width: int, repeats: int
):
    """Times a step against the encoder product of its shape, after some to warm up."""
    weight = torch.randn(width, rows.shape[1], device=rows.device)

    def product() -> None:
        rows @ weight.T

    step()
    with PeakMemory(rows.device) as peak:
        step()
    with freed_memory_kept():
        step(), product()
        steps, products = time_in_turn(step, product, repeats)
    return Timing(
        who, architecture, l0, median(steps), min(steps), median(products), min(products), peak.bytes
    )  # fmt: skip


def measure_ours(
    architecture: str, rows: Tensor, shape: Shape, active: int | None, args: argparse.Namespace
) -> Timing:
    """A row of the table for one architecture at one number of active features."""
    learner = make_learner(architecture, rows, shape, active, args.dead, args.bf16)
    steps = iter(range(10**6))
    learner.step([rows], next(steps))
    l0 = learner.pop_log(0)["l0"]
    return measure(
        "hfsae", architecture, l0, lambda: learner.step([rows], next(steps)), rows, shape.n_features, args.repeats
    )


def measure_peers(architecture: str, rows: Tensor, shape: Shape, k: int, repeats: int) -> list[Timing]:
    """Rows of the table for every peer that is installed and has this architecture."""
    rows_of_peers = []
    task = Task(
        architecture, shape.d_in, shape.n_features, k, steps=repeats + 3, batch=shape.tokens, device=rows.device.type
    )
    for name, make in PEERS.items():
        torch.manual_seed(0)
        peer = make(task)
        if peer is not None:
            l0 = peer.read_and_write(rows)[1].sum(1).float().mean().item()
            rows_of_peers.append(
                measure(
                    name, architecture, l0, lambda p=peer: p.step(rows.clone()), rows, shape.n_features, repeats
                )  # fmt: skip
            )
    return rows_of_peers


def describe_machine(device: torch.device) -> dict[str, str]:
    """What the figures belong to."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name()
    else:
        cpuinfo = Path("/proc/cpuinfo")
        models = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        able = torch.cpu.get_capabilities()
        units = [unit for unit in ("amx_bf16", "avx512_bf16") if able.get(unit)]
        name = (
            f"{models[0].split(': ')[1]}, {', '.join(units) or 'no bfloat16 units'}, {torch.get_num_threads()} threads"
        )
    return {"device": name, "python": platform.python_version(), **versions()}


def table(timings: list[Timing]) -> str:
    """The timings in Markdown."""
    lines = ["| | architecture | L0 | step, s | / product | of minima | peak, MB |", "|---|---|---|---|---|---|---|"]
    for t in timings:
        peak = "" if t.peak_bytes is None else f"{t.peak_bytes / 1e6:.0f}"
        lines.append(
            f"| {t.who} | {t.architecture} | {t.l0:.0f} | {t.step_median:.3f} | {t.ratio:.2f} | {t.best_ratio:.2f} "
            f"| {peak} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--architectures", nargs="+", default=ARCHITECTURES)
    parser.add_argument("--active", type=int, nargs="*", default=[32], help="active features a token")
    parser.add_argument("--dense", action="store_true", help="also with half of all features active")
    parser.add_argument("--dead", type=float, default=0.0, help="share of dead features, which auxk revives")
    parser.add_argument("--bf16", action="store_true", help="our encoder product in bfloat16")
    parser.add_argument("--peers", action="store_true", help="also the other libraries that are installed")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--d_in", type=int, default=768)
    parser.add_argument("--n_features", type=int, default=12288)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--against", type=Path, help="a checkout of hfsae whose steps are taken in turn with ours")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="of --against, cpu on a busy machine")
    parser.add_argument("--output", type=Path, default=Path("runs/step.json"))
    args = parser.parse_args()
    device, shape = torch.device(args.device), Shape(args.tokens, args.d_in, args.n_features)
    if args.against is not None:
        cases = [(architecture, active) for architecture in args.architectures for active in args.active]
        options = {"dead": args.dead, "bf16": args.bf16}
        pairs = measure_pairs(args.against.resolve(), cases, asdict(shape), options, args.repeats, args.clock)
        print(table_of_pairs(pairs))
        return _write(args, [{**asdict(p), "ratios": p.ratios} for p in pairs])
    rows = planted(shape, device)
    timings: list[Timing] = []
    for architecture in args.architectures:
        dense = [None] if args.dense and architecture in CHOSEN_BY_PENALTY else []
        for active in [*args.active, *dense]:
            timings.append(measure_ours(architecture, rows, shape, active, args))
            print(table(timings[-1:]).splitlines()[-1], flush=True)
        if args.peers:
            timings += measure_peers(architecture, rows, shape, args.active[0], args.repeats)
    print(table(timings))
    _write(args, [{**asdict(t), "ratio": t.ratio, "best_ratio": t.best_ratio} for t in timings])


def _write(args: argparse.Namespace, timings: list[dict]) -> None:
    result = {
        "machine": describe_machine(torch.device(args.device)),
        "arguments": {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items() if k != "output"},
        "timings": timings,
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
