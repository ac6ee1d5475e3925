"""Quality at equal tokens: hfsae and other libraries train on the same activations and are measured alike.

    python benchmarks/quality.py --model MODEL --text FILE [--architectures topk batch_topk standard] [--seeds 0 1 2]

All get the same rows in the same order, each with the input scaling that its own library would apply, and its own
defaults. Held-out text of the same file measures them: pooled explained variance, L0, the share of features that never
fire there, and the loss recovered against zero ablation.

Explained variance says something at equal L0 alone. Ours is k or is steered there. Where a peer's L0 follows from the
coefficient of a penalty (standard, gated, SAELens' jumprelu), it trains again with other coefficients until its L0 on
the held-out text is within 2 % of k; it is told of only the last, or the closest of eight, with its seconds.

Every SAE leaves a JSON file, and one that left a file is not trained again. So `--who`, `--architectures` and
`--seeds` can spread the work over processes: first a call with `--seeds` and nothing behind it, which only makes the
activations; then single cells at the same time; last a call with `--table`, which prints what is there. Seconds say
something only where the SAEs were trained one by one.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

import torch
import torch.nn.functional as F
from kept import whole_run
from peers import PEERS, Peer, Task, versions
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from hfsae import SAE, SAETrainer, SAETrainingArguments
from hfsae.architectures import config_class_of
from hfsae.data import LMActivations, TokenBlocks, load_text, split_documents
from hfsae.hooks import splice

ReadAndWrite = Callable[[Tensor], tuple[Tensor, Tensor]]  # (N, d) → reconstruction (N, d), active (N, n) bool

# A search for a coefficient ends as close to k as this, or after so many trainings.
_L0_TOLERANCE = 0.02
_MOST_TRAININGS = 8


def train_rows(args: argparse.Namespace) -> Tensor:
    """(rows, d) shuffled activations of the training text, kept in the output folder."""
    file = args.output / "activations.safetensors"
    if not file.exists():
        model, tokenizer = _load(args)
        blocks = TokenBlocks(
            split_documents(load_text(args.text), "train"),
            tokenizer,
            context_length=args.context_length,
            batch_size=32,
        )
        source, chunks, rows = LMActivations(model, blocks, args.hook_point), [], 0
        while rows < min(args.rows, args.tokens):
            chunks.append(next(iter(next(source).values())).cpu())
            rows += len(chunks[-1])
        source.close()
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(0))
        save_file({"rows": torch.cat(chunks)[order].contiguous()}, file)
    return load_file(file)["rows"]


def _load(args: argparse.Namespace):
    model = AutoModelForCausalLM.from_pretrained(args.model).eval().to(args.device)
    return model, AutoTokenizer.from_pretrained(args.model)


def batches(rows: Tensor, tokens: int, size: int):
    """Batches of so many tokens in all; from the start again where rows are fewer."""
    for i in range(tokens // size):
        yield rows[torch.arange(i * size, (i + 1) * size) % len(rows)].float()


def train_ours(architecture: str, rows: Tensor, seed: int, args: argparse.Namespace) -> ReadAndWrite:
    """Trains by `SAETrainer` with its defaults."""
    d_in = rows.shape[1]
    config_class = config_class_of(architecture)
    size = {"k": args.k} if "k" in config_class.__dataclass_fields__ else {}
    training = SAETrainingArguments(
        output_dir=str(args.output / f"hfsae-{architecture}-{seed}"),
        overwrite_output_dir=True,
        training_tokens=args.tokens,
        k=args.k,
        seed=seed,
        save_steps=0,
        eval_tokens=0,
        use_cpu=args.device == "cpu",
        shuffle_window_tokens=0,
        disable_tqdm=True,
    )
    repeats = -(-(args.tokens + training.tokens_for_calibration + training.train_batch_tokens) // len(rows))
    config = config_class(d_in=d_in, expansion_factor=args.expansion_factor, **size)
    trainer = SAETrainer(args=training, saes={"": config}, activations=rows.repeat(repeats, 1))
    sae = whole_run(trainer).sae.to(args.device)

    def read_and_write(x: Tensor) -> tuple[Tensor, Tensor]:
        features = sae.encode_sparse(x)
        return sae.decode(features, x), features.to_dense() != 0

    assert isinstance(sae, SAE)
    return read_and_write


def train_peer(peer: Peer, rows: Tensor, args: argparse.Namespace) -> ReadAndWrite:
    """Trains another library's SAE on the rows as it would scale them."""
    scale = peer.input_scale(rows[:8192].float())
    for batch in batches(rows.to(args.device), args.tokens, args.batch_tokens):
        peer.step(batch * scale)

    def read_and_write(x: Tensor) -> tuple[Tensor, Tensor]:
        reconstruction, active = peer.read_and_write(x * scale)
        return reconstruction / scale, active

    return read_and_write


