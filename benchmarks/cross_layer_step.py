"""A training step of a cross-layer transcoder against the sum of what its products cost by themselves.

    python benchmarks/cross_layer_step.py [--width 256] [--n_features 4096] [--layers 4] [--tokens 2048] [--repeats 9]

The step is a whole one of `Learner.step` of a `topk_cross_layer_transcoder`, without dead features. The lower bound is
the time of what no step can do without, on the same activations and the same entries:

* of every layer the encoder's product with the search for its k largest, and the gradient of the encoder's rows;
* of every layer the decoder's product with rows for it and all later layers, its gradient by the rows, and that
  by the values;
* one step of fused Adam over all parameters.

Both are taken in turn, on one thread and by the processor's time of the process. The ratio is the median of those of
pairs. Prints JSON.
"""

import argparse
import json
from statistics import median

import torch
from accelerate import Accelerator
from in_turn import seconds_in_turn
from torch import Tensor

from hfsae import SAE, SAETrainingArguments, TopKCrossLayerTranscoderSAEConfig
from hfsae.autoencoder.initialisation import initialise
from hfsae.functional import SparsePattern, TopK, encode
from hfsae.training.learner import Learner


def sparse_rows(args: argparse.Namespace, seed: int) -> Tensor:
    """Activations (tokens, layers · width) made of few of many directions."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(4 * args.width, args.layers * args.width, generator=generator)
    present = torch.rand(args.tokens, 4 * args.width, generator=generator) < 24 / (4 * args.width)
    return present.float() @ directions


def learner_of(x: Tensor, y: Tensor, args: argparse.Namespace) -> Learner:
    """A learner in the middle of its run."""
    layers = {
        "source_names": [str(layer) for layer in range(args.layers)],
        "source_widths": [args.width] * args.layers,
    }
    sizes = {"n_features": args.layers * args.n_features, "k": args.k}
    sae = initialise(SAE.from_config(TopKCrossLayerTranscoderSAEConfig(**layers, **sizes)), x, target=y)
    options = {"train_batch_tokens": args.tokens, "training_tokens": 10_000 * args.tokens, "use_cpu": True}
    return Learner("", sae, SAETrainingArguments(output_dir="unused", **options), Accelerator(cpu=True))  # type: ignore


class LowerBound:
    """The products of a step by themselves."""

    def __init__(self, sae: SAE, x: Tensor, y: Tensor, args: argparse.Namespace):
        self.sae, self.rule = sae, TopK(args.k)
        scaled, error = sae.scaled(x), sae.scaled_target(x, y)
        widths = sae.config.source_widths  # type: ignore[attr-defined]
        self.rows = [part.contiguous() for part in scaled.split(widths, 1)]
        self.errors = [error[:, layer * args.width :].contiguous() for layer in range(args.layers)]
        copies = [parameter.detach().clone().requires_grad_() for parameter in sae.parameters()]
        for copy in copies:
            copy.grad = torch.ones_like(copy)
        self.optimiser = torch.optim.Adam(copies, fused=True)

    @torch.no_grad()
    def __call__(self) -> None:
        n = self.sae.config.features_per_layer  # type: ignore[attr-defined]
        weights, biases = self.sae.encoder.weight.split(n), self.sae.encoder.bias.split(n)
        for layer, (x, error) in enumerate(zip(self.rows, self.errors, strict=True)):
            found, values = encode(x, weights[layer], biases[layer], None, self.rule, "sparse")
            pattern = SparsePattern(found.features, found.per_token, n)  # type: ignore[attr-defined]
            rows = self.sae.W_dec[layer]
            pattern.token_sum(values, rows)
            pattern.sampled_product(error, rows)
            pattern.feature_sum(values, error)
            pattern.feature_sum(values, x)
        self.optimiser.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    defaults = {"width": 256, "n_features": 4096, "layers": 4, "tokens": 2048, "k": 32, "repeats": 9}
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(1)
    x, y = sparse_rows(args, 0), sparse_rows(args, 1)
    learner = learner_of(x, y, args)
    bound = LowerBound(learner.sae, x, y, args)
    steps = {"step": lambda step: learner.step([x], step, [y]), "lower_bound": lambda _: bound()}
    seconds = seconds_in_turn(steps, args.repeats)
    ratios = [step / least for step, least in zip(*seconds.values(), strict=True)]
    said = {name: round(median(values), 4) for name, values in seconds.items()}
    print(json.dumps({"median_s": said, "ratio": round(median(ratios), 3), **vars(args)}))


if __name__ == "__main__":
    main()
