"""Is the card of a set true? Each SAE and the model with all of them in place are measured again and compared."""

import os
from typing import Any

from hfsae.evaluation.metrics import METRIC_TITLES
from hfsae.evaluation.report import SET_TITLES
from hfsae.evaluation.saved_set import is_stale
from hfsae.hub.kinds import number
from hfsae.saved.sets import SavedSet, measure_set_again, the_set
from hfsae.saved.verify import COMPARED, ON_OTHER_TEXT, ON_THE_SAME_TEXT, Claim, Verification, card_file, claims_of

# What is claimed of the whole set.
_TOGETHER = ("ce_clean", "ce_spliced", "loss_recovered", "kl", "ce_with_errors")


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
    return verify_found(the_set(source, revision=revision, token=token), **measuring)


def verify_found(found: SavedSet, **measuring: Any) -> Verification:
    """The same of a set that `find_set` has found."""
    saes, record = found.load(), found.record
    claimed = {
        name: claims_of(card_file(found.source, name, found.where), found.source, sae.config.metrics)
        for name, sae in saes.items()
    }
    again = measure_set_again(record, saes, found.source, **measuring)
    tolerance = ON_THE_SAME_TEXT if again.same_text else ON_OTHER_TEXT
    claims = [
        Claim(f"{name} {METRIC_TITLES[metric]}", claimed[name].get(metric), number(measured.get(metric)), tolerance)
        for name, measured in again.metrics.items()
        for metric in COMPARED
    ]
    claims += [
        Claim(f"all: {SET_TITLES[name]}", number(record.get(name)), number(again.together.get(name)), tolerance)
        for name in _TOGETHER
    ]
    problems = ["An SAE is not the measured one: its weights or settings were changed since."]
    return Verification(tuple(claims), tuple(problems if is_stale(record, saes) else []), again.same_text)
