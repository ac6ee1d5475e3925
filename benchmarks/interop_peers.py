"""Compares what hfsae reads and writes with the projects themselves, on the activations of a real language model.

    pip install sae-lens eai-sparsify dictionary-learning      # an environment of its own, with hfsae and torch
    python benchmarks/interop_peers.py --model examples/tiny_lm --layer 1

Each project makes SAEs of its own architectures with random weights, saves them with its own code, and computes
features and reconstructions; hfsae loads the files and computes the same. Then the other way round: hfsae's SAEs are
written in their formats, loaded with their code and compared. Prints one row a format, architecture and direction: the
largest difference of any feature and of any element of a reconstruction, in units of the largest of each, and how many
tokens were left out because rounding decides there which features are active; `--json` keeps them.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from hfsae import SAE, export_sae
from hfsae.architectures import config_class_of
from hfsae.hooks import capture, resolve_hook_point

EXPANSION, K = 8, 16
# How near a pre-activation is to a threshold or to the next one, in units of the largest feature, to count as a tie.
TIE = 1e-6

Encode = Callable[[Tensor], Tensor]


class Row(NamedTuple):
    """One comparison: largest differences relative to the largest value."""

    format: str
    architecture: str
    direction: str
    features: float
    reconstruction: float
    ties: int


class Theirs(NamedTuple):
    """An SAE as its own project runs it."""

    path: Path
    features: Encode
    reconstruct: Encode


def activations(model: str, layer: int, tokens: int) -> Tensor:
    """(tokens, d_in) of the residual stream after a block."""
    tokenizer, lm = AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model)
    text = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    ids = tokenizer(text, return_tensors="pt").input_ids[0]
    context = min(128, getattr(lm.config, "max_position_embeddings", 128))
    blocks = ids[: len(ids) // context * context].reshape(-1, context)
    with torch.no_grad(), capture(lm, f"resid_post.{layer}") as read:
        place = str(resolve_hook_point(lm, f"resid_post.{layer}"))
        rows = [next(iter(read.run(input_ids=block[None]).values())).flatten(0, 1) for block in blocks]
    print(f"{place} of {model}", file=sys.stderr)
    return torch.cat(rows)[:tokens].float()


@torch.no_grad()
def scramble(module: nn.Module, x: Tensor, seed: int) -> None:
    """Random weights that make features of real activations: rows of about unit norm, biases to match."""
    generator = torch.Generator().manual_seed(seed)
    spread = x.std().item()
    for name, tensor in module.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator)
        if not tensor.is_floating_point() or name in ("input_scale", "output_scale"):
            continue
        if name.endswith("threshold"):
            tensor.copy_(spread * (1 + 0.2 * noise.tanh()))
        elif tensor.ndim == 2 and "skip" in name.lower():
            tensor.copy_(noise / tensor.shape[1])
        elif tensor.ndim == 2:
            tensor.copy_(noise / x.shape[1] ** 0.5)
        elif name == "r_mag" or name == "magnitude_log_scale":
            tensor.copy_(0.1 * noise)
        else:
            tensor.copy_(0.1 * spread * noise)


# -- theirs, read by hfsae --------------------------------------------------------------------------------------------
def sae_lens(folder: Path, x: Tensor) -> Iterator[tuple[str, Theirs]]:
    """Every architecture that SAELens saves for inference, and those it saves as JumpReLU after training."""
    from sae_lens.registry import get_sae_class
    from sae_lens.saes.sae import SAEMetadata

    d_in, n_features = x.shape[1], EXPANSION * x.shape[1]
    forms: dict[str, tuple[str, dict[str, Any]]] = {
        "standard": ("standard", {}),
        "standard, layer norm": ("standard", {"normalize_activations": "layer_norm"}),
        "topk": ("topk", {"k": K}),
        "topk by decoder norm": ("topk", {"k": K, "rescale_acts_by_decoder_norm": True}),
        "jumprelu": ("jumprelu", {}),
        "gated": ("gated", {}),
        "transcoder": ("transcoder", {"d_out": d_in, "apply_b_dec_to_input": False}),
        "skip transcoder": ("skip_transcoder", {"d_out": d_in, "apply_b_dec_to_input": False}),
        "jumprelu transcoder": ("jumprelu_transcoder", {"d_out": d_in, "apply_b_dec_to_input": False}),
    }
    for seed, (title, (architecture, options)) in enumerate(forms.items()):
        sae_class, config_class = get_sae_class(architecture)
        places = {"hook_name": "blocks.1.hook_resid_post"}
        if "transcoder" in architecture:
            places = {"hook_name": "blocks.1.mlp.hook_in", "hook_name_out": "blocks.1.hook_mlp_out"}
        metadata = SAEMetadata(model_name="gpt2-small", **places)
        config = config_class(d_in=d_in, d_sae=n_features, metadata=metadata, **options)
        sae = sae_class(config)
        scramble(sae, x, seed)
        path = folder / title.replace(" ", "_")
        sae.save_model(path)
        yield title, Theirs(path, sae.encode, sae)
    yield from _trained_by_sae_lens(folder, x)


def _trained_by_sae_lens(folder: Path, x: Tensor) -> Iterator[tuple[str, Theirs]]:
    """BatchTopK and Matryoshka: their trainers' SAEs, compared with what SAELens loads of what these save."""
    from sae_lens import SAE as LensSAE
    from sae_lens.registry import get_sae_training_class
    from sae_lens.saes.sae import SAEMetadata

    d_in, n_features = x.shape[1], EXPANSION * x.shape[1]
    nested = {"matryoshka_widths": [n_features // 4, n_features // 2, n_features]}
    forms: dict[str, tuple[str, dict[str, Any]]] = {
        "batchtopk": ("batchtopk", {}),
        "batchtopk, no decoder norm": ("batchtopk", {"rescale_acts_by_decoder_norm": False}),
        "matryoshka": ("matryoshka_batchtopk", nested),
    }
    for seed, (title, (architecture, options)) in enumerate(forms.items()):
        sae_class, config_class = get_sae_training_class(architecture)
        metadata = SAEMetadata(model_name="gpt2-small", hook_name="blocks.1.hook_resid_post")
        sae = sae_class(config_class(d_in=d_in, d_sae=n_features, k=K, metadata=metadata, **options))
        scramble(sae, x, seed)
        path = folder / title.replace(" ", "_")
        sae.save_inference_model(path)
        loaded = LensSAE.load_from_disk(path)
        yield title, Theirs(path, loaded.encode, loaded)
        # What its trainer keeps on the way is to compute the same.
        checkpoint = path.with_name(f"{path.name}_checkpoint")
        sae.save_model(checkpoint)
        yield f"{title}, checkpoint", Theirs(checkpoint, loaded.encode, loaded)


def sparsify(folder: Path, x: Tensor) -> Iterator[tuple[str, Theirs]]:
    """TopK, groupmax, and transcoders with a skip connection."""
    from sparsify import SparseCoder
    from sparsify.config import SparseCoderConfig

    forms = {
        "topk": {},
        "groupmax": {"activation": "groupmax"},
        "skip transcoder": {"transcode": True, "skip_connection": True},
    }
    for seed, (title, options) in enumerate(forms.items()):
        coder = SparseCoder(x.shape[1], SparseCoderConfig(expansion_factor=EXPANSION, k=K, **options))  # type: ignore[arg-type]
        scramble(coder, x, seed)
        path = folder / title.replace(" ", "_") / "layers.1.mlp"
        coder.save_to_disk(path)
        yield title, Theirs(path, lambda x, coder=coder: _dense(coder, x), lambda x, coder=coder: coder(x).sae_out)


def _dense(coder: Any, x: Tensor) -> Tensor:
    encoded = coder.encode(x)
    return torch.zeros_like(encoded.pre_acts).scatter(-1, encoded.top_indices, encoded.top_acts)


def dictionary_learning(folder: Path, x: Tensor) -> Iterator[tuple[str, Theirs]]:
    """All seven dictionary classes, saved as its training loop saves them."""
    from dictionary_learning.dictionary import AutoEncoder, AutoEncoderNew, GatedAutoEncoder, JumpReluAutoEncoder
    from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
    from dictionary_learning.trainers.top_k import AutoEncoderTopK

    d_in, n_features = x.shape[1], EXPANSION * x.shape[1]
    groups = [n_features // 4, n_features // 4, n_features // 2]
    made = [
        AutoEncoder(d_in, n_features),
        AutoEncoderNew(d_in, n_features),
        GatedAutoEncoder(d_in, n_features),
        JumpReluAutoEncoder(d_in, n_features),
        AutoEncoderTopK(d_in, n_features, K),
        BatchTopKSAE(d_in, n_features, K),
        MatryoshkaBatchTopKSAE(d_in, n_features, K, groups),
    ]
    for seed, dictionary in enumerate(made):
        name = type(dictionary).__name__
        scramble(dictionary, x, seed)
        path = folder / name
        path.mkdir()
        torch.save(dictionary.state_dict(), path / "ae.pt")
        trainer = {
            "dict_class": name,
            "lm_name": "EleutherAI/pythia-70m",
            "layer": 1,
            "submodule_name": "resid_post_layer_1",
        }
        (path / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"ctx_len": 128}}))
        yield name, Theirs(path, dictionary.encode, dictionary)


