"""Quality at equal tokens: hfsae and other libraries train on the same activations and are measured alike.

    python benchmarks/quality.py --model MODEL --text FILE [--architectures topk batch_topk standard] [--seeds 0 1 2]

All get the same rows in the same order, each with the input scaling that its own library would apply, and its own
defaults. Held-out text of the same file measures them: pooled explained variance, L0, the share of features that never
fire there, and the loss recovered against zero ablation. Where L0 is steered by a penalty (standard), compare only
rows whose L0 are close. Every run leaves a JSON file; runs that left one are not done again.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from peers import PEERS, Peer, versions
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from hfsae import SAE, SAETrainer, SAETrainingArguments
from hfsae.architectures import config_class_of
from hfsae.data import LMActivations, TokenBlocks, load_text, split_documents
from hfsae.hooks import splice

ReadAndWrite = Callable[[Tensor], tuple[Tensor, Tensor]]  # (N, d) → reconstruction (N, d), active (N, n) bool


def train_rows(args: argparse.Namespace) -> Tensor:
    """(rows, d) shuffled activations of the training text, kept in the output folder."""
    file = args.output / "activations.safetensors"
    if not file.exists():
        model, tokenizer = _load(args.model)
        blocks = TokenBlocks(
            split_documents(load_text(args.text), "train"),
            tokenizer,
            context_length=args.context_length,
            batch_size=32,
        )
        source, chunks, rows = LMActivations(model, blocks, args.hook_point), [], 0
        while rows < min(args.rows, args.tokens):
            chunks.append(next(iter(next(source).values())))
            rows += len(chunks[-1])
        source.close()
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(0))
        save_file({"rows": torch.cat(chunks)[order].contiguous()}, file)
    return load_file(file)["rows"]


def _load(model: str):
    return AutoModelForCausalLM.from_pretrained(model).eval(), AutoTokenizer.from_pretrained(model)


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
        use_cpu=True,
        shuffle_window_tokens=0,
        disable_tqdm=True,
    )
    repeats = -(-(args.tokens + training.calibration_tokens + training.train_batch_tokens) // len(rows))
    config = config_class(d_in=d_in, expansion_factor=args.expansion_factor, **size)
    sae = SAETrainer(args=training, saes={"": config}, activations=rows.repeat(repeats, 1)).train().saes[""]

    def read_and_write(x: Tensor) -> tuple[Tensor, Tensor]:
        features = sae.encode_sparse(x)
        return sae.decode(features, x), features.to_dense() != 0

    assert isinstance(sae, SAE)
    return read_and_write


def train_peer(peer: Peer, rows: Tensor, args: argparse.Namespace) -> ReadAndWrite:
    """Trains another library's SAE on the rows as it would scale them."""
    scale = peer.input_scale(rows[:8192].float())
    for batch in batches(rows, args.tokens, args.batch_tokens):
        peer.step(batch * scale)

    def read_and_write(x: Tensor) -> tuple[Tensor, Tensor]:
        reconstruction, active = peer.read_and_write(x * scale)
        return reconstruction / scale, active

    return read_and_write


@torch.no_grad()
def measure(read_and_write: ReadAndWrite, args: argparse.Namespace) -> dict[str, float]:
    """Pooled metrics over held-out text; special tokens and first positions are left as they are and not counted."""
    model, tokenizer = _load(args.model)
    blocks = TokenBlocks(
        split_documents(load_text(args.text), "evaluation"),
        tokenizer,
        context_length=args.context_length,
        batch_size=16,
    )
    squared_error = squares = l0 = 0.0
    rows, predictions = 0, 0
    total, fired = torch.zeros(model.config.hidden_size, dtype=torch.float64), None
    losses = {"clean": 0.0, "spliced": 0.0, "zero": 0.0}
    while rows < args.eval_tokens:
        batch = next(blocks)
        keep = batch.keep

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

        counted = keep[:, :-1] & batch.attention_mask[:, 1:].bool()
        predictions += int(counted.sum())
        for name, edit in (("clean", lambda x: x), ("spliced", spliced), ("zero", zero)):
            with splice(model, args.hook_point, edit):
                logits = model(batch.input_ids, attention_mask=batch.attention_mask).logits[:, :-1]
            each = F.cross_entropy(logits.flatten(0, 1), batch.input_ids[:, 1:].flatten(), reduction="none")
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


def run(who: str, architecture: str, seed: int, args: argparse.Namespace) -> dict | None:
    """Trains and measures one SAE, or takes what was measured before; None where the library has none such."""
    file = args.output / f"{who}-{architecture}-{seed}.json"
    if file.exists():
        return json.loads(file.read_text())
    rows = train_rows(args)
    torch.manual_seed(seed)
    begin = time.perf_counter()
    if who == "hfsae":
        trained = train_ours(architecture, rows, seed, args)
    else:
        n_features = round(args.expansion_factor * rows.shape[1])
        steps = args.tokens // args.batch_tokens
        peer = PEERS[who](architecture, rows.shape[1], n_features, args.k, steps=steps, batch=args.batch_tokens)
        if peer is None:
            return None
        trained = train_peer(peer, rows, args)
    seconds = time.perf_counter() - begin
    told = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    result = {"who": who, "architecture": architecture, "seed": seed, "seconds": seconds, **measure(trained, args)}
    file.write_text(json.dumps({**result, "arguments": told, "versions": versions()}, indent=2))
    return result


def main() -> None:
    """Runs what is not done yet, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", required=True, help="a file or data set of text, held-out documents included")
    parser.add_argument("--hook_point", default="resid_post.2")
    parser.add_argument("--architectures", nargs="+", default=["topk", "batch_topk", "standard"])
    parser.add_argument("--who", nargs="+", default=["hfsae", *PEERS])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--expansion_factor", type=float, default=16)
    parser.add_argument("--tokens", type=int, default=2_048_000)
    parser.add_argument("--rows", type=int, default=1 << 19, help="different activations; seen again after that")
    parser.add_argument("--batch_tokens", type=int, default=4096)
    parser.add_argument("--context_length", type=int, default=128)
    parser.add_argument("--eval_tokens", type=int, default=60_000)
    parser.add_argument("--output", type=Path, default=Path("runs/quality"))
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    print("| architecture | | seed | L0 | explained variance | loss recovered | never fired | s |")
    print("|---|---|---|---|---|---|---|---|")
    for architecture in args.architectures:
        for seed in args.seeds:
            for who in args.who:
                if (r := run(who, architecture, seed, args)) is not None:
                    print(
                        f"| {architecture} | {who} | {seed} | {r['l0']:.1f} | {r['explained_variance']:.4f} "
                        f"| {r['loss_recovered']:.4f} | {r['never_fired']:.1%} | {r['seconds']:.0f} |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
