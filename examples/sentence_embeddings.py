"""Trains an SAE on embeddings of sentences, and shows which lines of code share a feature. Offline, in a minute:

    python examples/sentence_embeddings.py
    python examples/sentence_embeddings.py --lines 10000 --features 1024

The encoder is static, as those of model2vec are: a token's vector is its row of a language model's embedding matrix,
whitened and weighted by how rare the token is, and a sentence is the mean of its tokens. An encoder of your own, such
as `SentenceTransformer(...).encode`, takes the place of `embed`.
"""

import argparse
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from hfsae import SAE, SAETrainer, SAETrainingArguments, TopKSAEConfig
from hfsae.data import load_text

TINY_LM = "examples/tiny_lm"
RARITY = 1e-3  # a / (a + frequency): Arora et al. 2017, "A simple but tough-to-beat baseline for sentence embeddings"


def lines_of_code(n: int) -> list[str]:
    """Different lines of the standard library, of 20 characters and more."""
    found: dict[str, None] = {}
    for text in load_text("python-stdlib", split="train").shuffle(seed=0)["text"]:
        found |= dict.fromkeys(line.strip() for line in text.splitlines() if len(line.strip()) >= 20)
        if len(found) >= n:
            break
    return list(found)[:n]


class StaticEncoder:
    """Means of token vectors.

    Args:
        vectors: (vocabulary, d), one a token.
        tokenizer: Cuts lines into tokens.
        lines: Tell how rare each token is, and what all lines have in common.
    """

    def __init__(self, vectors: Tensor, tokenizer: Any, lines: list[str]):
        self._tokenizer = tokenizer
        ids = torch.cat([torch.tensor(one) for one in tokenizer(lines)["input_ids"]])
        frequency = torch.bincount(ids, minlength=len(vectors)) / len(ids)
        centred = vectors - vectors[ids].mean(0)
        _, scale, directions = torch.linalg.svd(centred[ids.unique()], full_matrices=False)
        self._vectors = centred @ directions.T / scale * (RARITY / (RARITY + frequency))[:, None]

    def embed(self, lines: list[str]) -> Tensor:
        """(lines, d), each of length √d."""
        rows = [self._vectors[torch.tensor(ids)].mean(0) for ids in self._tokenizer(lines)["input_ids"]]
        return torch.nn.functional.normalize(torch.stack(rows), dim=-1) * self._vectors.shape[1] ** 0.5


def main(command_line: list[str] | None = None) -> None:
    """Trains, measures on other lines, and prints the lines of some features."""
    parser = argparse.ArgumentParser(description="An SAE on embeddings of sentences.")
    parser.add_argument("--output_dir", default="runs/sentences", help="where it goes (default: %(default)s)")
    parser.add_argument("--lines", type=int, default=5_000, help="to train on (default: %(default)s)")
    parser.add_argument("--features", type=int, default=512, help="of the SAE (default: %(default)s)")
    parser.add_argument("--passes", type=int, default=20, help="over the lines (default: %(default)s)")
    args = parser.parse_args(command_line)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(TINY_LM), AutoTokenizer.from_pretrained(TINY_LM)
    lines = lines_of_code(args.lines * 11 // 10)
    vectors: Any = model.get_input_embeddings().weight
    encoder = StaticEncoder(vectors.detach(), tokenizer, lines)
    rows = encoder.embed(lines)
    kept, fresh = rows[: args.lines], rows[args.lines :]

    training = SAETrainingArguments(
        output_dir=args.output_dir,
        training_tokens=args.passes * args.lines,
        train_batch_tokens=512,
        init_tokens=2048,
        learning_rate=1e-3,
        overwrite_output_dir=True,
        html_report=False,
    )
    config = TopKSAEConfig(d_in=rows.shape[1], n_features=args.features, k=16)
    torch.manual_seed(0)
    order = torch.cat([torch.randperm(len(kept)) for _ in range(args.passes + 1)])
    SAETrainer(args=training, saes=config, activations=kept[order]).train()

    sae = SAE.from_pretrained(args.output_dir)
    with torch.no_grad():
        error = (sae(fresh).reconstruction - fresh).square().sum() / (fresh - kept.mean(0)).square().sum()
        features = sae.encode_sparse(kept)
    print(f"explained variance on {len(fresh)} other lines: {1 - error:.3f}")
    firing = features.tokens_firing()
    for feature in torch.where(firing < len(kept) // 20, firing, 0).topk(4).indices.tolist():
        print(f"feature {feature}, in {int(firing[feature])} lines:")
        for line in features.of(feature).topk(4).indices.tolist():
            print(f"    {lines[line][:100]}")


if __name__ == "__main__":
    main()
