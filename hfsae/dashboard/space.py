"""A static Space of the Hub: the dashboard as a folder, with the front matter that a Space needs."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import SpaceCard, SpaceCardData

from hfsae.analysis import FeatureCollection
from hfsae.dashboard.write import PAGE, write_dashboard
from hfsae.hub.markdown import text
from hfsae.saving import files_at_once

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TAGS = ["sparse-autoencoder", "mechanistic-interpretability", "hfsae"]


def write_space(
    collection: FeatureCollection,
    tokenizer: "PreTrainedTokenizerBase",
    output: str | Path,
    *,
    title: str = "Features",
    repo_id: str | None = None,
    **options: Any,
) -> Path:
    """Writes a folder that is a static Space: upload it with `hf upload ORG/NAME FOLDER --repo-type space`.

    Args:
        collection: What `collect_features` found.
        tokenizer: The tokenizer of the language model.
        output: The folder.
        title: What the Space is called.
        repo_id: The Hub repository of the SAE, which the Space then is listed on.
        **options: As `write_dashboard` takes them. `links` are left out, and `matches` lead nowhere, since a Space has
            nothing of the disk.

    Returns:
        The folder.

    Example:
        >>> write_space(collection, tokenizer, "space", repo_id="org/gpt2-l8-16x")  # doctest: +SKIP
        PosixPath('space')
    """
    folder = Path(output)
    matches = [replace(one, page=None) for one in options.get("matches", ())]
    write_dashboard(collection, tokenizer, folder, title=title, **options | {"links": {}, "matches": matches})
    data = SpaceCardData(
        title=title,
        emoji="🔦",
        colorFrom="gray",
        colorTo="yellow",
        sdk="static",
        app_file=PAGE,
        pinned=False,
        models=[repo_id] if repo_id else None,
        tags=_TAGS,
    )
    about = collection.about
    made_on = f" of {text(about.dataset)}" if about.dataset else ""
    content = (
        f"# {text(title)}\n\nThe {len(collection):,} features of a sparse autoencoder, with examples from "
        f"{about.n_tokens:,} tokens{made_on}. Made with `hfsae space`.\n"
    )
    with files_at_once(folder) as beside:
        card = SpaceCard(f"---\n{data.to_yaml()}\n---\n\n{content}")
        (beside / "README.md").write_text(str(card), encoding="utf-8", newline="\n")
    return folder
