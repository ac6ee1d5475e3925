"""Makes `hfsae/interop/catalogue.json`, the table of well-known published SAEs, from facts with their sources.

    pip install --no-deps sae-lens pyyaml
    python benchmarks/make_catalogue.py

Most facts are in the list of releases that SAELens ships (`sae_lens/pretrained_saes.yaml`, MIT licence): repository,
base model, loader, and which id means which path. Long lists of ids and paths become patterns wherever one does; ids
that no pattern covers stay as they are. Further releases and licences are written below with where they were read.
What a format's reader knows of all its SAEs (context length, BOS, special tokens) stands there, with the source.
"""

import importlib.util
import json
import re
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from hfsae.interop.foreign_names import base_model_id

OUT = Path(__file__).parent.parent / "hfsae" / "interop" / "catalogue.json"

# SAELens' loaders: the format here, and the architecture where all its SAEs share one. Others have none here.
LOADERS: dict[str | None, tuple[str, str | None]] = {
    None: ("SAELens", None),
    "gemma_2": ("Gemma Scope", "jumprelu"),
    "gemma_2_transcoder": ("Gemma Scope", "jumprelu"),
    "gemma_3": ("Gemma Scope 2", "jumprelu"),
    "llama_scope": ("Llama Scope", "jumprelu"),
    "llama_scope_r1_distill": ("Llama Scope R1", "jumprelu"),
    "dictionary_learning_1": ("dictionary_learning", None),
    "goodfire": ("Goodfire", "standard"),
    "deepseek_r1": ("linear layers", "standard"),
    "qwen_scope": ("Qwen Scope", "topk"),
    "mwhanna_transcoder": ("Qwen3 transcoders", "standard"),
}
# What the places of a release are called in its name, ids, paths or loader; the first that fits.
ROLES = (
    (r"transcoder", ["mlp_in", "mlp_out"]),
    (r"hook_z|scope.*[-_](att|attn_out)\b|attn_out(_all)?/", ["attn_z"]),
    (r"lxa|hook_attn_out|l\d+a_", ["attn_out"]),
    (r"lxm|hook_mlp_out|scope.*-mlp|mlp_out(_all)?/", ["mlp_out"]),
    (r"hook_resid_mid", ["resid_mid"]),
    (r"hook_resid_pre", ["resid_pre"]),
    (r"resid|res\b|-res-|lxr|r1_distill|goodfire|qwen_scope", ["resid_post"]),
)
# The licence that the Hub shows, by repository or the beginning of several names; which were looked at stands behind.
LICENCES = {
    "google/gemma-scope-2b-pt-": "cc-by-4.0",  # google/gemma-scope-2b-pt-res, -att, -mlp, -transcoders
    "google/gemma-scope-9b-pt-res": "cc-by-4.0",  # itself, as do the next ones
    "google/gemma-scope-9b-pt-att": "cc-by-4.0",
    "google/gemma-scope-27b-pt-res": "cc-by-4.0",
    "fnlp/Llama3_1-8B-Base-": "apache-2.0",  # fnlp/Llama-Scope
    "fnlp/Llama-Scope-R1-Distill": "apache-2.0",
    "EleutherAI/sae-llama-3-8b-32x": "mit",
    "EleutherAI/sae-llama-3.1-8b-": "mit",  # EleutherAI/sae-llama-3.1-8b-64x, -32x
    "Goodfire/Llama-3.1-8B-Instruct-SAE-l19": "llama3.1",
    "Goodfire/Llama-3.3-70B-Instruct-SAE-l50": "llama3.3",
    "jbloom/GPT2-Small-SAEs-Reformatted": "mit",
    "jbloom/GPT2-Small-OAI-v5-32k-resid-post-SAEs": "mit",
    "mwhanna/qwen3-4b-transcoders": "mit",
    "mwhanna/qwen3-14b-transcoders": "mit",
}
# What SAELens' list has not: name, repository, base model, and where it was read.
SPARSIFY = "https://pypi.org/project/eai-sparsify/"
HUB = "https://huggingface.co/"
FURTHER = (
    ("EleutherAI/sae-llama-3-8b-32x", "meta-llama/Meta-Llama-3-8B", ["resid_post"], SPARSIFY),
    (
        "EleutherAI/sae-llama-3.1-8b-32x",
        "meta-llama/Llama-3.1-8B",
        ["mlp_out"],
        HUB + "EleutherAI/sae-llama-3.1-8b-32x",
    ),
    (
        "EleutherAI/sae-llama-3.1-8b-64x",
        "meta-llama/Llama-3.1-8B",
        ["mlp_out"],
        HUB + "EleutherAI/sae-llama-3.1-8b-64x",
    ),
)
TRACER = "circuit-tracer 0.5.0, its page on PyPI"
SCOPE_2 = "https://www.lesswrong.com/posts/YQro5LyYjDzZrBCdb/announcing-gemma-scope-2, and code that loads the folders"
ONE_A_LAYER = [["layer_{0}", "layer_{0}.safetensors"]]
# The layers of crosscoders, as their folders name them.
CROSSCODERS = {"1b-pt": "7_13_17_22", "1b-it": "7_13_17_22", "27b-it": "16_31_40_53"}
# What stands at several places, and sets that SAELens' list has not: name, repository, base model, format, places.
SETS: tuple[tuple[str, str, str, str, list[str], dict[str, Any]], ...] = (
    *(
        (
            repo.replace("/", "-").lower(),
            *(repo, base_model, "circuit-tracer", [reads, "mlp_out"]),
            {"source": TRACER, **more},
        )
        for repo, base_model, reads, more in (
            ("mntss/clt-gemma-2-2b-426k", "google/gemma-2-2b", "resid_mid", {}),
            ("mntss/clt-gemma-2-2b-2.5M", "google/gemma-2-2b", "resid_mid", {}),
            ("mntss/clt-llama-3.2-1b-524k", "meta-llama/Llama-3.2-1B", "resid_mid", {}),
            ("mntss/clt-131k", "openai/gpt-oss-20b", "mlp_in", {}),
            ("mntss/transcoder-Llama-3.2-1B", "meta-llama/Llama-3.2-1B", "resid_mid", {"patterns": ONE_A_LAYER}),
            (
                *("facebook/crv-8b-instruct-transcoders", "meta-llama/Llama-3.1-8B-Instruct", "mlp_in"),
                {
                    "patterns": ONE_A_LAYER,
                    "architecture": "topk",
                    "source": "circuit-tracer's README on GitHub, after 0.5.0",
                },
            ),
        )
    ),
    (
        "llama-scope-2-qwen3-1.7b-transcoders",
        *("OpenMOSS-Team/Llama-Scope-2-Qwen3-1.7B", "Qwen/Qwen3-1.7B", "Llamascopium", ["mlp_in", "mlp_out"]),
        {
            "patterns": [["layer{0}_transcoder_{1}x_k{2}", "transcoder/{1}x/k{2}/layer{0}_transcoder_{1}x_k{2}"]],
            "source": HUB + "OpenMOSS-Team/Llama-Scope-2-Qwen3-1.7B",
        },
    ),
    *(
        (
            f"gemma-scope-2-{model}-clt",
            *(f"google/gemma-scope-2-{model}", f"google/gemma-3-{model}".replace("270m-pt", "270m")),
            *("Gemma Scope 2, several layers", ["mlp_in", "mlp_out"]),
            {
                "patterns": [
                    [f"width_{{0}}k_l0_{form}", f"clt/width_{{0}}k_l0_{form}"]
                    for form in ("medium", "big", "medium_affine", "big_affine")
                ],
                "architecture": "jumprelu_cross_layer_transcoder",
                "source": SCOPE_2,
            },
        )
        for model in ("270m-pt", "270m-it", "1b-pt", "1b-it")
    ),
    *(
        (
            f"gemma-scope-2-{model}-crosscoder",
            *(f"google/gemma-scope-2-{model}", f"google/gemma-3-{model}"),
            *("Gemma Scope 2, several layers", ["resid_post"]),
            {
                "patterns": [
                    [f"width_{{0}}k_l0_{size}", f"crosscoder/layer_{layers}_width_{{0}}k_l0_{size}"]
                    for size in ("medium", "big")
                ],
                "architecture": "jumprelu_crosscoder",
                "source": SCOPE_2,
            },
        )
        for model, layers in CROSSCODERS.items()
    ),
)
OPENAI = {
    "name": "openai-gpt2-small-v5",
    "repo": None,
    "base_model": "openai-community/gpt2",
    "format": "OpenAI",
    "architecture": "topk",
    "places": ["resid_post", "resid_mid", "attn_out", "mlp_out", "mlp_act"],
    "n_saes": None,
    "licence": None,
    "source": "https://github.com/openai/sparse_autoencoder",
    "tried": False,
}