# -- ours, read by theirs ---------------------------------------------------------------------------------------------
def ours(architecture: str, x: Tensor, **options: Any) -> SAE:
    """One of our SAEs with random weights and an input scale that has to be folded in."""
    if architecture in ("topk", "batch_topk", "matryoshka"):
        options["k"] = K
    fields = {"base_model": "EleutherAI/pythia-70m", "hook_point": "gpt_neox.layers.1.output", **options}
    sae = SAE.from_config(config_class_of(architecture)(d_in=x.shape[1], expansion_factor=EXPANSION, **fields))
    scramble(sae, x, seed=17)
    sae.input_scale.fill_(0.7)
    if sae.config.is_transcoder:
        sae.output_scale.fill_(1.3)
    return sae.eval()


# Where a transcoder of ours leads from and to.
TRANSCODER = {"hook_point": "gpt_neox.layers.1.mlp.input", "target_hook_point": "gpt_neox.layers.1.mlp.output"}
SKIP = {"skip": True}


def read_by_sae_lens(folder: Path, x: Tensor) -> Iterator[tuple[str, SAE, Theirs]]:
    """All that it has a class for, loaded with SAELens."""
    from sae_lens import SAE as LensSAE

    forms = {name: (name, {}) for name in ("standard", "topk", "batch_topk", "matryoshka", "jumprelu", "gated")}
    for name in ("standard", "jumprelu", "batch_topk"):
        forms |= {f"{name} transcoder": (name, TRANSCODER), f"{name} skip transcoder": (name, TRANSCODER | SKIP)}
    for title, (architecture, options) in forms.items():
        sae = ours(architecture, x, **options)
        loaded = LensSAE.load_from_disk(export_sae(sae, folder / title.replace(" ", "_"), "saelens"))
        # TopK with rows of one norm goes out with unit rows: a feature is then as large as what it writes is long.
        rescaled = getattr(loaded.cfg, "rescale_acts_by_decoder_norm", False)
        unit = sae.feature_directions.norm(dim=1) if rescaled else torch.ones(())
        yield title, sae, Theirs(folder, lambda x, loaded=loaded, unit=unit: loaded.encode(x) / unit, loaded)


