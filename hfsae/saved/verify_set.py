"""Is the card of a set true? Each SAE and the model with all of them in place are measured again and compared."""

import os
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download

from hfsae.connection import reachable
from hfsae.evaluation.healthy import TITLES
from hfsae.evaluation.report import SET_TITLES
from hfsae.evaluation.saved_set import SET_FILE, is_stale, read_set, set_names
from hfsae.hub.errors import usable_token
from hfsae.hub.kinds import number
from hfsae.hub.snapshot import look
from hfsae.saved.many import load_saes
from hfsae.saved.sets import measure_set_again
from hfsae.saved.verify import COMPARED, ON_OTHER_TEXT, ON_THE_SAME_TEXT, Claim, Verification, card_file, claims_of

# What is claimed of the whole set.
_TOGETHER = ("ce_clean", "ce_spliced", "loss_recovered", "kl", "ce_with_errors")


def record_of(
    source: str | os.PathLike, revision: str | None = None, token: str | bool | None = None
) -> dict[str, Any] | None:
    """The record of a set in a folder or a repository; None where it holds none.

    Args:
        source: A folder, or a Hub repository.
        revision: Branch, tag or commit.
        token: A token, instead of the one that `hf auth login` stored.

    Raises:
        ValueError: If there is one that cannot be read.
    """
    if Path(source).exists() or str(source).count("/") != 1:
        return read_set(Path(source) / SET_FILE)
    token = usable_token(token)
    with reachable():
        snapshot = look(str(source), revision, token)
        if SET_FILE not in snapshot.files:
            return None
        return read_set(Path(hf_hub_download(str(source), SET_FILE, token=token, **snapshot.where)))


def verify_set(
    source: str | os.PathLike,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    **measuring: Any,
) -> Verification:
    """Loads a set, measures it again and compares with its cards and its record.

    Args:
        source: A Hub repository, or a folder.
        revision: Branch, tag or commit.
        token: A token, instead of the one that `hf auth login` stored.
        **measuring: For `measure_set_again`: `model`, `dataset`, `dataset_config`, `split`, `max_tokens`,
            `batch_size`.

    Returns:
        What agrees and what does not: figures of each SAE, each after its name, then those of the whole set.

    Raises:
        ValueError: If it holds no set, or a card makes no claims.
        OSError: If an SAE, its card, the model or the text is not there.
    """
    token = usable_token(token)
    record = record_of(source, revision, token)
    if record is None:
        raise ValueError(f"{source} holds no set: there is no {SET_FILE}, which training writes.")
    at_hub: dict[str, Any] = {}
    if not Path(source).exists():
        at_hub = {"token": token, **look(str(source), revision, token).where}
    everything = load_saes(source, revision=revision, token=token)
    if missing := set(set_names(record)) - everything.keys():
        raise FileNotFoundError(f"{source} lacks SAEs of its set: {', '.join(sorted(missing))}.")
    saes = {name: everything[name] for name in set_names(record)}
    claimed = {
        name: claims_of(card_file(source, name, at_hub), source, sae.config.metrics) for name, sae in saes.items()
    }
    again = measure_set_again(record, saes, str(source), **measuring)
    tolerance = ON_THE_SAME_TEXT if again.same_text else ON_OTHER_TEXT
    claims = [
        Claim(f"{name} {TITLES[metric]}", claimed[name].get(metric), number(measured.get(metric)), tolerance)
        for name, measured in again.metrics.items()
        for metric in COMPARED
    ]
    claims += [
        Claim(f"all: {SET_TITLES[name]}", number(record.get(name)), number(again.together.get(name)), tolerance)
        for name in _TOGETHER
    ]
    problems = ["The weights are not those that were measured: they were changed since."]
    return Verification(tuple(claims), tuple(problems if is_stale(record, saes) else []), again.same_text)