def main() -> None:
    """Reads what is installed and writes the table."""
    package = importlib.util.find_spec("sae_lens")
    assert package is not None and package.submodule_search_locations
    listed = yaml.safe_load((Path(package.submodule_search_locations[0]) / "pretrained_saes.yaml").read_text())
    source = f"sae-lens {version('sae-lens')}, pretrained_saes.yaml"
    releases = [made for name, said in listed.items() if (made := release(name, said, source))]
    releases += [further(*facts) for facts in FURTHER] + [of_set(*facts) for facts in SETS] + [OPENAI]
    lines = ",\n".join(
        json.dumps(release, ensure_ascii=False) for release in sorted(releases, key=lambda r: r["name"])
    )
    OUT.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    print(f"{len(releases)} releases, {OUT.stat().st_size / 1e3:.0f} kB")


def spelled(base_model: str | None) -> str | None:
    """The id as its owner spells it: `Qwen/Qwen3-0.6B`, which the list writes in small letters."""
    return base_model and re.sub(r"Qwen/qwen3-([\d.]+)b$", r"Qwen/Qwen3-\1B", base_model)


def release(name: str, said: dict[str, Any], source: str) -> dict[str, Any] | None:
    """What SAELens says of a release; None where hfsae does not read its format."""
    loader = said.get("conversion_func")
    if loader not in LOADERS:
        return None
    kind, architecture = LOADERS[loader]
    saes = [(str(sae["id"]), str(sae["path"])) for sae in said["saes"]]
    patterns, explicit = shortened(saes)
    told = " ".join([str(loader), name, *saes[0]])
    entry = {
        "name": name,
        "repo": said["repo_id"],
        "base_model": spelled(base_model_id(said["model"])),
        "format": kind,
        "architecture": architecture,
        "places": next((roles for pattern, roles in ROLES if re.search(pattern, told)), []),
        "n_saes": len(saes),
        "patterns": patterns,
        "licence": licence(said["repo_id"]),
        "source": source,
        "tried": False,
    }
    if explicit:
        entry["ids"] = explicit
    overrides = said.get("config_overrides") or {}
    if (overrides.get("model_from_pretrained_kwargs") or {}).get("center_writing_weights"):
        entry["input_transform"] = "center"
    if overrides.get("normalize_activations") == "constant_norm_rescale":
        entry["input_transform"] = "constant_norm"
    if kind in ("SAELens", "Llama Scope R1"):
        scales = {str(s["path"]): s["norm_scaling_factor"] for s in said["saes"] if s.get("norm_scaling_factor")}
        if scales:
            entry["input_scales"] = scales
    return entry


