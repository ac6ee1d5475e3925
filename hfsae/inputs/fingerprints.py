"""What tells the inputs of a run from others that bear their names: samples of text, of weights and of activations."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hfsae.arguments.training_arguments import SAETrainingArguments
from hfsae.data import find_document_column
from hfsae.inputs.text_splits import Texts

# Documents, or rows, that stand for all of them.
_SAMPLED = 256
# Numbers that stand for a matrix.
_SAMPLED_WEIGHTS = 64


def text_digest(args: SAETrainingArguments, text: Any) -> str:
    """SHA-256 of a text's documents: of 256 of a table, evenly spaced, with their number, or the first of a stream.

    Args:
        args: The arguments that name the column.
        text: Text as `SAETrainer` takes it.
    """
    if isinstance(text, Tensor):
        sample: Any = [len(text), text[_spaced(len(text))].tolist()]
    else:
        column = find_document_column(text, args.text_column, chat=args.chat).column
        if hasattr(text, "__len__"):
            sample = [len(text), text.select(_spaced(len(text)))[column][:]]
        else:
            sample = [document[column] for document in text.take(_SAMPLED)]
    # Documents may be of tensors or dates: str says enough of them.
    return hashlib.sha256(json.dumps(sample, default=str).encode("utf-8", errors="surrogatepass")).hexdigest()


def weights_digest(model: nn.Module) -> str | None:
    """SHA-256 of up to 64 numbers of each of a language model's parameters; None where its weights are not loaded.

    They are rounded to bfloat16, so that a model is known again in another precision. Of quantised parameters none are
    read.
    """
    digest = hashlib.sha256()
    for parameter in model.parameters():  # their names change from release to release
        if parameter.is_meta:
            return None
        if type(parameter) is not nn.Parameter or not parameter.is_floating_point():
            continue
        every = parameter.detach().reshape(-1)
        sample = every[:: max(1, len(every) // _SAMPLED_WEIGHTS)].to(torch.bfloat16).cpu().contiguous()
        digest.update(f"{tuple(parameter.shape)}".encode() + sample.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def activations_digest(activations: Any) -> str | None:
    """SHA-256 of 256 rows of each table by hook point, evenly spaced, with their number; None for what is no table."""
    if not isinstance(activations, Mapping):
        return None
    digest = hashlib.sha256()
    for name, rows in sorted(activations.items()):
        sample = rows[_spaced(len(rows))]
        sample = (
            sample.detach().float().cpu().numpy() if isinstance(sample, Tensor) else np.asarray(sample, np.float32)
        )
        digest.update(f"{name} {len(rows)}".encode() + np.ascontiguousarray(sample).tobytes())
    return digest.hexdigest()


def refuse_other_inputs(
    stored: Mapping[str, Any], digests: Mapping[str, str | None], texts: Texts | None, called: str
) -> None:
    """Refuses to go on from a checkpoint with text, a model or activations that bear the old names and are others.

    Args:
        stored: The checkpoint's `run.json`.
        digests: What tells the inputs of this run, by what they are.
        texts: The text of this run; None where it reads none.
        called: The checkpoint's name.

    Raises:
        ValueError: Says which of them changed, and how to go on.
    """
    was, now = stored.get("dataset_commit"), texts.commit if texts is not None else None
    if None not in (was, now) and was != now:
        raise ValueError(f"the text of {called} was at commit {was} and is at {now}: pass dataset_revision={was!r}.")
    before = stored.get("digests", {})
    both = [name for name, digest in digests.items() if None not in (digest, before.get(name))]
    if changed := [name for name in both if before[name] != digests[name]]:
        raise ValueError(
            f"the {' and the '.join(changed)} of {called} changed since: resume with what was there then "
            "(model_revision and dataset_revision name commits), or start a new run from its SAEs (init_from)."
        )


def _spaced(rows: int) -> list[int]:
    return list(range(0, rows, max(1, rows // _SAMPLED)))
