"""Which features a language model needs for a prediction: each is taken away, and what that costs is measured.

make train                                   # once: trains runs/tiny on the embedded language model
python examples/ablate.py
python examples/ablate.py runs/tiny --prompt "if x is" --target " None"
"""

import argparse

import torch
from analyze import load_sae

from hfsae import ablate, feature_effects


def main(command_line: list[str] | None = None) -> None:
    """Prints the features that matter most, and the prediction without them."""
    parser = argparse.ArgumentParser(description="What a prediction costs without single features.")
    parser.add_argument("sae", nargs="?", default="runs/tiny", help="its folder (default: %(default)s)")
    parser.add_argument("--prompt", default="        total = 0\n        for i in")
    parser.add_argument("--target", default=" range", help="what is to come next")
    parser.add_argument("--n", type=int, default=8, help="how many features to ablate")
    args = parser.parse_args(command_line)
    sae = load_sae(args.sae)
    model, tokenizer = sae.load_base_model(), sae.load_tokenizer()
    effects = feature_effects(sae, model, tokenizer, args.prompt, target=args.target, n_exact=args.n, k=3)
    probability = torch.tensor(-effects.loss).exp()
    print(f"P({args.target!r} | {args.prompt!r}) = {probability:.4f}, a loss of {effects.loss:.3f} nats\n")
    print("feature  loss without it  by attribution  what comes more likely")
    measured = [effect for effect in effects.features if effect.loss_change is not None]
    for effect in measured:
        raised = " ".join(repr(tokenizer.decode([token.token_id])) for token in effect.raised)
        print(f"{effect.feature:7}  {effect.loss_change:+15.3f}  {effect.attribution:+14.3f}  {raised}")

    needed = [effect.feature for effect in measured if effect.loss_change and effect.loss_change > 0][:3]
    if not needed:
        print("\nno single feature is needed for it")
        return
    inputs = sae.tokenize(args.prompt, tokenizer)
    with torch.no_grad(), ablate(model, sae, needed):
        without = model(**inputs).logits[0, -1].softmax(-1)
    target_id = tokenizer(args.target, add_special_tokens=False)["input_ids"][0]
    print(f"\nwithout {', '.join(map(str, needed))} together: {probability:.4f} -> {without[target_id]:.4f}")


if __name__ == "__main__":
    main()
