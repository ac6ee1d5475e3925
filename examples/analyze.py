"""What the features of an SAE do on a text: one pass, then a page about some of them.

    make train                                   # once: trains runs/tiny on the embedded language model
    python examples/analyze.py                   # its features on the standard library's held-out files
    python examples/analyze.py runs/tiny --features 17 42 --dataset my.jsonl

The collection is saved beside the SAE (`features.safetensors`, `features.json`), where
`hfsae.FeatureCollection.load` finds it.
"""

import argparse
import logging
import sys
from pathlib import Path

import torch

from hfsae import SAE, FeatureCollection, collect_features
from hfsae.analysis import Example, Feature, TokenTexts
from hfsae.analysis.shading import shaded
from hfsae.data import TextSource

SHOWN_EXAMPLES = 4


def load_sae(folder: str) -> SAE:
    """The SAE of a folder, or the end of the program with what to do."""
    if not (Path(folder) / "config.json").is_file():
        sys.exit(f"no SAE in {folder}: make one on the embedded language model with `make train`, or name its folder.")
    return SAE.from_pretrained(folder)


def most_telling(collection: FeatureCollection, n: int) -> list[int]:
    """The strongest of the features that fire on 0.1 % to 2 % of the tokens."""
    densities = collection.densities
    maxima = torch.where((densities > 0.001) & (densities < 0.02), collection.statistics.maxima, 0.0)
    return collection.features[maxima.topk(n).indices].tolist()


def page(feature: Feature, texts: TokenTexts) -> str:
    """What is known of one feature, in some lines."""

    def tokens(ids: list[int]) -> str:
        return " ".join(repr(texts([token_id])[0]) for token_id in ids)

    def line(example: Example) -> str:
        return "    " + shaded(texts(example.token_ids), example.activations, color=False).replace("\n", " ")

    lines = [
        f"feature {feature.index}: fires on {feature.density:.2%} of tokens, at most {feature.maximum:.2f}, "
        f"{feature.mean:.2f} on average",
        f"  promotes    {tokens([effect.token_id for effect in feature.promoted[:6]])}",
        f"  suppresses  {tokens([effect.token_id for effect in feature.suppressed[:6]])}",
        "  nearest     " + ", ".join(f"{near.feature} ({near.cosine:.2f})" for near in feature.decoder_neighbours[:4]),
        "  fires with  " + ", ".join(f"{mate.feature} ({mate.share:.0%})" for mate in feature.co_firing[:4]),
        "  top",
        *map(line, feature.top[:SHOWN_EXAMPLES]),
        "  one of each fifth",
        *(line(band[0]) for band in feature.quantiles(5) if band),
    ]
    return "\n".join(lines)


def main(command_line: list[str] | None = None) -> None:
    """Collects, saves, prints."""
    parser = argparse.ArgumentParser(description="What the features of an SAE do on a text.")
    parser.add_argument("sae", nargs="?", default="runs/tiny", help="its folder (default: %(default)s)")
    parser.add_argument("--dataset", default="python-stdlib")
    parser.add_argument("--split", help="of the dataset (default: the only one, or the one for measuring)")
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--features", type=int, nargs="+", help="default: three that fire strongly and rarely")
    args = parser.parse_args(command_line)
    logging.basicConfig(format="%(message)s")
    sae = load_sae(args.sae)
    model, tokenizer = sae.load_base_model(), sae.load_tokenizer()
    source = TextSource(dataset=args.dataset, split=args.split).resolved()
    collection = collect_features(sae, model, tokenizer, source.load(), max_tokens=args.tokens, dataset=str(source))
    collection.save(args.sae)
    texts = TokenTexts(tokenizer)
    for index in args.features or most_telling(collection, 3):
        print(page(collection.of(index), texts) + "\n")


if __name__ == "__main__":
    main()
