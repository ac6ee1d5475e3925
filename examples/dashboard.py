"""The features of an SAE on one page: collects them, reads two prompts, writes dashboard.html.

`hfsae dashboard` in the open:

    make train                                   # once: trains runs/tiny on the embedded language model
    python examples/dashboard.py                 # writes runs/tiny/dashboard.html: open it in a browser
    python examples/dashboard.py runs/tiny --dataset my.jsonl --tokens 500000
"""

import argparse
import logging
import sys
from pathlib import Path

from hfsae import SAE, collect_features
from hfsae.dashboard import read_prompts, write_dashboard
from hfsae.data import TextSource

PROMPTS = [
    'class Reader:\n    def __init__(self, path):\n        """Opens the file."""\n        self.path = path\n',
    "import os\nfrom typing import Any\n\nfor name in os.listdir(path):\n    if not name:\n        return None\n",
]


def main(command_line: list[str] | None = None) -> None:
    """Collects, writes, says where."""
    parser = argparse.ArgumentParser(description="Writes the dashboard of an SAE.")
    parser.add_argument("sae", nargs="?", default="runs/tiny", help="its folder (default: %(default)s)")
    parser.add_argument("--dataset", default="python-stdlib")
    parser.add_argument("--split", help="of the dataset (default: the only one, or the one for measuring)")
    parser.add_argument("--tokens", type=int, default=200_000)
    args = parser.parse_args(command_line)
    logging.basicConfig(format="%(message)s")
    folder = Path(args.sae)
    if not (folder / "config.json").is_file():
        sys.exit(f"no SAE in {folder}: make one on the embedded language model with `make train`, or name its folder.")
    sae = SAE.from_pretrained(folder)
    model, tokenizer = sae.load_base_model(), sae.load_tokenizer()
    source = TextSource(dataset=args.dataset, split=args.split).resolved()
    collection = collect_features(
        sae,
        model,
        tokenizer,
        source.load(),
        max_tokens=args.tokens,
        dataset=str(source),
    )
    collection.save(folder)
    prompts = read_prompts(sae, model, tokenizer, PROMPTS)
    page = write_dashboard(collection, tokenizer, folder / "dashboard.html", title=folder.name, prompts=prompts)
    firing, n_tokens = int((collection.densities > 0).sum()), collection.about.n_tokens
    print(f"wrote {page}: {firing:,} of {len(collection):,} features fire on {n_tokens:,} tokens")


if __name__ == "__main__":
    main()
