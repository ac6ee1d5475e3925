"""The model card: generated from an SAE's config, merged into the card that people have written on.

Everything generated stands between two markers and is replaced each time; text around them, the licence and metadata
that we do not write are kept. Nothing here needs a network, and the same config gives the same bytes.
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from huggingface_hub.utils import validate_repo_id
from transformers import AutoConfig

from hfsae.autoencoder.model import SparseAutoencoder
from hfsae.configuration import SAEConfig
from hfsae.evaluation.protocol import changed_settings, measured_digest
from hfsae.hub.kinds import mapping, number
from hfsae.hub.label_summary import label_summary
from hfsae.hub.markdown import render
from hfsae.hub.metadata import front_matter, merge
from hfsae.hub.score_summary import score_summary
from hfsae.hub.sections import Stale, card_values, display_name
from hfsae.hub.weight_facts import WeightFacts
from hfsae.hub.written_card import WrittenCard, front_and_text
from hfsae.hub.yaml_text import dump, patched
from hfsae.identity import Identity, weights_sha256
from hfsae.loading import load_sae
from hfsae.progress import quietly
from hfsae.saving import files_at_once
from hfsae.storage import naming

BEGIN = "<!-- hfsae:begin (generated, edits are overwritten) -->"
END = "<!-- hfsae:end -->"

CARD_FILE = "README.md"
LOG_FILE, METRICS_FILE = "training_log.jsonl", "metrics.json"
TRAINING_CURVE = "training_curve.png"
FEATURE_DENSITY = "feature_density.png"
LAYERS_PLOT = "layers.png"
DASHBOARD_FILE = "dashboard.html"
DIFF_FILE, DIFF_PLOT = "diff.json", "diff.png"

# Where a dashboard's page holds what it knows of all features, as JSON.
_INDEX = re.compile(r'<script type="application/json" id="index">(.*?)</script>', re.DOTALL)

# References in a card's metadata; each can double what it stands for.
_MOST_ALIASES = 8


def render_card(
    sae_or_config: SparseAutoencoder | SAEConfig,
    *,
    repo_id: str | None = None,
    subfolder: str | None = None,
    existing: ModelCard | None = None,
    folder: str | os.PathLike | None = None,
    license: str | None = None,
    language: str | list[str] | None = None,
    weights_digest: str | None = None,
) -> ModelCard:
    """The card of an SAE, as its config describes it.

    Args:
        sae_or_config: The SAE, or its config alone.
        repo_id: Where the SAE is on the Hub. Without it, the card says how to load the folder in which it lies.
        subfolder: The SAE's folder inside the repository.
        existing: The card to refresh. What people wrote outside the generated block stays, and so do its licence,
            its language and all metadata that a config says nothing about.
        folder: Where the card will lie: pictures in it are shown.
        license: A licence id of the Hub (`"apache-2.0"`).
        language: ISO 639 codes of the text (`"en"`).
        weights_digest: The digest of the weights (`hfsae.evaluation.weights_sha256`), where only a config is
            given. Figures that were measured on other weights or with other settings are called stale, and leave
            the metadata.

    Returns:
        The card; `str(card)` is the text of a README.md.

    Raises:
        ValueError: If `repo_id` is not the id of a repository, or the config or the existing card holds values of
            kinds that cannot be.

    Example:
        >>> from hfsae import TopKSAEConfig
        >>> card = render_card(TopKSAEConfig(d_in=768, n_features=12288, k=32), repo_id="org/gpt2-l8")
        >>> card.data.library_name, "has not been evaluated" in card.text
        ('hfsae', True)
    """
    if repo_id is not None:
        validate_repo_id(repo_id)
    sae = sae_or_config if isinstance(sae_or_config, SparseAutoencoder) else None
    config = sae_or_config if isinstance(sae_or_config, SAEConfig) else sae_or_config.config
    folder = None if folder is None else Path(folder)
    stale = _stale(config, sae, weights_digest)
    weights = None if sae is None else WeightFacts.of(sae)
    with naming("what the config says of its training and metrics"):
        data = front_matter(
            config,
            display_name(config, repo_id, subfolder),
            metrics=None if stale else config.metrics,
            license=license,
            language=language,
        )
        values = card_values(config, repo_id, subfolder, weights, stale, _beside(folder, config, sae))
        values["labels"] = label_summary(folder, sae)
        values["scores"] = score_summary(folder, sae)
        values["difference"] = None if folder is None else difference(folder, sae)
        block = render("sae_card.md.jinja", values)
    with naming("the metadata of the card that is there"):
        return assemble(data, block, existing)


def assemble(data: Mapping[str, Any], block: str, existing: ModelCard | None) -> ModelCard:
    """A card of some metadata and a generated block, around which an existing card's text and metadata stay.

    Args:
        data: The metadata.
        block: What `BEGIN` and `END` enclose.
        existing: The card to refresh.
    """
    front, text = front_and_text(existing)
    theirs = yaml.safe_load(front) if front else None
    data = merge(theirs, data) if isinstance(theirs, dict) else dict(data)
    front = patched(front, data) if isinstance(theirs, dict) else dump(data)
    text = _with_block(text, f"{BEGIN}\n{block}\n{END}")
    return WrittenCard(f"---\n{front}\n---\n{text}")


def write_card(
    folder: str | os.PathLike,
    sae: SparseAutoencoder | None = None,
    *,
    repo_id: str | None = None,
    subfolder: str | None = None,
    existing: ModelCard | None = None,
    license: str | None = None,
    language: str | list[str] | None = None,
    pictures: bool = True,
) -> Path:
    """Writes the card of a saved SAE, and its pictures, beside the weights.

    The training curve is drawn from `training_log.jsonl`, the histogram of feature densities from the config's
    metrics, where they are there. Each file appears whole.

    Args:
        folder: Where the SAE is saved.
        sae: The SAE, if it is at hand; otherwise it is loaded from the folder, or its config alone where there are no
            weights.
        repo_id: As for `render_card`.
        subfolder: As for `render_card`.
        existing: The card to refresh; the folder's README.md by default.
        license: As for `render_card`.
        language: As for `render_card`.
        pictures: Whether they are drawn again; pictures that lie there are shown in any case.

    Returns:
        The card's path.

    Raises:
        FileNotFoundError: If no SAE is saved in the folder.
        ValueError: If what is saved there is not an SAE, or its README.md has metadata that cannot be read. Likewise
            if `repo_id` is not the id of a repository.

    Example:
        >>> write_card("runs/sae", license="apache-2.0")  # doctest: +SKIP
        PosixPath('runs/sae/README.md')
    """
    folder = Path(folder)
    shown = _saved_in(folder) if sae is None else sae
    path = folder / CARD_FILE
    if existing is None and path.is_file():
        existing = read_card(path)
    if pictures:
        draw_pictures(folder, shown if isinstance(shown, SAEConfig) else shown.config)
    card = render_card(
        shown,
        repo_id=repo_id,
        subfolder=subfolder,
        existing=existing,
        folder=folder,
        license=license,
        language=language,
    )
    with files_at_once(folder) as beside:
        (beside / CARD_FILE).write_text(str(card), encoding="utf-8", newline="\n")
    return path


def card_of(folder: str | os.PathLike) -> ModelCard:
    """The card that `write_card` would write for a saved SAE; nothing is written.

    Raises:
        FileNotFoundError, ValueError: As `write_card`.
    """
    folder = Path(folder)
    shown = _saved_in(folder)
    existing = read_card(folder / CARD_FILE) if (folder / CARD_FILE).is_file() else None
    return render_card(shown, existing=existing, folder=folder)


def _with_block(text: str, block: str) -> str:
    """A card's text with its generated block replaced, or put on top where there is none."""
    before, begin, rest = text.partition(BEGIN)
    if not begin or END not in rest:
        return f"\n{block}\n\n{text.strip()}".rstrip() + "\n"
    return before + block + rest.partition(END)[2]


