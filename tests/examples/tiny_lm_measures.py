"""What the tests of the tiny language model share: measurements of it that owe nothing to the script."""

import re
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, PreTrainedModel

from hfsae.data.stdlib_text import StdlibSplit, stdlib_documents


def token_ids(folder: Path, split: StdlibSplit, at_least: int | None = None) -> list[int]:
    """The tokens of a split, `<|endoftext|>` before each document; with `at_least`, no more documents than needed."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids: list[int] = []
    for document in stdlib_documents(split):
        ids += [tokenizer.bos_token_id, *tokenizer(document["text"], verbose=False)["input_ids"]]
        if at_least is not None and len(ids) >= at_least:
            break
    return ids


def longhand_cross_entropy(model: PreTrainedModel, ids: list[int], n_windows: int | None = None) -> tuple[float, int]:
    """Nats per token in windows of the model's context, by hand in float64, and how many tokens were predicted."""
    context = model.config.n_positions
    total, predicted = 0.0, 0
    for begin in range(0, (len(ids) - 1) // context * context, context)[:n_windows]:
        with torch.no_grad():
            scores = model(torch.tensor([ids[begin : begin + context]])).logits[0].double().numpy()
        peaks = scores.max(axis=1)
        log_sums = peaks + np.log(np.exp(scores - peaks[:, None]).sum(axis=1))
        for position, target in enumerate(ids[begin + 1 : begin + context + 1]):
            total += log_sums[position] - scores[position, target]
            predicted += 1
    return total / predicted, predicted


def card_row(folder: Path, name: str) -> tuple[float, float]:
    """Nats per token and bits per byte in one row of the card's table."""
    row = re.search(
        rf"^\| \**{name}\** \| \**([\d.]+)\** \| \**([\d.]+)\** \|$", (folder / "README.md").read_text(), re.M
    )
    assert row, f"the card has no row {name!r}"
    return float(row[1]), float(row[2])
