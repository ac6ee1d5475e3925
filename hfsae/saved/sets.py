"""Sets of SAEs that stand in a model together: loading one from its folder, and measuring it again."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfsae.attach import places_of
from hfsae.evaluation.evaluate import evaluate_saes
from hfsae.evaluation.saved_set import SET_FILE, read_set, set_names
from hfsae.evaluation.together import evaluate_together
from hfsae.language_model import rename_base_model
from hfsae.modeling import SAE
from hfsae.saved.measuring_again import blocks_of, calibration_of, text_to_measure
from hfsae.saving import write_config, write_json

_DEFAULT_TOKENS = 200_000


def load_set(folder: str | Path) -> tuple[dict[str, Any], dict[str, SAE]]:
    """The record of the set in a folder, and its SAEs by name.

    Raises:
        ValueError: If the folder holds no set.
        OSError: If an SAE of the set is not there.
    """
    record = read_set(Path(folder) / SET_FILE)
    if record is None:
        raise ValueError(f"{folder} holds no set: there is no {SET_FILE}, which training writes.")
    return record, {name: SAE.from_pretrained(folder, subfolder=name) for name in set_names(record)}


@dataclass(frozen=True)
class SetMeasuredAgain:
    """What was measured anew.

    Args:
        together: The figures of the whole set, as `evaluate_together` gives them.
        metrics: Those of each SAE, as `evaluate_saes` gives them.
        same_text: Whether it was the recorded text, as much of it, with the same tokens, in the recorded model.
    """

    together: dict[str, Any]
    metrics: dict[str, dict[str, Any]]
    same_text: bool


def measure_set_again(
    record: Mapping[str, Any],
    saes: Mapping[str, SAE],
    called: str,
    *,
    model: str | None = None,
    dataset: str | None = None,
    dataset_config: str | None = None,
    split: str | None = None,
    max_tokens: int | None = None,
    batch_size: int = 16,
) -> SetMeasuredAgain:
    """Measures a set and each of its SAEs, on the text that its record names or on another.

    Args:
        record: Of the set.
        saes: Its SAEs by name.
        called: What error messages call it.
        model: The language model; None loads the one that the configs name.
        dataset: The text; None for the recorded one.
        dataset_config: Configuration of that dataset.
        split: Split of that dataset.
        max_tokens: Tokens to measure on; None for as many as were recorded.
        batch_size: Blocks of text per pass.

    Raises:
        ValueError: If no text is named and none was recorded.
        OSError: If the model or the text is not there.
    """
    first = next(iter(saes.values()))
    config = copy.copy(first.config)
    config.metrics = dict(record)
    text = text_to_measure(config, called, dataset, dataset_config, split)
    tokens = max_tokens or text.max_tokens or _DEFAULT_TOKENS
    if model is not None:
        rename_base_model(first.config, model)
    lm = first.load_base_model()
    places_of(saes, lm, splice=True)  # each may fit, and all together not
    blocks = blocks_of(first, text.source, batch_size)
    options: dict[str, Any] = {
        "max_tokens": tokens,
        "calibration": calibration_of(list(saes.values()), lm, text, batch_size),
        "protocol": text.protocol(tokens),
    }
    tokenizer = first.load_tokenizer()
    metrics = evaluate_saes(saes, lm, blocks, tokenizer, **options)
    together = evaluate_together(saes, lm, blocks, tokenizer, **options)
    recorded = record["protocol"].get("tokens_sha256")
    same = recorded is None or recorded == together["protocol"]["tokens_sha256"]
    same &= dataset is None and model is None and together["n_tokens"] == record["n_tokens"]
    return SetMeasuredAgain(together, metrics, same)


def write_set(folder: str | Path, saes: Mapping[str, SAE], again: SetMeasuredAgain) -> None:
    """Makes what was measured the record of a set and of each of its SAEs."""
    for name, sae in saes.items():
        sae.config.metrics = again.metrics[name]
        write_config(sae.config, Path(folder) / name)
        write_json(Path(folder) / name / "metrics.json", again.metrics[name])
    write_json(Path(folder) / SET_FILE, again.together)
