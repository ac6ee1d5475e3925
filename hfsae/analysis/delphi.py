"""Hand-over to delphi, EleutherAI's automated interpretation: every activation of every feature, in its cache layout.

    FOLDER/MODULE/config.json
    FOLDER/MODULE/START_END.safetensors     features START to END, both included

A file holds `tokens` (rows, context), `locations` (entries, 3) of unsigned integers (row, position, feature − START)
and `activations` (entries,) in float16. Known from delphi's `latents/cache.py` and `latents/loader.py` of 2025.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hfsae.analysis.document_sequences import Documents, as_dataset
from hfsae.analysis.feature_reader import FeatureReader
from hfsae.attachment import refuse_swapped
from hfsae.autoencoder import SparseAutoencoder
from hfsae.data import TokenBlocks
from hfsae.data.left_out import placeholder_ids
from hfsae.evaluation.text_batches import reading_of
from hfsae.in_model import hook_points_of
from hfsae.progress import token_bar
from hfsae.saving import files_at_once, write_json
from hfsae.storage import write_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_SMALL = 2**16


def export_delphi(
    sae: SparseAutoencoder,
    model: PreTrainedModel,
    tokenizer: "PreTrainedTokenizerBase",
    documents: Documents,
    folder: str | Path,
    *,
    max_tokens: int = 1_000_000,
    n_splits: int = 5,
    context_length: int | None = None,
    batch_size: int = 32,
    text_column: str | None = None,
    dataset: str = "",
    split: str = "train",
    disable_tqdm: bool = False,
) -> Path:
    """Reads a text and writes what delphi's `LatentDataset(raw_dir=folder)` reads.

    Documents are joined and cut into rows of one length, as delphi does it. Memory grows with tokens × active
    features.

    Args:
        sae: The SAE.
        model: Its language model.
        tokenizer: Its tokenizer.
        documents: Texts in a list, or a dataset.
        folder: Where the module's folder is made.
        max_tokens: Tokens to read, at most.
        n_splits: Files that the features are shared among.
        context_length: Tokens in a row; None takes the config's. delphi wants a multiple of the length of its examples
            (32 by default).
        batch_size: Rows per run of the model.
        text_column: The column of documents; None finds it.
        dataset: The dataset's name for the config.
        split: Its split.
        disable_tqdm: Whether to show no progress bar.

    Returns:
        The module's folder, named after the SAE's hook point.

    Raises:
        ValueError: If there is not one whole row of text, `n_splits` is impossible, or the SAE does not fit the model.
    """
    refuse_swapped(sae, model)
    n_features = sae.config.n_features
    if not 1 <= n_splits <= n_features:
        raise ValueError(f"n_splits is {n_splits}, expected 1 to {n_features}.")
    length = context_length or sae.config.context_length or 256
    place = hook_points_of(sae.config, model)[0]
    reader = FeatureReader(sae, model)
    blocks = TokenBlocks(
        as_dataset(documents),
        tokenizer,
        context_length=length,
        batch_size=batch_size,
        text_column=text_column,
        prepend_bos=sae.config.prepend_bos,
        exclude_special_tokens=sae.config.exclude_special_tokens,
        further_ids=placeholder_ids(model.config),
        exclude_positions=sae.config.exclude_positions,
        repeat=False,
        **reading_of(sae.config, tokenizer),
    )
    rows: list[Tensor] = []
    locations: list[Tensor] = []
    activations: list[Tensor] = []
    n_rows, wanted = 0, max_tokens // length
    with token_bar("reading for delphi", max_tokens, disable=disable_tqdm) as bar:
        for batch in blocks:
            whole = min(int((batch.attention_mask.sum(1) == length).sum()), wanted - n_rows)
            if not whole:
                break
            batch = type(batch)(*(part[:whole] for part in batch))
            firings = reader.read(batch)
            rows.append(batch.input_ids)
            row, position = firings.tokens // length + n_rows, firings.tokens % length
            locations.append(torch.stack([row, position, firings.features], 1))
            activations.append(firings.values.half())
            n_rows += whole
            bar.update(whole * length)
    if not n_rows:
        raise ValueError(f"the documents do not fill one row of {length} tokens (max_tokens is {max_tokens}).")
    target = Path(folder) / place.path
    with files_at_once(target) as beside:
        _write_splits(beside, torch.cat(rows), torch.cat(locations), torch.cat(activations), n_features, n_splits)
        write_json(
            beside / "config.json",
            {
                "dataset_repo": dataset,
                "dataset_split": split,
                "dataset_name": "",
                "dataset_column": text_column or "text",
                "batch_size": batch_size,
                "cache_ctx_len": length,
                "ctx_len": length,
                "n_tokens": n_rows * length,
                "n_splits": n_splits,
                "model_name": sae.config.base_model,
            },
        )
    logger.info("wrote %d rows of %d tokens into %s", n_rows, length, target)
    return target


def _write_splits(
    folder: Path, tokens: Tensor, locations: Tensor, activations: Tensor, n_features: int, n_splits: int
) -> None:
    bounds = torch.linspace(0, n_features, n_splits + 1).long().tolist()
    for start, end in zip(bounds, bounds[1:], strict=False):
        mine = (locations[:, 2] >= start) & (locations[:, 2] < end)
        here = locations[mine] - torch.tensor([0, 0, start])
        kind = torch.uint16 if max(len(tokens), end - start, tokens.shape[1]) <= _SMALL else torch.uint32
        columns = {"locations": here.to(kind), "activations": activations[mine], "tokens": tokens}
        write_tensors(folder / f"{start}_{end - 1}.safetensors", columns)
