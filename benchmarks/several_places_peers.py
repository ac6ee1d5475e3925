"""Compares crosscoders and cross-layer transcoders, as hfsae reads and writes them, with other projects' own code.

    pip install llamascopium==2.0.0b34 circuit-tracer==0.5.0 "transformer-lens<4"   # in an environment with hfsae
    python benchmarks/several_places_peers.py --model examples/tiny_lm

Each project's classes get random weights, and save them with the project's own code where it has some. They compute
features and reconstructions from activations of a real language model at all layers, and hfsae does so from the files.
Then hfsae writes files of its own, and their code loads them. Prints one row a format, architecture and direction.
Differences are as `benchmarks/interop_peers.py` has them. The last column counts tokens whose active features differ;
no token is left out.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(Path(__file__).parent))
from interop_peers import EXPANSION, K, Row, difference, scramble

from hfsae import SAE, export_sae
from hfsae.architectures import config_class_of
from hfsae.hooks import capture, resolve_hook_point
from hfsae.interop.foreign_names import canonical

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
        yield "Gemma Scope 2", title, SAE.from_pretrained(path), x.flatten(1), *_by_circuit_tracer(theirs, x)


def gemma_scope_2_written(folder: Path, at: dict[str, Tensor]) -> Iterator[Case]:
    """Cross-layer transcoders of hfsae's in Gemma Scope 2's files, by circuit-tracer's loader of this format."""
    from circuit_tracer.transcoder.cross_layer_transcoder import load_gemma_scope_2_clt

    for title, options in {
        "jumprelu_cross_layer_transcoder": {},
        "jumprelu_cross_layer_transcoder, skip": {"skip": True},
        "cross_layer_transcoder, tied": {"tied_decoder": True},
    }.items():
        ours = of_all_layers(title.split(",")[0], at, **options)
        path = export_sae(ours, folder / title.replace(", ", "_"), "gemma-scope-2")
        paths = {layer: str(path / f"params_layer_{layer}.safetensors") for layer in range(ours.config.n_layers)}
        paths[len(paths)] = paths[len(paths) - 1]  # as above
        theirs = load_gemma_scope_2_clt(paths, device=torch.device("cpu"), dtype=torch.float32)
        x = at["mlp_in"]
        yield "Gemma Scope 2", title, ours, x.flatten(1), *_by_circuit_tracer(theirs, x)


