"""How long it takes to collect the examples of all features of an SAE in one pass, and in how much memory.

    python benchmarks/top_examples.py [--n_features 12288] [--tokens 1000000] [--bf16] [--output results.json]

The embedded language model reads the train split of python-stdlib; the SAE (TopK, k = 32, residual stream after block
1) has random weights: how many features fire is what costs, not which. Prints one JSON object: times in seconds of the
pass by the clock and of the processor (and of the reading alone: language model and encoder on the first tokens,
scaled to all), memory in MiB: before, after a pass over a tenth of the tokens, and after the whole one, which shows
whether memory grows with the text.
"""

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import torch

from hfsae import SAE, TopKSAEConfig, collect_features
from hfsae.analysis.document_sequences import DocumentSequenceReader
from hfsae.analysis.feature_reader import FeatureReader
from hfsae.data import load_text

TINY_LM = Path(__file__).resolve().parent.parent / "examples" / "tiny_lm"


def peak_mib() -> float:
    """The most memory that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def reading_seconds(sae: SAE, model, tokenizer, dataset, tokens: int, bf16: bool) -> float:
    """Processor time a token of the language model and the encoder alone."""
    reader, pieces = FeatureReader(sae, model, bf16=bf16), DocumentSequenceReader(sae.config, model, tokenizer)
    seen, start = 0, time.process_time()
    for batch in pieces.batches(dataset):
        reader.read(batch.tokens)
        seen += int(batch.tokens.keep.sum())
        if seen >= tokens:
            break
    return (time.process_time() - start) / seen


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="The speed of collecting examples of all features.")
    parser.add_argument("--n_features", type=int, default=12_288)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--bf16", action="store_true", help="the language model in bfloat16")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.manual_seed(0)
    config = TopKSAEConfig(
        d_in=128,
        n_features=args.n_features,
        k=32,
        hook_point="transformer.h.1.output",
        base_model=str(TINY_LM),
        context_length=128,
    )
    sae = SAE.from_config(config).eval()
    model, tokenizer = sae.load_base_model(), sae.load_tokenizer()
    dataset = load_text("python-stdlib", split="train")
    few = min(args.tokens, 20_000)
    reading = reading_seconds(sae, model, tokenizer, dataset, few, args.bf16) * args.tokens
    before = peak_mib()
    options = {"bf16": args.bf16}
    collect_features(sae, model, tokenizer, dataset, max_tokens=max(1, args.tokens // 10), **options)
    tenth = peak_mib()
    start, cpu_start = time.perf_counter(), time.process_time()
    collection = collect_features(sae, model, tokenizer, dataset, max_tokens=args.tokens, **options)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    with tempfile.TemporaryDirectory() as folder:
        collection.save(folder)
        saved = sum(path.stat().st_size for path in Path(folder).iterdir())
    result = {
        "n_features": args.n_features,
        "n_tokens": collection.about.n_tokens,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
        "tokens_per_second": round(collection.about.n_tokens / seconds),
        "cpu_seconds_reading_alone": round(reading, 1),
        "peak_mib": round(peak_mib()),
        "peak_mib_before": round(before),
        "peak_mib_of_a_tenth": round(tenth),
        "collection_mib": round(saved / 2**20),
        "model_precision": collection.about.model_precision,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    print(json.dumps(result, indent=2))
    if args.output:
        args.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
