"""The metadata on top of a README.md: what the Hub refuses in it, and the tags it derives from it.

The rules follow https://huggingface.co/docs/hub/model-cards and the metadata template of `huggingface_hub`
(`modelcard.md`); they approximate the Hub's own validator, which is not public.
"""

import re
from typing import Any

import yaml

FRONT_MATTER = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)^---[ \t]*$", re.DOTALL | re.MULTILINE)
REPO_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
BASE_MODEL_RELATIONS = ("adapter", "finetune", "merge", "quantized")
LICENSES = frozenset(  # https://huggingface.co/docs/hub/repositories-licenses
    """
    afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
    bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
    cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0
    etalab-2.0 eupl-1.1 eupl-1.2 gemma gfdl gpl gpl-2.0 gpl-3.0 h-research intel-research isc lgpl lgpl-2.1 lgpl-3.0
    lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1
    open-mdw openrail openrail++ osl-3.0 other pddl postgresql unknown unlicense wtfpl zlib
    """.split()
)


class InvalidCard(ValueError):
    """Metadata that is not YAML, or not a mapping."""


def metadata(card: str) -> dict[str, Any]:
    """The front matter of a card; empty if it has none.

    Raises:
        InvalidCard: If it is not plain YAML (a pickled object is not), or not a mapping.
    """
    match = FRONT_MATTER.match(card)
    if match is None:
        return {}
    try:
        loaded = yaml.safe_load(match[1])
    except yaml.YAMLError as error:
        raise InvalidCard(f"YAML Metadata Error: {error}") from error
    if not isinstance(loaded, dict | None):
        raise InvalidCard("YAML Metadata Error: the metadata must be a mapping")
    return loaded or {}


def as_list(value: Any) -> list[Any]:
    """A metadata value that may be one thing or a list of things, as a list."""
    return [] if value is None else value if isinstance(value, list) else [value]


def problems(card: str) -> list[str]:
    """What the Hub would refuse in this card, one sentence each; empty if it is fine."""
    try:
        data = metadata(card)
    except InvalidCard as error:
        return [str(error)]
    found = []
    for key in ("tags", "base_model", "datasets", "language", "metrics"):
        found += [f'"{key}" must hold strings, not {v!r}' for v in as_list(data.get(key)) if not isinstance(v, str)]
    for key in ("license", "library_name", "pipeline_tag"):
        if not isinstance(data.get(key), str | list | None):
            found.append(f'"{key}" must be a string')
    found += [
        f'"license" {name!r} is not a known license' for name in as_list(data.get("license")) if name not in LICENSES
    ]
    for key, page in (("base_model", "models"), ("datasets", "datasets")):
        for name in as_list(data.get(key)):
            if isinstance(name, str) and not REPO_ID.fullmatch(name):
                found.append(f'"{key}" with value "{name}" is not valid. Use an id from https://hf.co/{page}')
    if data.get("base_model_relation", "adapter") not in BASE_MODEL_RELATIONS:
        found.append(f'"base_model_relation" must be one of {", ".join(BASE_MODEL_RELATIONS)}')
    return found + model_index_problems(data.get("model-index"))


def model_index_problems(index: Any) -> list[str]:
    """What is missing in a `model-index`, the list of evaluation results."""
    if index is None:
        return []
    if not isinstance(index, list):
        return ['"model-index" must be an array']
    found = []
    for i, model in enumerate(index):
        if not model.get("name"):
            found.append(f'"model-index[{i}].name" is required')
        for j, result in enumerate(model.get("results") or []):
            place = f"model-index[{i}].results[{j}]"
            for section, key in (("task", "type"), ("dataset", "type"), ("dataset", "name")):
                if not isinstance((result.get(section) or {}).get(key), str):
                    found.append(f'"{place}.{section}.{key}" is required')
            for k, metric in enumerate(result.get("metrics") or []):
                found += [
                    f'"{place}.metrics[{k}].{key}" is required' for key in ("type", "value") if key not in metric
                ]
    return found


def tags(data: dict[str, Any]) -> list[str]:
    """The tags by which a model with this metadata is found: `hub.list_models(filter=...)`."""
    found = [data.get("library_name"), data.get("pipeline_tag"), *as_list(data.get("tags"))]
    found += as_list(data.get("language"))
    found += [f"dataset:{name}" for name in as_list(data.get("datasets"))]
    for name in as_list(data.get("base_model")):
        found += [f"base_model:{name}", f"base_model:{data.get('base_model_relation', 'finetune')}:{name}"]
    found += [f"license:{name}" for name in as_list(data.get("license"))]
    return list(dict.fromkeys(tag for tag in found if tag))