def next_coefficient(tried: dict[float, float], target: float) -> float:
    """The coefficient to train with next.

    Between two whose L0 lie on both sides of the target it is where a straight line of the logarithms meets it; from
    outside it goes there in steps of at most fourfold.

    Args:
        tried: L0 by coefficient; it falls as the coefficient rises.
        target: The L0 that is wanted.
    """
    too_dense = [c for c, l0 in tried.items() if l0 > target]
    too_sparse = [c for c, l0 in tried.items() if l0 <= target]
    if not too_sparse or not too_dense:
        edge = min(too_sparse) if too_sparse else max(too_dense)
        return edge * min(4.0, max(0.25, tried[edge] / target))
    low, high = max(too_dense), min(too_sparse)
    # An SAE with nothing active has no logarithm; a tenth of a feature is sparse enough to bound the search.
    above, below = (math.log(max(tried[c], 0.1) / target) for c in (low, high))
    return low * (high / low) ** (above / (above - below))


@torch.no_grad()
def measure(read_and_write: ReadAndWrite, args: argparse.Namespace) -> dict[str, float]:
    """Pooled metrics over held-out text; special tokens and first positions are left as they are and not counted."""
    model, tokenizer = _load(args)
    blocks = TokenBlocks(
        split_documents(load_text(args.text), "evaluation"),
        tokenizer,
        context_length=args.context_length,
        batch_size=16,
    )
    squared_error = squares = l0 = 0.0
    rows, predictions = 0, 0
    total, fired = torch.zeros(model.config.hidden_size, dtype=torch.float64, device=args.device), None
    losses = {"clean": 0.0, "spliced": 0.0, "zero": 0.0}
    while rows < args.eval_tokens:
        input_ids, attention_mask, keep = (part.to(args.device) for part in next(blocks))

        def spliced(x: Tensor, keep: Tensor = keep) -> Tensor:
            nonlocal squared_error, squares, l0, rows, fired
            chosen = x[keep]
            written, active = read_and_write(chosen)
            squared_error += (chosen - written).double().square().sum().item()
            squares += chosen.double().square().sum().item()
            total.add_(chosen.double().sum(0))
            l0 += active.sum().item()
            rows += len(chosen)
            fired = active.any(0) if fired is None else fired | active.any(0)
            return x.masked_scatter(keep[..., None], written)

        def zero(x: Tensor, keep: Tensor = keep) -> Tensor:
            return x.masked_fill(keep[..., None], 0.0)

        counted = keep[:, :-1] & attention_mask[:, 1:].bool()
        predictions += int(counted.sum())
        for name, edit in (("clean", lambda x: x), ("spliced", spliced), ("zero", zero)):
            with splice(model, args.hook_point, edit):
                logits = model(input_ids, attention_mask=attention_mask).logits[:, :-1]
            each = F.cross_entropy(logits.flatten(0, 1), input_ids[:, 1:].flatten(), reduction="none")
            losses[name] += each.view(counted.shape)[counted].double().sum().item()
    assert fired is not None
    variance = squares - (total.square().sum() / rows).item()
    mean = {name: loss / predictions for name, loss in losses.items()}
    return {
        "l0": l0 / rows,
        "explained_variance": 1 - squared_error / variance,
        "loss_recovered": (mean["zero"] - mean["spliced"]) / (mean["zero"] - mean["clean"]),
        "never_fired": 1 - fired.float().mean().item(),
        "eval_tokens": rows,
        **{f"ce_{name}": loss for name, loss in mean.items()},
    }


