"""From text to a trained SAE, the language model's work included: hfsae against SAELens' own runner.

    python benchmarks/end_to_end.py --model MODEL --text FILE [--hook_point resid_post.2] [--output FILE.json]

Same model, text, width, batch, context and precision, and shuffle buffers of the same size. Timed from the call of
the trainer to the trained SAE, without evaluation and without saving checkpoints on the way; start-up is included. The
two take turns; the figures are medians.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from datasets import Dataset
from peers import installed, versions
from transformers import AutoConfig

from hfsae import SAETrainer, SAETrainingArguments
from hfsae.data import load_text

# Shuffle buffers hold so many tokens: one window of ours, SAELens' mixing buffer.
_BUFFER_TOKENS = 1 << 17
_SEQUENCES = 32


def ours(args: argparse.Namespace, text: Dataset) -> float:
    """Seconds that `SAETrainer` takes."""
    with tempfile.TemporaryDirectory() as folder:
        training = SAETrainingArguments(
            output_dir=folder,
            model_name_or_path=args.model,
            model_dtype="float32",
            activation_dtype="float32",
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
        )
        begin = time.perf_counter()
        SAETrainer(args=training, train_dataset=text).train()
        return time.perf_counter() - begin


def sae_lens(args: argparse.Namespace, text: Dataset) -> float:
    """Seconds that SAELens' `LanguageModelSAETrainingRunner` takes."""
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
    begin = time.perf_counter()
    LanguageModelSAETrainingRunner(config, override_dataset=text).run()
    return time.perf_counter() - begin


def main() -> None:
    """Times both, prints, writes."""
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
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=Path("runs/end_to_end.json"))
    args = parser.parse_args()
    text = load_text(args.text)
    assert isinstance(text, Dataset)
    runners = {"hfsae": ours} | ({"sae_lens": sae_lens} if installed("sae_lens") else {})
    seconds: dict[str, list[float]] = {who: [] for who in runners}
    for _ in range(args.repeats):
        for who, run in runners.items():
            seconds[who].append(run(args, text))
    for who, taken in seconds.items():
        print(f"{who}: {median(taken):.1f} s, {args.tokens / median(taken):.0f} tokens/s")
    told = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps({"seconds": seconds, "arguments": told, "versions": versions()}, indent=2))


if __name__ == "__main__":
    main()
