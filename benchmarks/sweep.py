"""Eight SAEs in one run against eight runs: what sharing one pass of the language model is worth.

    python benchmarks/sweep.py --model MODEL --text FILE [--hook_point resid_post.2] [--output FILE.json]

The same eight TopK SAEs, which end equal either way. Timed too: the language model alone over as many tokens, and
eight runs from activations that are there. A shared run should take little more than those two together. Everything
is timed in turn, `--repeats` times; the figures are medians.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from datasets import Dataset
from peers import versions
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from hfsae import SAETrainer, SAETrainingArguments, TopKSAEConfig
from hfsae.data import LMActivations, TokenBlocks, load_text

_KS = (8, 12, 16, 24, 32, 48, 64, 96)


def train(args: argparse.Namespace, ks: tuple[int, ...], d_in: int, **source: Any) -> float:
    """Seconds for one run of SAEs with so many active features each."""
    saes = {f"k{k}": TopKSAEConfig(d_in=d_in, n_features=args.n_features, k=k) for k in ks}
    with tempfile.TemporaryDirectory() as folder:
        training = SAETrainingArguments(
            output_dir=folder,
            hook_point=args.hook_point,
            training_tokens=args.tokens,
            activation_dtype="float32",
            save_steps=0,
            eval_tokens=0,
            use_cpu=True,
            disable_tqdm=True,
        )
        begin = time.perf_counter()
        SAETrainer(args=training, saes=saes, **source).train()
        return time.perf_counter() - begin


def read(args: argparse.Namespace, text: Dataset, model: PreTrainedModel) -> tuple[float, torch.Tensor]:
    """Seconds that the language model takes over as many tokens, and the activations."""
    blocks = TokenBlocks(text, AutoTokenizer.from_pretrained(args.model), context_length=128, batch_size=32)
    source = LMActivations(model, blocks, args.hook_point)
    rows: list[torch.Tensor] = []
    begin = time.perf_counter()
    while sum(map(len, rows)) < args.tokens:
        rows += next(source).values()
    seconds = time.perf_counter() - begin
    source.close()
    return seconds, torch.cat(rows)


def main() -> None:
    """Times the shared run, the single runs, and the language model; prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--hook_point", default="resid_post.2")
    parser.add_argument("--n_features", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=1 << 17)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("runs/sweep.json"))
    args = parser.parse_args()
    text = load_text(args.text)
    assert isinstance(text, Dataset)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    of_model = {
        "model": model,
        "train_dataset": text,
        "processing_class": AutoTokenizer.from_pretrained(args.model),
    }
    d_in = model.config.hidden_size
    timings: list[dict[str, float]] = []
    for _ in range(args.repeats):
        alone, rows = read(args, text, model)
        timings.append(
            {
                "language model alone": alone,
                "eight runs from its activations": sum(train(args, (k,), d_in, activations=rows) for k in _KS),
                "eight SAEs in one run": train(args, _KS, d_in, **of_model),
                "eight runs": sum(train(args, (k,), d_in, **of_model) for k in _KS),
            }
        )
    seconds = {what: median(timing[what] for timing in timings) for what in timings[0]}
    for what, taken in seconds.items():
        print(f"{what}: {taken:.1f} s")
    told = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps({"seconds": seconds, "arguments": told, "versions": versions()}, indent=2))


if __name__ == "__main__":
    main()
