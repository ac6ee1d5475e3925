"""What a table of features costs beside reading alone: language model and encoder on the same documents.

    python benchmarks/featurize.py [--documents 60] [--repeats 5] [--output results.json]

The embedded language model reads the train split of python-stdlib; the SAE (TopK, k = 32, residual stream after block
1, 12,288 features) has random weights. Both take turns; processor time, the median of the ratios pair by pair. Prints
one JSON object a level: tokens a second of either, and reading's time to the table's.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from hfsae import SAE, TopKSAEConfig, featurize
from hfsae.analysis.document_sequences import DocumentSequenceReader
from hfsae.analysis.feature_reader import FeatureReader
from hfsae.data import load_text

TINY_LM = Path(__file__).resolve().parent.parent / "examples" / "tiny_lm"


def seconds(work: Callable[[], object]) -> float:
    """Processor time that something takes."""
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="The speed of writing a table of features.")
    parser.add_argument("--documents", type=int, default=60)
    parser.add_argument("--n_features", type=int, default=12_288)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.manual_seed(0)
    place = {"hook_point": "transformer.h.1.output", "base_model": str(TINY_LM), "context_length": 128}
    sae = SAE.from_config(TopKSAEConfig(d_in=128, n_features=args.n_features, k=32, **place)).eval()
    model, tokenizer = sae.load_base_model(), sae.load_tokenizer()
    documents = load_text("python-stdlib", split="train").select(range(args.documents))
    reader, pieces = FeatureReader(sae, model), DocumentSequenceReader(sae.config, model, tokenizer)

    def read() -> int:
        kept = 0
        for batch in pieces.batches(documents):
            reader.read(batch.tokens)
            kept += int(batch.tokens.keep.sum())
        return kept

    n_tokens, results = read(), []
    for level in ("document", "token"):

        def write(level=level) -> None:
            with tempfile.TemporaryDirectory() as folder:
                featurize(sae, model, tokenizer, documents, Path(folder) / "t", level=level, disable_tqdm=True)

        write()
        pairs = [(seconds(read), seconds(write)) for _ in range(args.repeats)]
        reading, writing = (median(one) for one in zip(*pairs, strict=True))
        result = {
            "level": level,
            "n_tokens": n_tokens,
            "reading_tokens_per_second": round(n_tokens / reading),
            "table_tokens_per_second": round(n_tokens / writing),
            "reading_to_table": round(median(a / b for a, b in pairs), 3),
        }
        print(json.dumps(result))
        results.append(result)
    if args.output:
        args.output.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
