"""Compares crosscoders and cross-layer transcoders of other projects, as hfsae reads them, with their own code.

    pip install llamascopium==2.0.0b34 circuit-tracer==0.5.0 "transformer-lens<4"   # in an environment with hfsae
    python benchmarks/several_places_peers.py --model examples/tiny_lm

Each project's classes get random weights, and save them with the project's own code where it has some. They compute
features and reconstructions from activations of a real language model at all layers, and hfsae does so from the files.
Prints one row a format and architecture, with differences as `benchmarks/interop_peers.py` has them. Its last column
counts tokens whose active features differ; no token is left out.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(Path(__file__).parent))
from interop_peers import EXPANSION, K, Row, difference, scramble

from hfsae import SAE
from hfsae.hooks import capture, resolve_hook_point

SIDES = {"resid_mid": "mlp_in", "mlp_out": "mlp_out", "resid_post": "resid_post"}
"""Places as Llamascopium calls them, and which activations stand there in this comparison."""

Case = tuple[str, str, SAE, Tensor, Tensor, Tensor]
"""Format, architecture, ours, what it reads (tokens, d_in), their features (tokens, n), their reconstruction."""


def activations(model: str, tokens: int) -> dict[str, Tensor]:
    """(tokens, layers, d) of each kind of place, at all layers."""
    tokenizer, lm = AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model)
    text = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    ids = tokenizer(text, return_tensors="pt").input_ids[0]
    context = min(128, lm.config.max_position_embeddings)
    blocks = ids[: len(ids) // context * context].reshape(-1, context)[: -(-tokens // context)]
    found = {}
    for kind in SIDES.values():
        places = [f"{kind}.{layer}" for layer in range(lm.config.num_hidden_layers)]
        names = [str(resolve_hook_point(lm, place)) for place in places]
        with torch.no_grad(), capture(lm, places) as read:
            rows = [read.run(input_ids=block[None]) for block in blocks]
        by_place = [torch.cat([row[name].flatten(0, 1) for row in rows]) for name in names]
        found[kind] = torch.stack(by_place, 1)[:tokens].float()
    return found


def gemma_scope_2(folder: Path, at: dict[str, Tensor]) -> Iterator[Case]:
    """Cross-layer transcoders with and without skip connections, by circuit-tracer's loader of this format."""
    from circuit_tracer.transcoder.cross_layer_transcoder import load_gemma_scope_2_clt

    x = at["mlp_in"]
    layers, d_in, n = x.shape[1], x.shape[2], EXPANSION * x.shape[2]
    for title, skip in (("cross-layer transcoder", False), ("cross-layer transcoder with skip", True)):
        generator, spread = torch.Generator().manual_seed(0), float(x.std())
        path = folder / title.replace(" ", "_") / "gemma-scope-2-1b-pt" / "clt"
        path.mkdir(parents=True)
        paths = {}
        for layer in range(layers):
            tensors = {
                "w_enc": torch.randn(d_in, n, generator=generator) / d_in**0.5,
                "b_enc": 0.1 * spread * torch.randn(n, generator=generator),
                "threshold": spread * (1 + 0.2 * torch.randn(n, generator=generator).tanh()),
                "w_dec": torch.randn(n, layers, d_in, generator=generator) / d_in**0.5,
                "b_dec": 0.1 * spread * torch.randn(d_in, generator=generator),
            }
            tensors["w_dec"][:, :layer] = 0
            if skip:
                tensors["affine_skip_connection"] = torch.randn(d_in, d_in, generator=generator) / d_in
            paths[layer] = str(path / f"params_layer_{layer}.safetensors")
            save_file(tensors, paths[layer])
        # It counts one layer too few, see findings/circuit_tracer_gemma_scope_2_clt_misses_its_last_layer.sh.
        paths[layers] = paths[layers - 1]
        theirs = load_gemma_scope_2_clt(paths, device=torch.device("cpu"), dtype=torch.float32)
        by_layer = x.transpose(0, 1)
        features = theirs.encode(by_layer)
        made = theirs.decode(features.to_sparse(), by_layer)
        ours = SAE.from_pretrained(path)
        yield "Gemma Scope 2", title, ours, x.flatten(1), _by_token(features), _by_token(made)


def _by_token(by_layer: Tensor) -> Tensor:
    return by_layer.transpose(0, 1).flatten(1)