def _stale(config: SAEConfig, sae: SparseAutoencoder | None, weights_digest: str | None) -> Stale | None:
    measured = measured_digest(config)
    if changed := changed_settings(config):
        return Stale(settings=tuple(changed))
    if measured is None or (sae is None and weights_digest is None):
        return None
    stored = weights_sha256(sae) if sae is not None else weights_digest
    return None if measured == stored else Stale(measured[:12], str(stored)[:12])


def _saved_in(folder: Path) -> SparseAutoencoder | SAEConfig:
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"no config.json in {folder}: save the SAE there first, with sae.save_pretrained.")
    if any(folder.glob("*.safetensors")):
        with quietly():
            return load_sae(folder)
    config = AutoConfig.from_pretrained(folder)
    if not isinstance(config, SAEConfig):
        raise ValueError(f"{folder} holds a {config.model_type!r} model, not a sparse autoencoder.")
    return config


def read_card(path: Path, called: str = "") -> ModelCard:
    """A card that somebody may have written on.

    Args:
        path: Its file.
        called: What error messages call it, where that is not the path.

    Raises:
        ValueError: If its metadata cannot be read.
    """
    try:
        content = path.read_text(encoding="utf-8")
        block = REGEX_YAML_BLOCK.search(content)
        events = yaml.parse(block[2], Loader=yaml.SafeLoader) if block else ()
        if sum(isinstance(event, yaml.AliasEvent) for event in events) > _MOST_ALIASES:
            raise ValueError("It repeats parts by reference (*name), and so can stand for more than fits a machine.")
        return WrittenCard(content)
    except Exception as error:  # YAML's own errors, and huggingface_hub's for a model-index
        raise ValueError(
            f"{called or path} has metadata that cannot be read; mend it or remove the file. {error}"
        ) from error


