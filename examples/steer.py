"""Steers a language model with one feature and says what that changed, in probabilities and in a continuation.

    make train                                   # once: trains runs/tiny on the embedded language model
    python examples/steer.py                     # tries 30 features, shows the one whose tokens it moves most
    python examples/steer.py runs/tiny --feature 17 --strength 2 --prompt "def f("

Strengths are multiples of the feature's largest activation on the standard library's held-out files. What is measured
is the probability that one of the five tokens comes next whose logits the feature raises most by itself.
"""

import argparse
from typing import Any

import torch
from analyze import load_sae
from transformers import PreTrainedModel

from hfsae import FeatureCollection, collect_features, steer
from hfsae.data import load_text


def greatest_effects(collection: FeatureCollection, n: int) -> list[int]:
    """The features that, at their largest activation, raise a logit most; rare ones left out."""
    assert collection.logits is not None, "the SAE writes into the residual stream"
    effects = collection.logits.promoted_by[:, 0] * collection.statistics.maxima
    return torch.where(collection.densities > 0.001, effects, 0.0).topk(n).indices.tolist()


@torch.no_grad()
def next_tokens(model: PreTrainedModel, inputs) -> torch.Tensor:
    """The probability of every token to come next."""
    return model(**inputs).logits[0, -1].softmax(-1)


def main(command_line: list[str] | None = None) -> None:
    """Prints the continuation and the probabilities without and with the feature."""
    parser = argparse.ArgumentParser(description="A language model steered with one feature.")
    parser.add_argument("sae", nargs="?", default="runs/tiny", help="its folder (default: %(default)s)")
    parser.add_argument("--feature", type=int, help="default: of --candidates the one that moves its tokens most")
    parser.add_argument("--candidates", type=int, default=30, help="how many of the greatest effect on logits to try")
    parser.add_argument("--prompt", default="    def close(self):\n        self.")
    parser.add_argument("--strength", type=float, default=1.5, help="in multiples of its largest activation")
    parser.add_argument("--tokens", type=int, default=30, help="tokens to generate")
    args = parser.parse_args(command_line)
    sae = load_sae(args.sae)
    model: Any = sae.load_base_model()
    tokenizer = sae.load_tokenizer()
    held_out = load_text("python-stdlib", split="held_out")
    collection = collect_features(sae, model, tokenizer, held_out, max_tokens=20_000)

    inputs = sae.tokenize(args.prompt, tokenizer)
    before, moved = next_tokens(model, inputs), {}
    for feature in [args.feature] if args.feature is not None else greatest_effects(collection, args.candidates):
        with steer(model, sae, {feature: args.strength}, maxima=collection):
            after = next_tokens(model, inputs)
        promoted = [effect.token_id for effect in collection[feature].promoted[:5]]
        moved[feature] = float(before[promoted].sum()), float(after[promoted].sum())
    feature = max(moved, key=lambda feature: moved[feature][1] - moved[feature][0])
    known = collection[feature]

    options = {"max_new_tokens": args.tokens, "do_sample": False, "pad_token_id": tokenizer.eos_token_id}
    plain = model.generate(**inputs, **options)
    with steer(model, sae, {feature: args.strength}, maxima=collection):
        steered, after = model.generate(**inputs, **options), next_tokens(model, inputs)

    print(f"feature {feature}, {args.strength:g} × its largest activation ({known.maximum:.2f})")
    print("raises", " ".join(repr(tokenizer.decode([effect.token_id])) for effect in known.promoted[:5]))
    print(f"probability of these: {moved[feature][0]:.4f} -> {moved[feature][1]:.4f}")
    median = torch.tensor(list(moved.values())).median(0).values
    print(f"median of the {len(moved)} tried: {median[0]:.4f} -> {median[1]:.4f}")
    print(f"\nwithout it:\n{tokenizer.decode(plain[0])}\n\nwith it:\n{tokenizer.decode(steered[0])}\n")
    print("next token, where the probability grows most")
    for token in (after - before).topk(5).indices.tolist():
        print(f"  {tokenizer.decode([token])!r:16} {before[token]:.4f} -> {after[token]:.4f}")


if __name__ == "__main__":
    main()
