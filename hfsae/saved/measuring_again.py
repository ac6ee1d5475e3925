"""Measuring an SAE from its saved folder alone: on the text its metrics name, or on another."""

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from hfsae.configuration import SAEConfig
from hfsae.data import TextSource, TokenBlocks, find_document_column
from hfsae.data.document_column import column_names
from hfsae.data.left_out import placeholder_ids
from hfsae.data.text_source import refuse_parts_alone
from hfsae.evaluation.calibration import Calibration, read_rows
from hfsae.evaluation.evaluate import evaluate_sae
from hfsae.evaluation.output_places import output_places
from hfsae.evaluation.text_batches import take
from hfsae.folders import can_be_written_in
from hfsae.language_model import as_recorded, rename_base_model
from hfsae.loading import holds_config
from hfsae.modeling import SAE
from hfsae.saving import write_config, write_json

logger = logging.getLogger(__name__)

# Where neither the caller nor a record says how much.
_DEFAULT_TOKENS = 200_000


def evaluate_saved(
    folder: str | Path,
    *,
    model: str | None = None,
    dataset: str | None = None,
    dataset_config: str | None = None,
    split: str | None = None,
    max_tokens: int | None = None,
    batch_size: int = 16,
    baselines: bool = False,
    write: bool | None = None,
) -> dict[str, Any]:
    """Loads an SAE and its language model and measures the one in the other.

    Some figures replace the record in the folder: they are of the text and the model that it names, and of as much
    text. That text must not have changed. Where nothing was recorded, the figures become the record. Others are given
    back and not written.

    Args:
        folder: What training saved.
        model: The language model; None loads the one that the config names.
        dataset: The text; None measures on the text that the recorded metrics were measured on, as it was then.
        dataset_config: Configuration of that dataset.
        split: Split of that dataset; None: the only one, or `"test"`.
        max_tokens: Tokens to measure on; None: as many as were recorded, or 200,000.
        batch_size: Blocks of text per pass.
        baselines: Whether the untrained SAE and PCA are measured too.
        write: Whether the metrics are written into the folder (config.json and metrics.json). None: as is said above;
            True: whatever the text; False: never.

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
    named = {"dataset": dataset, "dataset_config": dataset_config, "split": split}
    options = {"model": model, "max_tokens": max_tokens, "batch_size": batch_size, "baselines": baselines}
    return measure_saved(folder, write=write, **named, **options)[0]


def measure_saved(folder: str | Path, *, write: bool | None = None, **options: Any) -> tuple[dict[str, Any], bool]:
    """What `evaluate_saved` measures, and whether it has become the record.

    Args:
        folder: As `evaluate_saved` takes it, like the others.
        write: Whether the metrics are written.
        **options: For `measure_again`.

    Raises:
        ValueError, OSError: As `evaluate_saved`.
    """
    ours = holds_config(folder, {})
    if write and not ours:
        raise ValueError(f"{folder} is in another project's format, which holds no metrics: convert it first.")
    sae = SAE.from_pretrained(folder)
    asked = {name: options.get(name) for name in ("model", "dataset", "max_tokens")}
    replaces = ours and replaces_record(sae.config, **asked) if write is None else write
    if replaces:
        try:
            can_be_written_in(folder)
        except PermissionError as error:
            raise PermissionError(f"{error} write=False, or --no_write, measures without writing.") from error
    again = measure_again(sae, str(folder), **options)
    if again.text_changed and write is None:
        replaces = False
    if replaces:
        _write(sae, Path(folder), again.metrics)
    return again.metrics, replaces


def replaces_record(config: SAEConfig, *, model: str | None, dataset: str | None, max_tokens: int | None) -> bool:
    """Whether a measurement tells what the record of an SAE tells, or there is none that it could replace.

    Args:
        config: The SAE's config, before it is measured.
        model: The language model that is named; None for the config's.
        dataset: The text that is named; None for that of the record.
        max_tokens: Tokens that are asked for; None for as many as were recorded.
    """
    if not config.metrics:
        return True
    recorded = (config.metrics.get("protocol") or {}).get("max_tokens") or config.metrics.get("n_tokens") or 0
    same_model = model is None or as_recorded(model) == config.base_model
    return dataset is None and same_model and (max_tokens is None or max_tokens >= recorded)


@dataclass(frozen=True)
class MeasuredAgain:
    """What came out, and what it was measured with.

    Args:
        metrics: As `evaluate_saes` describes them.
        model: The language model.
        blocks: The text.
        text_changed: Whether the recorded text is not what it was: its tokens are others.
    """

    metrics: dict[str, Any]
    model: PreTrainedModel
    blocks: TokenBlocks
    text_changed: bool


def measure_again(
    sae: SAE,
    called: str,
    *,
    model: str | None = None,
    dataset: str | None = None,
    dataset_config: str | None = None,
    split: str | None = None,
    max_tokens: int | None = None,
    batch_size: int = 16,
    baselines: bool = False,
) -> MeasuredAgain:
    """Measures an SAE on the text that its metrics name, or on another; see `evaluate_saved`.

    Args:
        sae: The SAE; with a `model` its config then names that one.
        called: What error messages call it.
    """
    text = text_to_measure(sae.config, called, dataset, dataset_config, split)
    max_tokens = (text.max_tokens or _DEFAULT_TOKENS) if max_tokens is None else max_tokens
    if model is not None:
        rename_base_model(sae.config, model)
    lm = sae.load_base_model()
    blocks = blocks_of(sae, lm, text.source, batch_size)
    metrics = evaluate_sae(
        sae,
        lm,
        blocks,
        sae.load_tokenizer(),
        max_tokens=max_tokens,
        calibration=calibration_of([sae], lm, text, batch_size),
        baselines=baselines,
        protocol=text.protocol(max_tokens),
    )
    recorded = sae.config.metrics or {}
    as_it_was = dataset is None and model is None and max_tokens == text.max_tokens
    changed = as_it_was and _tokens_differ(recorded.get("protocol"), metrics["protocol"])
    if changed:
        logger.warning(
            "%s: the text %s is not what was measured: it has other tokens now, so figures differ from the record",
            called,
            text.source,
        )
    if not baselines and dataset is None and model is None and not changed and "baselines" in recorded:
        metrics["baselines"] = _of_the_record(recorded, metrics["n_tokens"])
    return MeasuredAgain(metrics, lm, blocks, changed)


def _of_the_record(recorded: Mapping[str, Any], n_tokens: int) -> dict[str, Any]:
    """The baselines of a record; they say on how many tokens where figures beside them are of another number."""
    if recorded.get("n_tokens") in (None, n_tokens):
        return recorded["baselines"]
    of_these = {"n_tokens": recorded["n_tokens"]}
    return {name: of_these | dict(figures) for name, figures in recorded["baselines"].items()}


def _tokens_differ(recorded: Any, now: Mapping[str, Any]) -> bool:
    """Whether two protocols tell of other tokens; records of earlier versions and of several processes tell none."""
    digest = recorded.get("tokens_sha256") if isinstance(recorded, Mapping) else None
    return digest is not None and digest != now["tokens_sha256"]


@dataclass(frozen=True)
class TextToMeasure:
    """What an SAE is measured on.

    Args:
        source: The text.
        calibration: The text that the mean activation is taken over; None for the beginning of the text itself.
        calibration_tokens: How much of it.
        max_tokens: Tokens that were measured on; None where nothing was.
    """

    source: TextSource
    calibration: TextSource | None = None
    calibration_tokens: int = 0
    max_tokens: int | None = None

    def protocol(self, max_tokens: int) -> dict[str, Any]:
        """What finds the text again: a part of `config.metrics["protocol"]`."""
        calibration = None
        if self.calibration is not None:
            calibration = {**self.calibration.recorded(), "max_tokens": self.calibration_tokens}
        return {**self.source.recorded(), "max_tokens": max_tokens, "calibration": calibration}


def text_to_measure(
    config: SAEConfig, called: str | Path, dataset: str | None, dataset_config: str | None, split: str | None
) -> TextToMeasure:
    """A text by name, or the one that the recorded metrics were measured on, or were to be by the training run.

    Args:
        config: The SAE's config.
        called: What the message calls the SAE.
        dataset: The text; None for the recorded one.
        dataset_config: Configuration of that dataset.
        split: Split of that dataset; None: the only one, or `"test"`.

    Raises:
        ValueError: If no text is named and none was recorded, or a part of a dataset is named alone.
        FileNotFoundError: If there is no text of that name.
    """
    refuse_parts_alone(dataset, dataset_config, split)
    arguments = (config.training or {}).get("arguments", {})
    if dataset is not None:
        reading = TextSource.of_arguments(arguments).reading
        named = TextSource(dataset=dataset, dataset_config=dataset_config, split=split, **reading).resolved()
        return TextToMeasure(_fitting(named))
    recorded = (config.metrics or {}).get("protocol") or (config.training or {}).get("evaluation") or {}
    if not recorded.get("dataset"):
        raise ValueError(f"no text was recorded in {called}: name one (dataset=..., or --dataset_name).")
    calibration = recorded.get("calibration")
    return TextToMeasure(
        TextSource.of_record(recorded, arguments),
        None if not calibration else TextSource.of_record(calibration, arguments),
        (calibration or {}).get("max_tokens", 0),
        recorded.get("max_tokens"),
    )


def _fitting(source: TextSource) -> TextSource:
    """A text with what was said of the documents of another one, as far as it is true of its own."""
    dataset = source.load()
    if source.text_column not in column_names(dataset):
        source = replace(source, text_column=None)
    kind = find_document_column(dataset, source.text_column, chat=None if source.chat else False).kind
    return replace(source, chat=kind == "chat")


def blocks_of(sae: SAE, lm: PreTrainedModel, source: TextSource, batch_size: int) -> TokenBlocks:
    """A text, cut as the SAE's config says, without what is no text in this language model."""
    return TokenBlocks(
        source.documents(),
        sae.load_tokenizer(),
        context_length=sae.config.context_length or 128,
        batch_size=batch_size,
        prepend_bos=sae.config.prepend_bos,
        exclude_special_tokens=sae.config.exclude_special_tokens,
        further_ids=placeholder_ids(lm.config),
        exclude_positions=sae.config.exclude_positions,
        repeat=False,
        **source.reading,
    )


def calibration_of(
    saes: Collection[SAE], lm: PreTrainedModel, text: TextToMeasure, batch_size: int
) -> Calibration | None:
    """The activations that the recorded means were taken over, at all places of SAEs that read the same text."""
    if text.calibration is None:
        return None
    blocks = blocks_of(next(iter(saes)), lm, text.calibration, batch_size)
    batches = list(take(blocks, text.calibration_tokens))
    sides = [side for sae in saes for side in output_places(sae, lm)]
    places = dict.fromkeys(place for side in sides for place in (*side.reads, side.target))
    rows = read_rows(lm, batches, places, of_first_process=False)
    return {str(place): read for place, read in rows.items()}


def _write(sae: SAE, folder: Path, metrics: dict[str, Any]) -> None:
    sae.config.metrics = metrics
    write_config(sae.config, folder)
    write_json(folder / "metrics.json", metrics)
