"""A training step of a crosscoder with two sources against a step of topk on as wide an activation.

    python benchmarks/crosscoder_step.py [--width 384] [--n_features 12288] [--tokens 4096] [--repeats 9]

Both are whole steps of `Learner.step` with auxk for a tenth of the features. The crosscoder's rows come by source, as
a run's batches do, and are joined in its time. Steps are taken in turn, each first in every second pair, on one thread
and by the processor's time of the process: what else the machine does hardly counts. The ratio is the median of those
of pairs. Prints JSON.
"""

import argparse
import json
from statistics import median

import torch
from accelerate import Accelerator
from in_turn import seconds_in_turn
from torch import Tensor

from hfsae import SAE, SAETrainingArguments, TopKCrosscoderSAEConfig, TopKSAEConfig
from hfsae.autoencoder.initialisation import initialise
from hfsae.in_model import activations_at
from hfsae.training.learner import Learner

SOURCES = ("base", "tuned")
DEAD_SHARE = 0.1


def learner_of(sae: SAE, rows: Tensor, args: argparse.Namespace) -> Learner:
    """A learner in the middle of its run, a tenth of whose features are dead."""
    initialise(sae, rows)
    options = {"train_batch_tokens": args.tokens, "training_tokens": 10_000 * args.tokens, "use_cpu": True}
    learner = Learner("", sae, SAETrainingArguments(output_dir="unused", **options), Accelerator(cpu=True))
    silent = torch.rand(args.n_features, generator=torch.Generator().manual_seed(1)) < DEAD_SHARE
    with torch.no_grad():
        sae.encoder.bias[silent] -= 1e4
    learner.firing.tokens_since_fired[silent] = 2 * learner.plan.dead_window
    return learner


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("width", 384), ("n_features", 12288), ("tokens", 4096), ("k", 32), ("repeats", 9)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(4 * args.width, 2 * args.width, generator=generator)
    present = torch.rand(args.tokens, 4 * args.width, generator=generator) < 24 / (4 * args.width)
    rows = present.float() @ directions
    batch = dict(zip(SOURCES, (part.contiguous() for part in rows.split(args.width, 1)), strict=True))
    sizes = {"n_features": args.n_features, "k": args.k}
    sources = {"source_names": list(SOURCES), "source_widths": [args.width] * 2}
    wide = learner_of(SAE.from_config(TopKSAEConfig(d_in=2 * args.width, **sizes)), rows, args)
    crossed = learner_of(SAE.from_config(TopKCrosscoderSAEConfig(**sources, **sizes)), rows, args)
    steps = {"topk": lambda step: wide.step([rows], step)}
    steps["topk_crosscoder"] = lambda step: crossed.step([activations_at(batch, "+".join(SOURCES))], step)
    seconds = seconds_in_turn(steps, args.repeats)
    ratios = [crossed / wide for wide, crossed in zip(*seconds.values(), strict=True)]
    said = {name: round(median(values), 4) for name, values in seconds.items()}
    least = {name: round(min(values), 4) for name, values in seconds.items()}
    print(json.dumps({"median_s": said, "minimum_s": least, "ratio": round(median(ratios), 3), **vars(args)}))


if __name__ == "__main__":
    main()
