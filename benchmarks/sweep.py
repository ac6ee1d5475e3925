"""Eight SAEs in one run against eight runs: what sharing one pass of the language model is worth.

    python benchmarks/sweep.py --model MODEL --text FILE [--hook_point resid_post.2] [--output FILE.json]

The same eight TopK SAEs, which end equal either way. The language model alone over as many tokens is timed too: what
seven of the eight runs spend on it is what the shared run saves.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from datasets import Dataset
from peers import versions
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from hfsae import SAETrainer, SAETrainingArguments, TopKSAEConfig
from hfsae.data import LMActivations, TokenBlocks, load_text

_KS = (8, 12, 16, 24, 32, 48, 64, 96)


def train(args: argparse.Namespace, text: Dataset, model: PreTrainedModel, ks: tuple[int, ...]) -> float:
    """Seconds for one run of SAEs with so many active features each."""
    saes = {f"k{k}": TopKSAEConfig(d_in=model.config.hidden_size, n_features=args.n_features, k=k) for k in ks}
    with tempfile.TemporaryDirectory() as folder:
        training = SAETrainingArguments(
            output_dir=folder,
            hook_point=args.hook_point,
            training_tokens=args.tokens,
            save_steps=0,
            eval_tokens=0,
            use_cpu=True,
            disable_tqdm=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(args.model)
        begin = time.perf_counter()
        SAETrainer(model, training, train_dataset=text, processing_class=tokenizer, saes=saes).train()
        return time.perf_counter() - begin


def read_only(args: argparse.Namespace, text: Dataset, model: PreTrainedModel) -> float:
    """Seconds that the language model takes over as many tokens."""
    blocks = TokenBlocks(text, AutoTokenizer.from_pretrained(args.model), context_length=128, batch_size=32)
    source, rows = LMActivations(model, blocks, args.hook_point), 0
    begin = time.perf_counter()
    while rows < args.tokens:
        rows += len(next(iter(next(source).values())))
    source.close()
    return time.perf_counter() - begin


def main() -> None:
    """Times the shared run, the single runs, and the language model; prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--hook_point", default="resid_post.2")
    parser.add_argument("--n_features", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=1 << 17)
    parser.add_argument("--output", type=Path, default=Path("runs/sweep.json"))
    args = parser.parse_args()
    text = load_text(args.text)
    assert isinstance(text, Dataset)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    seconds = {
        "language model alone": read_only(args, text, model),
        "eight SAEs in one run": train(args, text, model, _KS),
        "eight runs": sum(train(args, text, model, (k,)) for k in _KS),
    }
    for what, taken in seconds.items():
        print(f"{what}: {taken:.1f} s")
    told = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps({"seconds": seconds, "arguments": told, "versions": versions()}, indent=2))


if __name__ == "__main__":
    main()
