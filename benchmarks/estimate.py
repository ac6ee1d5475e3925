"""`hfsae estimate` against what one, two and four processes really take on this machine's CPU.

    python benchmarks/estimate.py [--processes 1 2 4] [--training_tokens 131072] [--repeats 3]

Trains on the embedded language model with each placement, and prints seconds estimated and taken. Before each run the
machine is measured, as the command does: what else runs on it slows both.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import torch

from hfsae import SAETrainingArguments
from hfsae.estimate.machine import Machine
from hfsae.estimate.run_needs import estimate

ROOT = Path(__file__).resolve().parents[1]
# Name, width, placement: a narrow SAE, where reading the text counts, and a wide one, where its step does.
RUNS = [("narrow", 1024, "replicate"), ("wide", 16384, "replicate"), ("wide", 16384, "shard")]


def arguments(folder: Path, n_features: int, placement: str, training_tokens: int) -> SAETrainingArguments:
    """A run without evaluation, checkpoints and reports."""
    return SAETrainingArguments(
        output_dir=str(folder),
        model_name_or_path=str(ROOT / "examples" / "tiny_lm"),
        hook_point="resid_post.1",
        dataset_name="python-stdlib",
        n_features=n_features,
        k=16,
        sae_placement=placement,  # type: ignore[arg-type]
        training_tokens=training_tokens,
        train_batch_tokens=1024,
        eval_tokens=0,
        save_steps=0,
        html_report=False,
        disable_tqdm=True,
        use_cpu=True,
    )


def taken(args: SAETrainingArguments, processes: int) -> float:
    """Seconds of the training in so many processes."""
    config = Path(args.output_dir).with_suffix(".json")
    config.write_text(json.dumps(args.given()))
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", "29630"]
    command = [sys.executable, *launcher, "-m", "hfsae.cli", "train", str(config)]
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": threads}, capture_output=True)
    return json.loads((Path(args.output_dir) / "config.json").read_text())["training"]["seconds"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--training_tokens", type=int, default=131072)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    cpu = torch.device("cpu")
    print("| SAE | placement | processes | estimated s | taken s | ratio |\n|---|---|---|---|---|---|")
    for name, n_features, placement in RUNS:
        for processes in options.processes:
            guesses, times = [], []
            for _ in range(options.repeats):
                with tempfile.TemporaryDirectory() as folder:
                    args = arguments(Path(folder) / "run", n_features, placement, options.training_tokens)
                    guess = estimate(args, processes=processes)
                    guesses.append(guess.seconds(Machine.measured(cpu, processes)))
                    times.append(taken(args, processes))
            ratio = median(guess / time for guess, time in zip(guesses, times, strict=True))
            figures = f"{median(guesses):.1f} | {median(times):.1f} | {ratio:.2f}"
            print(f"| {name}, {n_features:,} | {placement} | {processes} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