def _by_circuit_tracer(theirs: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Features and reconstructions of its cross-layer transcoder, by token."""
    by_layer = x.transpose(0, 1)
    features = theirs.encode(by_layer)
    return _by_token(features), _by_token(theirs.decode(features.to_sparse(), by_layer))


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
        features, made = _by_llamascopium(theirs, batch)
        reads = torch.stack([batch[hook] for hook in config.hooks_in], 1).flatten(1)
        ours = SAE.from_pretrained(path, **({"threshold": 0} if title == "batchtopk" else {}))
        if title == "batchtopk":
            ours.calibrate(lambda reads=reads: [reads])
        # A ReLU opens at all places of a crosscoder together: hfsae then has one feature for them.
        features = features[:, 0] if title == "crosscoder, relu" else features.flatten(1)
        yield "Llamascopium", title, ours, reads, features, made


def llamascopium_written(folder: Path, at: dict[str, Tensor]) -> Iterator[Case]:
    """SAEs, transcoders, crosscoders and cross-layer transcoders of hfsae's, loaded and run with its own code."""
    from llamascopium.models.sparse_dictionary import SparseDictionary

    layers = at["resid_post"].shape[1]
    batch = {LENS[kind].format(layer): at[kind][:, layer] for kind in at for layer in range(layers)}
    one, mlp = {"hook_point": "resid_post.1"}, {"hook_point": "mlp_in.1", "target_hook_point": "mlp_out.1"}
    forms = {
        name: of_one_place(name, at, **one) for name in ("standard", "topk", "jumprelu", "batch_topk", "matryoshka")
    }
    forms |= {f"{name} transcoder": of_one_place(name, at, **mlp) for name in ("standard", "topk", "jumprelu")}
    for name in ("standard_crosscoder", "jumprelu_crosscoder", "crosscoder"):
        forms[name] = of_all_layers(name, at)
    for name in ("topk_cross_layer_transcoder", "jumprelu_cross_layer_transcoder", "cross_layer_transcoder"):
        forms |= {name: of_all_layers(name, at), f"{name}, tied": of_all_layers(name, at, tied_decoder=True)}
    forms["batch_topk, as batchtopk"] = forms["batch_topk"]
    for title, ours in forms.items():
        options = {"as_batchtopk": True} if title.endswith("as batchtopk") else {}
        path = export_sae(ours, folder / title.replace(" ", "_").replace(",", ""), "llamascopium", **options)
        theirs = SparseDictionary.from_pretrained(str(path))
        features, made = _by_llamascopium(theirs, batch)
        reads = torch.stack([batch[hook] for hook in theirs.cfg.hooks_in], 1).flatten(1)
        if options:  # its budget is of the batch
            ours = SAE.from_pretrained(path, threshold=0)
            ours.calibrate(lambda reads=reads: [reads])
        if ours.config.is_crosscoder:  # a copy of each feature for each place, unless all places open together
            n = ours.config.n_features
            apart = features.unflatten(-1, (-1, n))
            own = [apart[:, place, place if apart.shape[2] > 1 else 0] for place in range(layers)]
            assert all(difference(copies, own[0]) < 1e-5 for copies in own)
            features = own[0]
        yield "Llamascopium", title, ours, reads, features.flatten(1), made


def _by_llamascopium(theirs: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Features as it has them, and reconstructions (tokens, d of all places) in the unit of activations."""
    normal, scales = theirs.normalize_activations(batch, return_scale_factor=True)
    rows, encoder_options, decoder_options = theirs.prepare_input(normal)
    features = theirs.encode(rows, **encoder_options)
    made = theirs.decode(features, **decoder_options)
    places = theirs.cfg.hooks_out
    if made.dim() == 2:
        return features, made / scales[places[0]]
    return features, (_of_tokens(made, len(places)) / torch.stack([scales[hook] for hook in places])[:, None]).flatten(
        1
    )


# -- hfsae's, with random weights -------------------------------------------------------------------------------------
LENS = {
    "mlp_in": "blocks.{}.mlp.hook_in",
    "mlp_out": "blocks.{}.hook_mlp_out",
    "resid_post": "blocks.{}.hook_resid_post",
}
"""What TransformerLens calls the places."""


def of_one_place(architecture: str, at: dict[str, Tensor], **places: str) -> SAE:
    """An SAE or transcoder of layer 1 with scales."""
    width, layer = at["mlp_in"].shape[2], at[places["hook_point"].split(".")[0]][:, 1]
    return _random(architecture, layer, d_in=width, n_features=EXPANSION * width, **_canonical(places))


def of_all_layers(architecture: str, at: dict[str, Tensor], **options: Any) -> SAE:
    """A crosscoder or cross-layer transcoder of all layers with scales."""
    layers, width = at["mlp_in"].shape[1:]
    kinds = (
        {"hook_point": "resid_post"}
        if "crosscoder" in architecture
        else {"hook_point": "mlp_in", "target_hook_point": "mlp_out"}
    )
    places = {side: "+".join(f"{kind}.{layer}" for layer in range(layers)) for side, kind in kinds.items()}
    sizes = {"source_names": [str(layer) for layer in range(layers)], "source_widths": [width] * layers}
    many = 1 if "crosscoder" in architecture else layers
    options |= {"n_features": many * EXPANSION * width, **sizes, **_canonical(places)}
    return _random(architecture, at[kinds["hook_point"]][:, 1], **options)


def _canonical(places: dict[str, str]) -> dict[str, str]:
    return {
        side: "+".join(str(canonical(place, "openai-community/gpt2")) for place in joined.split("+"))
        for side, joined in places.items()
    }


@torch.no_grad()
def _random(architecture: str, x: Tensor, **fields: Any) -> SAE:
    config_class = config_class_of(architecture)
    if hasattr(config_class, "k"):
        fields["k"] = K
    sae = SAE.from_config(config_class(base_model="openai-community/gpt2", **fields))
    scramble(sae, x, seed=17)
    for name, scale in (("input_scale", 0.7), ("output_scale", 1.3)):
        if (tensor := getattr(sae, name, None)) is not None:
            tensor.copy_(scale + 0.1 * torch.arange(tensor.numel()).view(tensor.shape))
    return sae.eval()


def _of_tokens(made: Tensor, layers: int) -> Tensor:
    """(tokens, layers, d) whichever axis of the first two comes first."""
    return made.transpose(0, 1) if made.shape[0] == layers else made


@torch.no_grad()
def compare(at: dict[str, Tensor]) -> Iterator[Row]:
    """All rows."""
    with tempfile.TemporaryDirectory() as scratch:
        for name, make in {
            "gemma": gemma_scope_2,
            "llamascopium": llamascopium,
            "gemma written": gemma_scope_2_written,
            "llamascopium written": llamascopium_written,
        }.items():
            for format, title, ours, x, features, made in make(Path(scratch) / name, at):
                direction = "written" if name.endswith("written") else "read"
                assert 0 < float((features != 0).float().mean()) < 0.9, f"{format} {title}: a poor example"
                mine = ours.encode(x)
                others = int(((mine != 0) != (features != 0)).any(1).sum())
                errors = difference(mine, features), difference(ours(x).reconstruction, made)
                yield Row(format, title, direction, *errors, others)


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