def read_by_sparsify(folder: Path, x: Tensor) -> Iterator[tuple[str, SAE, Theirs]]:
    """All that it holds, loaded with sparsify."""
    from sparsify import SparseCoder

    forms: dict[str, dict[str, Any]] = {
        "topk": {},
        "groupmax": {"activation": "groupmax"},
        "topk transcoder": TRANSCODER,
        "topk skip transcoder": TRANSCODER | SKIP,
    }
    for title, options in forms.items():
        sae = ours("topk", x, **options)
        coder = SparseCoder.load_from_disk(export_sae(sae, folder / title.replace(" ", "_"), "sparsify"))
        yield title, sae, Theirs(folder, lambda x, coder=coder: _dense(coder, x), lambda x, c=coder: c(x).sae_out)


def tied(sae: SAE, x: Tensor, theirs: Tensor) -> Tensor:
    """(tokens,) bool: where another feature is active, and a pre-activation all but equals what selects it."""
    features, pre = sae.encode(x), sae.pre_activations(x)
    if (threshold := getattr(sae, "threshold", None)) is not None:
        gap = (pre - threshold).abs().amin(1)
    elif (k := getattr(sae.config, "k", None)) is not None:
        last, next_one = pre.topk(k + 1).values[:, -2:].unbind(1)
        gap = last - next_one
    else:
        return torch.zeros(len(x), dtype=torch.bool)
    return ((features != 0) != (theirs != 0)).any(1) & (gap < TIE * features.max())