def draw_pictures(folder: Path, config: SAEConfig) -> None:
    """Draws the training curve and the histogram of feature densities into an SAE's folder, where they are known."""
    from hfsae.hub import plots, set_plot  # matplotlib takes a while to import

    with files_at_once(folder) as beside:
        if log := plots.read_log(folder / LOG_FILE):
            plots.training_curve(log, beside / TRAINING_CURVE)
        if density := _density(config):
            plots.feature_density(density, beside / FEATURE_DENSITY)
        if together := mapping(mapping(config.metrics).get("together")):
            layers = mapping(mapping(config.metrics).get("sources"))
            set_plot.set_plot(together, layers, beside / LAYERS_PLOT)


def _density(config: SAEConfig) -> dict[str, Any] | None:
    """The recorded histogram of feature densities, if it is one."""
    density = mapping(mapping(config.metrics).get("density"))
    edges, counts = density.get("log10_edges"), density.get("counts")
    if not (isinstance(edges, list) and isinstance(counts, list) and len(edges) == len(counts) + 1 > 1):
        return None
    told = [*edges, *counts, density.get("never")]
    return dict(density) if all(number(value) is not None for value in told) else None


def is_dashboard_of(page: Path, sae: SparseAutoencoder) -> bool:
    """Whether a dashboard shows the features of this SAE: every page holds what they were collected of."""
    index = _INDEX.search(page.read_text(encoding="utf-8", errors="replace"))
    try:
        about = mapping(mapping(json.loads(index[1] if index else "null")).get("about"))
    except (ValueError, RecursionError):
        return False
    return Identity.of(sae).unlike(about) is None


def _beside(folder: Path | None, config: SAEConfig, sae: SparseAutoencoder | None) -> set[str]:
    """The files that can be shown: no histogram of an earlier evaluation, no dashboard of another SAE."""
    if folder is None:
        return set()
    names = {TRAINING_CURVE, DASHBOARD_FILE} | ({FEATURE_DENSITY} if _density(config) else set())
    names |= {LAYERS_PLOT} if mapping(config.metrics).get("together") else set()
    found = {name for name in names if (folder / name).is_file()}
    if sae is not None and DASHBOARD_FILE in found and not is_dashboard_of(folder / DASHBOARD_FILE, sae):
        found.remove(DASHBOARD_FILE)
    return found


def difference(folder: Path, sae: SparseAutoencoder | None) -> dict[str, Any] | None:
    """What `hfsae diff` wrote of a crosscoder; None where there is nothing, or it is of other weights or settings.

    Args:
        folder: Where the crosscoder lies.
        sae: The crosscoder that it must be of; None takes whatever is there.
    """
    path = folder / DIFF_FILE
    if not path.is_file():
        return None
    with naming(f"what {path} says"):
        said = mapping(json.loads(path.read_text(encoding="utf-8")))
        about, counts, before = (mapping(said.get(name)) for name in ("about", "counts", "counts_by_norms"))
        if sae is not None and Identity.of(sae).unlike(about) is not None:
            return None
        rows = [(str(kind), number(before.get(kind)), number(count)) for kind, count in counts.items()]
        return {"rows": rows, "n_tokens": number(said.get("n_tokens")), "plot": (folder / DIFF_PLOT).is_file()}
