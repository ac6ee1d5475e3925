"""Sets of SAEs that stand in a model together: loading one from its folder, and measuring it again."""

import copy
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download

from hfsae.attachment import places_of
from hfsae.connection import reachable
from hfsae.evaluation.evaluate import evaluate_saes
from hfsae.evaluation.saved_set import SET_FILE, read_set, set_names
from hfsae.evaluation.together import evaluate_together
from hfsae.hub.errors import usable_token
from hfsae.hub.snapshot import look
from hfsae.language_model import rename_base_model
from hfsae.modeling import SAE
from hfsae.sae_folders import CONFIG_FILE
from hfsae.saved.measuring_again import blocks_of, calibration_of, text_to_measure
from hfsae.saving import write_config, write_json

_DEFAULT_TOKENS = 200_000


@dataclass(frozen=True)
class SavedSet:
    """A set in a folder or in a repository, found by its record.

    Args:
        source: The folder or the repository.
        record: What was measured of the whole set.
        where: The arguments by which `from_pretrained` reads a repository at the commit of the record.
        missing: SAEs that the record names and that are not there.
    """

    source: str
    record: dict[str, Any]
    where: dict[str, Any]
    missing: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        """The SAEs that the record names, by their folders."""
        return set_names(self.record)

    def load(self) -> dict[str, SAE]:
        """The SAEs by name.

        Raises:
            FileNotFoundError: If one is missing.
            OSError, ValueError: As `SAE.from_pretrained`.
        """
        self.refuse_missing()
        return {name: SAE.from_pretrained(self.source, subfolder=name, **self.where) for name in self.names}

    def refuse_missing(self) -> None:
        """Refuses a set of which an SAE is missing.

        Raises:
            FileNotFoundError: Names the SAEs that are there.
        """
        if self.missing:
            raise FileNotFoundError(
                f"{self.source} lacks SAEs of its set: {', '.join(self.missing)}. Bring their folders back, or remove "
                f"{SET_FILE}, which names them: the others are then SAEs without a set."
            )


def find_set(
    source: str | os.PathLike, *, revision: str | None = None, token: str | bool | None = None
) -> SavedSet | None:
    """The set in a folder or a repository, which is listed once; None where there is no record of one.

    Args:
        source: A folder, or a Hub repository.
        revision: Branch, tag or commit.
        token: A token, instead of the one that `hf auth login` stored.

    Raises:
        ValueError: If there is a record that cannot be read.
        OSError: If there is no such repository, or it cannot be reached.
    """
    root = Path(source)
    if root.exists() or str(source).count("/") != 1:
        record = read_set(root / SET_FILE)
        return None if record is None else _found(source, record, {}, lambda path: (root / path).is_file())
    where: dict[str, Any] = {"token": usable_token(token)}
    with reachable():
        snapshot = look(str(source), revision, where["token"])
        if SET_FILE not in snapshot.files:
            return None
        where |= snapshot.where
        record = read_set(Path(hf_hub_download(str(source), SET_FILE, **where)))
    assert record is not None
    return _found(source, record, where, snapshot.files.__contains__)


def _found(
    source: str | os.PathLike, record: dict[str, Any], where: dict[str, Any], is_there: Callable[[str], bool]
) -> SavedSet:
    missing = [name for name in set_names(record) if not is_there(f"{name}/{CONFIG_FILE}")]
    return SavedSet(str(source), record, where, tuple(missing))


def the_set(source: str | os.PathLike, **hub: Any) -> SavedSet:
    """The set in a folder or a repository, as `find_set` finds it.

    Raises:
        ValueError: If there is none, or its record cannot be read.
        OSError: As `find_set`.
    """
    found = find_set(source, **hub)
    if found is None:
        raise ValueError(f"{source} holds no set: there is no {SET_FILE}, which training writes.")
    return found


@dataclass(frozen=True)
class SetMeasuredAgain:
    """What was measured again.

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
    tokens = (text.max_tokens or _DEFAULT_TOKENS) if max_tokens is None else max_tokens
    if model is not None:
        rename_base_model(first.config, model)
    lm = first.load_base_model()
    places_of(saes, lm, splice=True)  # each may fit, and all together not
    blocks = blocks_of(first, lm, text.source, batch_size)
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