def difference(one: Tensor, other: Tensor) -> float:
    """The largest difference in units of the largest value."""
    return float((one - other).abs().max() / other.abs().max())


def row(name: str, architecture: str, direction: str, sae: SAE, theirs: Theirs, x: Tensor) -> Row:
    """The comparison of our SAE with theirs."""
    features = theirs.features(x)
    assert 0 < float((features != 0).float().mean()) < 0.9, f"{name} {architecture}: a poor example"
    ties = tied(sae, x, features)
    errors = (
        difference(sae.encode(x)[~ties], features[~ties]),
        difference(sae(x).reconstruction[~ties], theirs.reconstruct(x)[~ties]),
    )
    return Row(name, architecture, direction, *errors, int(ties.sum()))


@torch.no_grad()
def compare(x: Tensor) -> Iterator[Row]:
    """All rows."""
    with tempfile.TemporaryDirectory() as scratch:
        for name, make in {
            "SAELens": sae_lens,
            "sparsify": sparsify,
            "dictionary_learning": dictionary_learning,
        }.items():
            folder = Path(scratch) / name
            folder.mkdir()
            for architecture, theirs in make(folder, x):
                sae = SAE.from_pretrained(theirs.path, allow_pickle=True)
                yield row(name, architecture, "read", sae, theirs, x)
        for name, read in {"SAELens": read_by_sae_lens, "sparsify": read_by_sparsify}.items():
            for architecture, sae, theirs in read(Path(scratch) / f"our {name}", x):
                yield row(name, architecture, "written", sae, theirs, x)


def main() -> None:
    """Prints the table as Markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", default="examples/tiny_lm", help="language model (default: %(default)s)")
    parser.add_argument("--layer", type=int, default=1, help="after which block (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=1024, help="activations to compare on (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="file for the rows")
    args = parser.parse_args()
    x = activations(args.model, args.layer, args.tokens)
    rows = list(compare(x))
    packages = ("sae-lens", "eai-sparsify", "dictionary-learning", "torch", "transformers")
    versions = {package: version(package) for package in packages}
    if args.json:
        protocol = {"model": args.model, "layer": args.layer, "activations": list(x.shape), "versions": versions}
        args.json.write_text(json.dumps({"protocol": protocol, "rows": [one._asdict() for one in rows]}, indent=2))
    print(f"{len(x)} activations of size {x.shape[1]}; {', '.join(f'{name} {v}' for name, v in versions.items())}\n")
    print("| format | architecture | direction | features | reconstructions | ties |\n|---|---|---|---|---|---|")
    for one in rows:
        errors = " | ".join("0" if error == 0 else f"{error:.1e}" for error in (one.features, one.reconstruction))
        print(f"| {one.format} | {one.architecture} | {one.direction} | {errors} | {one.ties} |")


if __name__ == "__main__":
    main()
