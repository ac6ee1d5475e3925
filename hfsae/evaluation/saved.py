"""Measuring an SAE from its saved folder alone: on the text its metrics name, or on another."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from hfsae.attach import hook_points_of
from hfsae.configuration import SAEConfig
from hfsae.data import TokenBlocks, document_column, load_text, split_documents
from hfsae.evaluation.calibration import Calibration, read_rows
from hfsae.evaluation.evaluate import evaluate_sae
from hfsae.evaluation.text import take
from hfsae.loading import holds_config
from hfsae.modeling import SAE
from hfsae.saving import write_config, write_json


def evaluate_saved(
    folder: str | Path,
    *,
    model: str | None = None,
    dataset: str | None = None,
    dataset_config: str | None = None,
    split: str = "test",
    max_tokens: int | None = None,
    batch_size: int = 16,
    baselines: bool = False,
    write: bool = True,
) -> dict[str, Any]:
    """Loads an SAE and its language model and measures the one in the other.

    Args:
        folder: What training saved.
        model: The language model; None loads the one that the config names.
        dataset: The text; None measures on the text that the recorded metrics were measured on, as it was then.
        dataset_config: Configuration of that dataset.
        split: Split of that dataset.
        max_tokens: Tokens to measure on; None: as many as were recorded, or 200,000.
        batch_size: Blocks of text per pass.
        baselines: Whether the untrained SAE and PCA are measured too.
        write: Whether the metrics are written into the folder (config.json and metrics.json).

    Returns:
        The metrics, as `evaluate_saes` describes them.

    Raises:
        ValueError: If no text is named and none was recorded, or `write` would put metrics into a folder in another
            project's format.
        OSError: If the folder, the model or the text is not there.

    Example:
        >>> evaluate_saved("runs/tiny")["loss_recovered"]  # doctest: +SKIP
        0.9637
    """
    if write and not holds_config(folder, {}):
        raise ValueError(f"{folder} is in another project's format, which holds no metrics: convert it first.")
    sae = SAE.from_pretrained(folder)
    again = measure_again(
        sae,
        str(folder),
        model=model,
        dataset=dataset,
        dataset_config=dataset_config,
        split=split,
        max_tokens=max_tokens,
        batch_size=batch_size,
        baselines=baselines,
    )
    if write:
        _write(sae, Path(folder), again.metrics)
    return again.metrics


@dataclass(frozen=True)
class MeasuredAgain:
    """What came out, and what it was measured with.

    Args:
        metrics: As `evaluate_saes` describes them.
        model: The language model.
        blocks: The text.
    """

    metrics: dict[str, Any]
    model: PreTrainedModel
    blocks: TokenBlocks


def measure_again(
    sae: SAE,
    called: str,
    *,
    model: str | None = None,
    dataset: str | None = None,
    dataset_config: str | None = None,
    split: str = "test",
    max_tokens: int | None = None,
    batch_size: int = 16,
    baselines: bool = False,
) -> MeasuredAgain:
    """Measures an SAE on the text that its metrics name, or on another; see `evaluate_saved`.

    Args:
        sae: The SAE; with a `model` its config then names that one.
        called: What error messages call it.
    """
    source = text_source(sae.config, called, dataset, dataset_config, split)
    max_tokens = max_tokens or source.get("max_tokens")
    if model is not None:
        sae.config.base_model, sae.config.base_model_revision = model, None
    lm = sae.load_base_model()
    calibration = None
    if source.get("calibration"):
        calibration = _calibration(sae, lm, source["calibration"], batch_size)
    max_tokens = max_tokens or 200_000
    blocks = _blocks(sae, source, batch_size)
    metrics = evaluate_sae(
        sae,
        lm,
        blocks,
        max_tokens=max_tokens,
        calibration=calibration,
        baselines=baselines,
        protocol={**source, "max_tokens": max_tokens},
    )
    if not baselines and dataset is None and "baselines" in (sae.config.metrics or {}):
        metrics["baselines"] = sae.config.metrics["baselines"]  # type: ignore[index]
    return MeasuredAgain(metrics, lm, blocks)


def text_source(
    config: SAEConfig, folder: str | Path, dataset: str | None, dataset_config: str | None, split: str
) -> dict[str, Any]:
    """A text by name, or the one that the recorded metrics were measured on.

    Args:
        config: The SAE's config.
        folder: Where it is, for the message.
        dataset: The text; None for the recorded one.
        dataset_config: Configuration of that dataset.
        split: Split of that dataset.

    Returns:
        `dataset`, `dataset_config`, `split`, the `part` of its documents, and of a recorded one `calibration` and
        `max_tokens`.

    Raises:
        ValueError: If no text is named and none was recorded.
    """
    if dataset is not None:
        return {"dataset": dataset, "dataset_config": dataset_config, "split": split, "part": None}
    recorded = (config.metrics or {}).get("protocol") or {}
    if not recorded.get("dataset"):
        raise ValueError(f"no text was recorded in {folder}: name one (dataset=..., or --dataset).")
    names = ("dataset", "dataset_config", "split", "part", "calibration", "max_tokens")
    return {name: recorded.get(name) for name in names}


def load_source(config: SAEConfig, source: dict[str, Any]) -> Any:
    """The documents of what `text_source` gave."""
    text: Any = load_text(source["dataset"], config=source.get("dataset_config"), split=source["split"])
    if not source.get("part"):
        return text
    arguments = (config.training or {}).get("arguments", {})
    column = document_column(text, arguments.get("text_column"), chat=arguments.get("chat", False))
    return split_documents(text, source["part"], text_column=column)


def _blocks(sae: SAE, source: dict[str, Any], batch_size: int) -> TokenBlocks:
    """The text of a source, cut as the SAE's config says."""
    arguments = (sae.config.training or {}).get("arguments", {})
    return TokenBlocks(
        load_source(sae.config, source),
        sae.load_tokenizer(),
        context_length=sae.config.context_length or 128,
        batch_size=batch_size,
        text_column=arguments.get("text_column"),
        prepend_bos=sae.config.prepend_bos,
        mix_documents=arguments.get("mix_documents", True),
        exclude_special_tokens=sae.config.exclude_special_tokens,
        exclude_positions=sae.config.exclude_positions,
        chat=arguments.get("chat", False),
        repeat=False,
    )


def _calibration(sae: SAE, lm: PreTrainedModel, source: dict[str, Any], batch_size: int) -> Calibration:
    """The activations that the recorded mean was taken over."""
    batches = list(take(_blocks(sae, source, batch_size), source["max_tokens"]))
    places = dict.fromkeys(hook_points_of(sae.config, lm))
    rows = read_rows(lm, batches, places, of_first_process=False)
    return {str(place): read for place, read in rows.items()}


def _write(sae: SAE, folder: Path, metrics: dict[str, Any]) -> None:
    sae.config.metrics = metrics
    write_config(sae.config, folder)
    write_json(folder / "metrics.json", metrics)
