"""What the card of a set of SAEs says of the model with all of them in place."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfsae.autoencoder.model import SparseAutoencoder
from hfsae.evaluation.saved_set import SET_FILE, SET_PLOT, is_stale, read_set, set_names
from hfsae.hub.hub_ids import dataset_id
from hfsae.hub.kinds import mapping, number
from hfsae.loading import load_sae
from hfsae.progress import quietly

_ROWS = (
    ("the model itself", "ce_clean", None, ""),
    ("all reconstructions in place", "ce_spliced", "kl", ""),
    (
        "the same, errors of the untouched run added back",
        "ce_with_errors",
        "kl_with_errors",
        "must be the model itself",
    ),
    ("0 in all places", "ce_zero", None, ""),
    ("means of other text in all places", "ce_mean", None, ""),
)


def rows_of_runs(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each run of the model that `evaluate_together` makes: its title, CE, KL and a remark."""
    figures = {name: number(record.get(name)) for row in _ROWS for name in row[1:3] if name}
    difference = number(record.get("with_errors_difference"))
    rows = [
        {"title": title, "ce": figures[ce], "kl": None if kl is None else figures[kl], "remark": remark}
        for title, ce, kl, remark in _ROWS
    ]
    if difference is not None:
        rows[2]["remark"] = f"last state {difference:.1e} of its norm away"
    return rows


@dataclass(frozen=True)
class WholeSet:
    """Figures for the card of a set.

    Args:
        n_saes: How many SAEs.
        rows: Each run of the model: its title, CE, KL and a remark.
        loss_recovered: Of what 0 in all places costs.
        l0: Active features a token over all SAEs.
        text: What was measured on, in words.
        notes: Why figures are missing, or what is wrong with them.
        stale: Whether they are of other weights.
        picture: The file that shows them beside the card, where it is there.
    """

    n_saes: int
    rows: list[dict[str, Any]]
    loss_recovered: float | None
    l0: float | None
    text: str
    notes: list[str]
    stale: bool
    picture: str | None = None

    @classmethod
    def of(
        cls,
        record: Mapping[str, Any],
        saes: Mapping[str, SparseAutoencoder],
        there: Collection[str],
        picture: str | None = None,
    ) -> "WholeSet":
        """What a record says.

        Args:
            record: What `evaluate_together` returned.
            saes: SAEs that are at hand, whose weights are compared with the measured ones.
            there: The names of all that the card lists.
            picture: The file that shows the figures.
        """
        protocol, n_tokens = mapping(record.get("protocol")), number(record.get("n_tokens"))
        dataset = dataset_id(protocol.get("dataset"))
        return cls(
            n_saes=len(set_names(record)),
            rows=rows_of_runs(record),
            loss_recovered=number(record.get("loss_recovered")),
            l0=number(record.get("l0")),
            text=" of ".join([*([f"{n_tokens:,.0f} tokens"] if n_tokens else []), *([dataset] if dataset else [])]),
            notes=list(dict.fromkeys(str(note) for note in mapping(record.get("notes")).values())),
            stale=not set(set_names(record)) <= set(there) or is_stale(record, saes),
            picture=picture,
        )

    @classmethod
    def in_folder(cls, root: Path) -> "WholeSet | None":
        """The same of the record in a folder, whose weights are read; None where there is no record."""
        record = read_set(root / SET_FILE)
        if record is None:
            return None
        there = [name for name in set_names(record) if (root / name / "config.json").is_file()]
        with quietly():
            saes = {name: load_sae(root, subfolder=name) for name in there}
        return cls.of(record, saes, there, SET_PLOT if (root / SET_PLOT).is_file() else None)
