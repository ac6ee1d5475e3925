"""From text to a trained SAE, the language model's work included: hfsae against SAELens' own runner.

    python benchmarks/end_to_end.py --model MODEL --text FILE [--hook_point resid_post.2] [--output FILE.json]
    python benchmarks/end_to_end.py ... --against CHECKOUT --clock cpu

Same model, text, width, batch and context, and shuffle buffers of the same size; precision is what each has by default
(`--float32`: that for ours too). Timed from the call of the trainer to the trained SAE, without evaluation and without
saving checkpoints on the way; start-up is included. Each run is a process of its own, they take turns, and the figures
are medians. `--against` also runs hfsae of another checkout.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from datasets import Dataset
from peers import installed, versions
from transformers import AutoConfig

import hfsae
from hfsae import SAETrainer, SAETrainingArguments
from hfsae.data import load_text

OURS = Path(__file__).resolve().parent.parent
# Shuffle buffers hold so many tokens: one window of ours, SAELens' mixing buffer.
_BUFFER_TOKENS = 1 << 17
_SEQUENCES = 32


def ours(args: argparse.Namespace, text: Dataset) -> None:
    """A run of `SAETrainer`."""
    exact = {"model_dtype": "float32", "activation_dtype": "float32"} if args.float32 else {}
    with tempfile.TemporaryDirectory() as folder:
        training = SAETrainingArguments(
            output_dir=folder,
            model_name_or_path=args.model,
            hook_point=args.hook_point,
            architecture="topk",
            n_features=args.n_features,
            k=args.k,
            context_length=args.context_length,
            training_tokens=args.tokens,
            train_batch_tokens=args.batch_tokens,
            lm_batch_sequences=_SEQUENCES,
            shuffle_window_tokens=_BUFFER_TOKENS,
            save_steps=0,
            eval_tokens=0,
            use_cpu=args.device == "cpu",
            disable_tqdm=True,
            **exact,
        )
        SAETrainer(args=training, train_dataset=text).train()


def sae_lens(args: argparse.Namespace, text: Dataset) -> None:
    """A run of SAELens' `LanguageModelSAETrainingRunner`."""
    from sae_lens import (
        LanguageModelSAERunnerConfig,
        LanguageModelSAETrainingRunner,
        LoggingConfig,
        TopKTrainingSAEConfig,
    )

    d_in = AutoConfig.from_pretrained(args.model).hidden_size
    config = LanguageModelSAERunnerConfig(
        sae=TopKTrainingSAEConfig(d_in=d_in, d_sae=args.n_features, k=args.k),
        model_name=args.model,
        model_class_name="AutoModelForCausalLM",
        hook_name=args.sae_lens_hook,
        dataset_path="given",
        streaming=False,
        is_dataset_tokenized=False,
        context_size=args.context_length,
        training_tokens=args.tokens,
        store_batch_size_prompts=_SEQUENCES,
        n_batches_in_buffer=_BUFFER_TOKENS // (_SEQUENCES * args.context_length),
        train_batch_size_tokens=args.batch_tokens,
        device=args.device,
        logger=LoggingConfig(log_to_wandb=False),
        checkpoint_path=None,
        output_path=None,
        verbose=False,
    )
    LanguageModelSAETrainingRunner(config, override_dataset=text).run()


RUNS = {"hfsae": ours, "before": ours, "sae_lens": sae_lens}


def timed(who: str, args: argparse.Namespace) -> float:
    """Seconds of one run in this process."""
    checkout = args.against.resolve() if who == "before" else OURS
    assert Path(hfsae.__file__).is_relative_to(checkout), hfsae.__file__
    text = load_text(args.text)
    assert isinstance(text, Dataset)
    read = time.process_time if args.clock == "cpu" else time.perf_counter
    begin = read()
    RUNS[who](args, text)
    return read() - begin


def in_a_process(who: str, checkout: Path) -> float:
    """Seconds of one run in a process that has hfsae of a checkout, with the arguments of this one."""
    command = [sys.executable, __file__, *sys.argv[1:], "--run", who]
    path = os.pathsep.join([str(checkout), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, "PYTHONPATH": path}
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Times all, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder of a language model with its tokenizer")
    parser.add_argument("--text", required=True, help="text file or data set")
    parser.add_argument("--hook_point", default="resid_post.2")
    parser.add_argument("--sae_lens_hook", default="transformer.h.2", help="the module whose output that is")
    parser.add_argument("--n_features", type=int, default=4096)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=1 << 18)
    parser.add_argument("--batch_tokens", type=int, default=4096)
    parser.add_argument("--context_length", type=int, default=128)
    parser.add_argument("--float32", action="store_true", help="our language model and activations in float32")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--against", type=Path, help="a checkout of hfsae that takes turns too")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu on a busy machine")
    parser.add_argument("--output", type=Path, default=Path("runs/end_to_end.json"))
    parser.add_argument("--run", choices=list(RUNS), help="only this, once, in this process")
    args = parser.parse_args()
    if args.run is not None:
        print(json.dumps(timed(args.run, args)))
        return
    checkouts = {"hfsae": OURS}
    checkouts |= {"before": args.against.resolve()} if args.against is not None else {}
    checkouts |= {"sae_lens": OURS} if installed("sae_lens") else {}
    seconds: dict[str, list[float]] = {who: [] for who in checkouts}
    for _ in range(args.repeats):
        for who, checkout in checkouts.items():
            seconds[who].append(in_a_process(who, checkout))
            print(f"{who}: {seconds[who][-1]:.1f} s", flush=True)
    own = median(seconds["hfsae"])
    for who, taken in seconds.items():
        print(
            f"{who}: {median(taken):.1f} s ({min(taken):.1f} … {max(taken):.1f}), {args.tokens / median(taken):.0f} "
            f"tokens/s, hfsae takes {own / median(taken):.3f} times as long"
        )
    told = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps({"seconds": seconds, "arguments": told, "versions": versions()}, indent=2))


if __name__ == "__main__":
    main()
