"""Steers a language model with one feature and says what that changed, in probabilities and in a continuation.

    make train                                   # once: trains runs/tiny on the embedded language model
    python examples/steer.py                     # the feature that fires strongest at the end of "if x is"
    python examples/steer.py runs/tiny --feature 17 --strength 2 --prompt "def main("

Strengths are multiples of the feature's largest activation on the standard library's held-out files.
"""

import argparse
from typing import Any

import torch
from analyze import load_sae
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfsae import SAE, collect_features, steer
from hfsae.analysis import read_pieces
from hfsae.data import load_text


def strongest_at_end(sae: SAE, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    """The feature that fires strongest on the last token of a text."""
    *_, last = sorted(read_pieces(sae, model, tokenizer, [text]), key=lambda piece: piece.positions[0])
    return int(last.activations[-1].argmax())


@torch.no_grad()
def next_tokens(model: PreTrainedModel, inputs) -> torch.Tensor:
    """The probability of every token to come next."""
    return model(**inputs).logits[0, -1].softmax(-1)


def main(command_line: list[str] | None = None) -> None:
    """Prints the continuation and the probabilities without and with the feature."""
    parser = argparse.ArgumentParser(description="A language model steered with one feature.")
    parser.add_argument("sae", nargs="?", default="runs/tiny", help="its folder (default: %(default)s)")
    parser.add_argument("--feature", type=int, help="default: the strongest at the end of --like")
    parser.add_argument("--like", default="        if x is", help="a text that ends with it")
    parser.add_argument("--prompt", default="        if self._file")
    parser.add_argument("--strength", type=float, default=1.0, help="in multiples of its largest activation")
    parser.add_argument("--tokens", type=int, default=30, help="tokens to generate")
    args = parser.parse_args(command_line)
    sae = load_sae(args.sae)
    model: Any = sae.load_base_model()
    tokenizer = sae.load_tokenizer()
    feature = args.feature if args.feature is not None else strongest_at_end(sae, model, tokenizer, args.like)
    held_out = load_text("python-stdlib", split="held_out")
    maxima = collect_features(sae, model, tokenizer, held_out, features=[feature], max_tokens=20_000)

    inputs = tokenizer(args.prompt, return_tensors="pt")
    options = {"max_new_tokens": args.tokens, "do_sample": False, "pad_token_id": tokenizer.eos_token_id}
    plain, before = model.generate(**inputs, **options), next_tokens(model, inputs)
    with steer(model, sae, {feature: args.strength}, maxima=maxima):
        steered, after = model.generate(**inputs, **options), next_tokens(model, inputs)

    print(f"feature {feature}, {args.strength:g} × its largest activation ({maxima[0].maximum:.2f})\n")
    print(f"without it:\n{tokenizer.decode(plain[0])}\n\nwith it:\n{tokenizer.decode(steered[0])}\n")
    print("next token, where the probability grows most")
    for token in (after - before).topk(5).indices.tolist():
        print(f"  {tokenizer.decode([token])!r:16} {before[token]:.4f} -> {after[token]:.4f}")


if __name__ == "__main__":
    main()