def licence(repo: str) -> str | None:
    """What is known of a repository's licence."""
    named = (name for name in LICENCES if repo == name or (name.endswith("-") and repo.startswith(name)))
    return next((LICENCES[name] for name in named), None)


def shortened(saes: list[tuple[str, str]]) -> tuple[list[list[str]], dict[str, str]]:
    """Patterns of id and path, `{0}` standing for the id's first number, and the pairs that none covers."""
    groups: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    for pair in saes:
        groups[re.sub(r"\d+", "#", pair[0]), re.sub(r"\d+", "#", pair[1])].append(pair)
    patterns, explicit = [], {}
    for (id_text, path_text), pairs in groups.items():
        numbers = [(re.findall(r"\d+", sae_id), re.findall(r"\d+", path)) for sae_id, path in pairs]
        path_pattern = path_text.replace("{", "{{").replace("}", "}}")
        for position in range(path_text.count("#")):
            same = [i for i in range(id_text.count("#")) if all(ids[i] == path[position] for ids, path in numbers)]
            constant = {path[position] for _, path in numbers}
            if same:
                path_pattern = path_pattern.replace("#", f"{{{same[0]}}}", 1)
            elif len(constant) == 1:
                path_pattern = path_pattern.replace("#", constant.pop(), 1)
            else:
                explicit |= dict(pairs)
                break
        else:
            counter = iter(range(id_text.count("#")))
            patterns.append([re.sub("#", lambda _, c=counter: f"{{{next(c)}}}", id_text), path_pattern])
    return patterns, explicit


def further(repo: str, base_model: str, places: list[str], source: str) -> dict[str, Any]:
    """A release of sparsify's, whose folders are called after modules."""
    return {
        "name": repo.split("/")[1],
        "repo": repo,
        "base_model": base_model,
        "format": "sparsify",
        "architecture": "topk",
        "places": places,
        "n_saes": None,
        "licence": licence(repo),
        "source": source,
        "tried": False,
    }


def of_set(
    name: str, repo: str, base_model: str, format: str, places: list[str], more: dict[str, Any]
) -> dict[str, Any]:
    """A release of `SETS`."""
    unknown = {"architecture": None, "n_saes": None, "licence": licence(repo), "tried": False}
    facts = {"name": name, "repo": repo, "base_model": base_model, "format": format, "places": places}
    return {**facts, **unknown, **more}


if __name__ == "__main__":
    main()