def llamascopium(folder: Path, at: dict[str, Tensor]) -> Iterator[Case]:
    """Crosscoders, cross-layer transcoders, and BatchTopK at one place, saved and run with its own code."""
    from llamascopium.models.clt import CLTConfig, CrossLayerTranscoder
    from llamascopium.models.crosscoder import Crosscoder, CrosscoderConfig
    from llamascopium.models.sae import SAEConfig, SparseAutoEncoder

    layers, d_model = at["mlp_in"].shape[1:]
    hooks = {name: [f"blocks.{layer}.hook_{name}" for layer in range(layers)] for name in SIDES}
    common = {"d_model": d_model, "expansion_factor": EXPANSION, "top_k": K}
    over_layers = {"hook_points_in": hooks["resid_mid"], "hook_points_out": hooks["mlp_out"]}
    one = dict.fromkeys(("hook_point_in", "hook_point_out"), hooks["resid_post"][1])
    forms = {
        "crosscoder, relu": (Crosscoder, CrosscoderConfig, {"act_fn": "relu", "hook_points": hooks["resid_post"]}),
        "crosscoder, jumprelu": (
            *(Crosscoder, CrosscoderConfig),
            {"act_fn": "jumprelu", "hook_points": hooks["resid_post"]},
        ),
        "cross-layer transcoder, relu": (CrossLayerTranscoder, CLTConfig, {"act_fn": "relu", **over_layers}),
        "cross-layer transcoder, jumprelu": (CrossLayerTranscoder, CLTConfig, {"act_fn": "jumprelu", **over_layers}),
        "cross-layer transcoder, topk": (
            *(CrossLayerTranscoder, CLTConfig),
            {"act_fn": "topk", "sparsity_include_decoder_norm": False, **over_layers},
        ),
        "batchtopk": (SparseAutoEncoder, SAEConfig, {"act_fn": "batchtopk", **one}),
    }
    batch = {hook: at[SIDES[name]][:, layer] for name, own in hooks.items() for layer, hook in enumerate(own)}
    means = {hook: float(rows.norm(dim=1).mean()) for hook, rows in batch.items()}
    for seed, (title, (sae_class, config_class, options)) in enumerate(forms.items()):
        config = config_class(**common, **options)
        theirs = sae_class(config)
        scramble(theirs, torch.randn(2, d_model), seed)
        for name, tensor in theirs.state_dict().items():
            if tensor.ndim == 3:  # an axis of places
                tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(seed)) / d_model**0.5)
            if name.endswith("threshold"):
                tensor.copy_(0.2 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(seed)))
        if title == "batchtopk":
            theirs.set_decoder_to_fixed_norm(1.0, force_exact=True)
        theirs.set_dataset_average_activation_norm({hook: means[hook] for hook in config.associated_hook_points})
        path = folder / title.replace(" ", "_").replace(",", "")
        theirs.save_pretrained(path)
        theirs.cfg.save_hyperparameters(path)
        normal, scales = theirs.normalize_activations(batch, return_scale_factor=True)
        rows, encoder_options, decoder_options = theirs.prepare_input(normal)
        features = theirs.encode(rows, **encoder_options)
        made = theirs.decode(features, **decoder_options)
        out = torch.stack([scales[hook] for hook in config.hooks_out])[:, None]
        reads = torch.stack([batch[hook] for hook in config.hooks_in], 1).flatten(1)
        ours = SAE.from_pretrained(path, **({"threshold": 0} if title == "batchtopk" else {}))
        if title == "batchtopk":
            ours.calibrate(lambda reads=reads: [reads])
            made = made / out[0]
        else:
            made = (_of_tokens(made, layers) / out).flatten(1)
        # A ReLU opens at all places of a crosscoder together: hfsae then has one feature for them.
        features = features[:, 0] if title == "crosscoder, relu" else features.flatten(1)
        yield "Llamascopium", title, ours, reads, features, made


def _of_tokens(made: Tensor, layers: int) -> Tensor:
    """(tokens, layers, d) whichever axis of the first two comes first."""
    return made.transpose(0, 1) if made.shape[0] == layers else made


@torch.no_grad()
def compare(at: dict[str, Tensor]) -> Iterator[Row]:
    """All rows."""
    with tempfile.TemporaryDirectory() as scratch:
        for name, make in {"gemma": gemma_scope_2, "llamascopium": llamascopium}.items():
            for format, title, ours, x, features, made in make(Path(scratch) / name, at):
                assert 0 < float((features != 0).float().mean()) < 0.9, f"{format} {title}: a poor example"
                mine = ours.encode(x)
                others = int(((mine != 0) != (features != 0)).any(1).sum())
                errors = difference(mine, features), difference(ours(x).reconstruction, made)
                yield Row(format, title, "read", *errors, others)


def main() -> None:
    """Prints the table as Markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", default="examples/tiny_lm", help="language model (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=1024, help="tokens to compare on (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="file for the rows")
    args = parser.parse_args()
    rows = list(compare(activations(args.model, args.tokens)))
    versions = {name: version(name) for name in ("llamascopium", "circuit-tracer", "torch", "transformers")}
    if args.json:
        args.json.write_text(json.dumps({"versions": versions, "rows": [row._asdict() for row in rows]}, indent=2))
    print(f"{', '.join(f'{name} {number}' for name, number in versions.items())}\n")
    print("| format | architecture | direction | features | reconstructions | other features |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        errors = " | ".join("0" if error == 0 else f"{error:.1e}" for error in (row.features, row.reconstruction))
        print(f"| {row.format} | {row.architecture} | {row.direction} | {errors} | {row.ties} |")


if __name__ == "__main__":
    main()
