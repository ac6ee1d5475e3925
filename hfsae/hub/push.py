"""Publishing an SAE: weights, config, card and plots in one atomic commit."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi, ModelCard
from huggingface_hub.errors import EntryNotFoundError, RevisionNotFoundError

from hfsae.configuration import SAEConfig
from hfsae.hub.card import write_card
from hfsae.modeling import SAE
from hfsae.saving import quietly

# What training leaves beside the weights and a card shows or links.
_BESIDE = ("training_log.jsonl", "metrics.json", "README.md")


def push(
    sae: SAE,
    repo_id: str,
    *,
    folder: str | Path | None = None,
    subfolder: str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    private: bool | None = None,
    token: str | None = None,
    commit_message: str | None = None,
    license: str | None = None,
) -> CommitInfo:
    """Uploads an SAE; see `SAE.push_to_hub`."""
    api = HfApi(token=token, library_name="hfsae")
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if revision and not create_pr and not revision.startswith("refs/"):
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    # What is read here and what is written there must be of the same state of the repository.
    parent = api.model_info(repo_id, revision=revision).sha
    prefix = f"{subfolder.strip('/')}/" if subfolder else ""
    with tempfile.TemporaryDirectory() as beside:
        place = Path(beside)
        with quietly(), _without_local_paths(sae.config):
            sae.save_pretrained(place)
        for name in _BESIDE:
            if folder is not None and (Path(folder) / name).is_file():
                shutil.copy(Path(folder) / name, place / name)
        card = _published_card(api, repo_id, f"{prefix}README.md", parent)
        write_card(place, sae, repo_id=repo_id, subfolder=subfolder, existing=card, license=license)
        files = sorted(path for path in place.iterdir() if path.is_file())
        return api.create_commit(
            repo_id,
            [CommitOperationAdd(path_in_repo=prefix + path.name, path_or_fileobj=path) for path in files],
            commit_message=commit_message or f"Upload {type(sae).__name__}",
            revision=revision,
            create_pr=create_pr,
            parent_commit=parent,
        )


@contextmanager
def _without_local_paths(config: SAEConfig) -> Iterator[None]:
    """Leaves out the folder of a language model that is not on the Hub: it means nothing elsewhere."""
    base_model = config.base_model
    if base_model is not None and (os.path.isabs(base_model) or base_model.startswith(".")):
        config.base_model = None
    try:
        yield
    finally:
        config.base_model = base_model


def _published_card(api: HfApi, repo_id: str, path: str, commit: str | None) -> ModelCard | None:
    """The card that stands there now, whose human text is to survive."""
    try:
        return ModelCard.load(api.hf_hub_download(repo_id, path, revision=commit))
    except (EntryNotFoundError, RevisionNotFoundError):
        return None
