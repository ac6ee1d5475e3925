"""Compares clt-training's cross-layer transcoders, as hfsae reads and writes them, with its own code on a CPU.

    git clone https://github.com/EleutherAI/clt-training && git -C clt-training checkout 0a0fea2
    pip install triton einops natsort simple-parsing schedulefree      # in an environment with hfsae
    PYTHONPATH=clt-training python benchmarks/clt_training_peer.py --model examples/tiny_lm

It makes coders with random weights, runs them with its `CrossLayerRunner` on activations of a real language model, and
hfsae computes the same from the files. Then hfsae writes files, and its code loads and runs them. Rows are as those of
`benchmarks/several_places_peers.py`. At commit cf9821f, one later, the runner stops at the second layer (TypeError).
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

os.environ |= {"SPARSIFY_NO_COMPILE": "1", "SPARSIFY_DISABLE_TRITON": "1", "TORCHDYNAMO_DISABLE": "1"}

import torch
from safetensors.torch import save_file
from sparsify import CrossLayerRunner, SparseCoder, SparseCoderConfig  # type: ignore[import-not-found]
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from interop_peers import EXPANSION, K, Row, difference, scramble
from several_places_peers import activations, of_all_layers

from hfsae import SAE, export_sae

FORMS = {
    "topk": {},
    "topk, per_source_tied": {"per_source_tied": True},
    "topk, concat": {"coalesce_topk": "concat", "skip_connection": True},
    "topk, per-layer": {"coalesce_topk": "per-layer"},
    "topk, divide_cross_layer": {"divide_cross_layer": True},
    "groupmax": {"activation": "groupmax"},
}


def save(folder: Path, x: Tensor, seed: int, options: dict) -> None:
    """A run's folder, as its trainer saves one; tensors that stand under two names are saved under both."""
    layers, d_in = x.shape[1:]
    hooks = [f"h.{layer}.mlp" for layer in range(layers)]
    for layer, hook in enumerate(hooks):
        sizes = {"n_targets": layers - layer, "n_sources": layer + 1, "k": K, "expansion_factor": EXPANSION}
        shared = {"transcode": True, "post_encoder_scale": True, "normalize_io": True}
        config = SparseCoderConfig(**{**sizes, **shared, **options})
        coder = SparseCoder(d_in, config)
        scramble(coder, x[:, layer], 10 * seed + layer)
        for name, tensor in coder.state_dict().items():
            if "post_enc" in name:
                tensor.copy_(1 + 0.2 * tensor.tanh() if "scale" in name else torch.zeros_like(tensor))
            if name.endswith("_norm"):
                tensor.fill_(float(x[:, layer].norm(dim=1).mean()) * (1.3 if name.startswith("out") else 1))
        (folder / hook).mkdir(parents=True)
        save_file({name: t.clone() for name, t in coder.state_dict().items()}, folder / hook / "sae.safetensors")
        (folder / hook / "cfg.json").write_text(json.dumps({**config.to_dict(), "d_in": d_in}))
    run = {"model": "openai-community/gpt2", "cross_layer": layers, "hookpoints": hooks, "sae": {}}
    (folder / "config.json").write_text(json.dumps(run))


def theirs(folder: Path, x: Tensor) -> tuple[Tensor, Tensor]:
    """Features and reconstructions of all layers behind each other, by its own code."""
    runner, features, made = CrossLayerRunner(), [], []
    for layer, hook in enumerate(json.loads((folder / "config.json").read_text())["hookpoints"]):
        coder = SparseCoder.load_from_disk(folder / hook)
        mid = runner.encode(x[:, layer], coder)
        dense = torch.zeros(len(x), coder.num_latents).scatter(1, mid.latent_indices.long(), mid.latent_acts)
        features.append(dense)
        made.append(runner.decode(mid, x[:, layer], hook).sae_out)
    return torch.cat(features, 1), torch.cat(made, 1)


@torch.no_grad()
def compare(x: Tensor) -> Iterator[Row]:
    """All rows."""
    with tempfile.TemporaryDirectory() as scratch:
        cases: list[tuple[str, str, SAE, Path]] = []
        for seed, (title, options) in enumerate(FORMS.items()):
            folder = Path(scratch) / str(seed)
            save(folder, x, seed, options)
            cases.append((title, "read", SAE.from_pretrained(folder), folder))
        for title, options in {"topk": {}, "topk, tied": {"tied_decoder": True}, "topk, skip": {"skip": True}}.items():
            ours = of_all_layers("topk_cross_layer_transcoder", {"mlp_in": x}, **options)
            cases.append((title, "written", ours, export_sae(ours, Path(scratch) / title, "clt-training")))
        for title, direction, ours, folder in cases:
            features, made = theirs(folder, x)
            mine, joined = ours.encode(x.flatten(1)), x.flatten(1)
            others = int(((mine != 0) != (features != 0)).any(1).sum())
            errors = difference(mine, features), difference(ours(joined).reconstruction, made)
            yield Row("clt-training", title, direction, *errors, others)


def main() -> None:
    """Prints the table as Markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", default="examples/tiny_lm", help="language model (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=1024, help="tokens to compare on (default: %(default)s)")
    args = parser.parse_args()
    print("| format | architecture | direction | features | reconstructions | other features |")
    print("|---|---|---|---|---|---|")
    for row in compare(activations(args.model, args.tokens)["mlp_in"]):
        errors = " | ".join("0" if error == 0 else f"{error:.1e}" for error in (row.features, row.reconstruction))
        print(f"| {row.format} | {row.architecture} | {row.direction} | {errors} | {row.ties} |")


if __name__ == "__main__":
    main()
