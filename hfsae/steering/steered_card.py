"""The card of a steered model: what was changed in it, and what that does; made from `steering.json` beside it."""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, ModelCard

from hfsae.hub.card import CARD_FILE, assemble, read_card
from hfsae.hub.hub_ids import hub_id, without_folders
from hfsae.hub.markdown import render
from hfsae.hub.metadata import LIBRARY
from hfsae.hub.repository import Destination, Repository
from hfsae.saving import write_json
from hfsae.storage import naming, read_json

RECORD_FILE = "steering.json"
_TEMPLATE = "steered_card.md.jinja"
_ADAPTER_CONFIG = "adapter_config.json"
_NAMES = ("base_model", "sae")


def render_steered_card(record: Mapping[str, Any], existing: ModelCard | None = None) -> ModelCard:
    """The card of a steered model.

    Args:
        record: What `steering.json` says.
        existing: A card whose own words and metadata stay.

    Raises:
        ValueError: If the record holds values of kinds that cannot be.
    """
    with naming(RECORD_FILE):
        on_hub = {record[name] for name in _NAMES if hub_id(record[name])}
        base, sae = (None if record[name] is None else without_folders(record[name]) for name in _NAMES)
        relation, library = ("adapter", "peft") if record["form"] == "adapter" else ("finetune", "transformers")
        data = {
            "base_model": base if base in on_hub else None,
            "base_model_relation": relation if base in on_hub else None,
            "library_name": library,
            "pipeline_tag": "text-generation",
            "license": record["license"],
            "tags": ["steering", "sparse-autoencoder", LIBRARY],
        }
        values = {**record, "base_model": base, "sae": sae, "on_hub": on_hub, "moved": _moved(record["effect"])}
        block = render(_TEMPLATE, values)
    return assemble({name: value for name, value in data.items() if value is not None}, block, existing)


def is_steered(folder: Path) -> bool:
    """Whether a folder holds what `steer_model` wrote."""
    return (folder / RECORD_FILE).is_file()


def push_steered(folder: Path, destination: Destination, *, license: str | None = None) -> CommitInfo:
    """Publishes the folder of a steered model, in one commit; paths of this machine are left out.

    Args:
        folder: What `steer_model` wrote.
        destination: Where to.
        license: A licence id of the Hub, where the card has none.

    Raises:
        PushError: If the Hub refuses.
        ValueError: If the folder's record, or the card on the Hub, cannot be read.
    """
    record = read_json(folder / RECORD_FILE)
    repository = Repository(destination)
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary) / "model"
        shutil.copytree(folder, place)
        published = repository.download(CARD_FILE)
        existing = read_card(published or place / CARD_FILE, f"{CARD_FILE} of {repository.repo_id}")
        record["license"] = record.get("license") or (existing.data.to_dict().get("license") or license)
        card = render_steered_card(record, existing)
        (place / CARD_FILE).write_text(str(card), encoding="utf-8")
        # A name without its folder would look like an id of the Hub.
        known = {name: record[name] if hub_id(record[name]) else None for name in _NAMES}
        write_json(place / RECORD_FILE, record | known)
        if (place / _ADAPTER_CONFIG).is_file():
            about = read_json(place / _ADAPTER_CONFIG)
            base = str(about.get("base_model_name_or_path") or "")
            write_json(place / _ADAPTER_CONFIG, about | {"base_model_name_or_path": without_folders(base)})
        return repository.commit(place, "Upload a steered model")


def _moved(effect: Mapping[str, Any] | None) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """The tokens that gain, and the tokens that lose, as a card shows them."""
    found = []
    for title, name in (("rises", "raised"), ("falls", "lowered")):
        tokens = [] if effect is None else effect[name]
        shown = [
            {**token, "shown": token["token_id"] if token["text"] is None else repr(token["text"])} for token in tokens
        ]
        found.append((title, shown))
    return found