def result_of(who: str, architecture: str, seed: int, args: argparse.Namespace) -> dict | None:
    """What was measured of one SAE, now or before; None where the library has none such, or nothing may be trained."""
    file = args.output / f"{who}-{architecture}-{seed}.json"
    if file.exists():
        return json.loads(file.read_text())
    if args.table:
        return None
    rows = train_rows(args)
    if who == "hfsae":
        measured = our_result(architecture, rows, seed, args)
    else:
        measured = peer_result(who, architecture, rows, seed, args)
    if measured is None:
        return None
    told = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    result = {"who": who, "architecture": architecture, "seed": seed, **measured}
    file.write_text(json.dumps({**result, "arguments": told, "versions": versions()}, indent=2))
    return result


def our_result(architecture: str, rows: Tensor, seed: int, args: argparse.Namespace) -> dict:
    """Trains and measures an SAE of ours."""
    begin = time.perf_counter()
    trained = train_ours(architecture, rows, seed, args)
    seconds = time.perf_counter() - begin
    return {"seconds": seconds, **measure(trained, args)}


def peer_result(who: str, architecture: str, rows: Tensor, seed: int, args: argparse.Namespace) -> dict | None:
    """Trains and measures another library's SAE, as often as its L0 takes; None where it has none such."""
    results: list[dict] = []
    coefficient = None
    while len(results) < _MOST_TRAININGS:
        torch.manual_seed(seed)
        task = Task(
            architecture,
            d_in=rows.shape[1],
            n_features=round(args.expansion_factor * rows.shape[1]),
            k=args.k,
            steps=args.tokens // args.batch_tokens,
            batch=args.batch_tokens,
            device=args.device,
            coefficient=coefficient,
        )
        peer = PEERS[who](task)
        if peer is None:
            return None
        begin = time.perf_counter()
        trained = train_peer(peer, rows, args)
        seconds = time.perf_counter() - begin
        results.append({"seconds": seconds, "coefficient": peer.coefficient, **measure(trained, args)})
        if peer.coefficient is None or abs(results[-1]["l0"] / args.k - 1) <= _L0_TOLERANCE:
            break
        coefficient = next_coefficient({r["coefficient"]: r["l0"] for r in results}, args.k)
    closest = min(results, key=lambda result: abs(result["l0"] - args.k))
    return {**closest, "trainings": len(results)}


def row(architecture: str, who: str, seed: str, result: dict) -> str:
    """A row of the table, in Markdown."""
    return (
        f"| {architecture} | {who} | {seed} | {result['l0']:.1f} | {result['explained_variance']:.4f} "
        f"| {result['loss_recovered']:.4f} | {result['never_fired']:.1%} | {result['seconds']:.0f} |"
    )


def mean_of(results: list[dict]) -> dict[str, float]:
    """The mean over seeds of what the table shows."""
    shown = ("l0", "explained_variance", "loss_recovered", "never_fired", "seconds")
    return {name: fmean(result[name] for result in results) for name in shown}


def main() -> None:
    """Runs what is not done yet, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", required=True, help="a file or data set of text, held-out documents included")
    parser.add_argument("--hook_point", default="resid_post.2")
    parser.add_argument("--architectures", nargs="+", default=["topk", "batch_topk", "standard"])
    parser.add_argument("--who", nargs="+", default=["hfsae", *PEERS])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--expansion_factor", type=float, default=16)
    parser.add_argument("--tokens", type=int, default=2_048_000)
    parser.add_argument("--rows", type=int, default=1 << 19, help="different activations; seen again after that")
    parser.add_argument("--batch_tokens", type=int, default=4096)
    parser.add_argument("--context_length", type=int, default=128)
    parser.add_argument("--eval_tokens", type=int, default=60_000)
    parser.add_argument("--table", action="store_true", help="train nothing, print what is there")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=Path("runs/quality"))
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    if not args.seeds:
        train_rows(args)
        return
    print("| architecture | | seed | L0 | explained variance | loss recovered | never fired | s |")
    print("|---|---|---|---|---|---|---|---|")
    means = []
    for architecture in args.architectures:
        for who in args.who:
            results = []
            for seed in args.seeds:
                if (result := result_of(who, architecture, seed, args)) is not None:
                    print(row(architecture, who, str(seed), result), flush=True)
                    results.append(result)
            if results:
                means.append(row(architecture, who, "mean", mean_of(results)))
    print("\n".join(means))


if __name__ == "__main__":
    main()
