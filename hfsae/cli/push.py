"""`hfsae push`: publishes a saved SAE, a folder of many, or a steered model."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from hfsae.command_line import option


def run(
    folder: Annotated[
        str,
        typer.Argument(
            metavar="FOLDER", help="Folder of an SAE, of folders of SAEs, or of a steered model; pushed in one commit."
        ),
    ],
    repo: Annotated[
        str, typer.Argument(metavar="REPO", help="Hub repository, such as org/gpt2-l8-16x; made when missing.")
    ],
    subfolder: Annotated[str, option("--subfolder", "Folder in the repository.", show_default=False)] = "",
    revision: Annotated[str | None, option("--revision", "Branch to commit to; made when missing.")] = None,
    tag: Annotated[str | None, option("--tag", "Name for the commit.")] = None,
    create_pr: Annotated[bool, option("--create_pr", "Open a pull request instead.")] = False,
    private: Annotated[bool, option("--private", "Make a new repository private.")] = False,
    dashboard: Annotated[bool, option("--dashboard", "Push a dashboard along, made where there is none.")] = False,
    license: Annotated[
        str | None, option("--license", "Licence for cards that have none, such as apache-2.0.")
    ] = None,
    collection: Annotated[
        str | None, option("--collection", "Title of a collection to put the repository on.")
    ] = None,
    commit_message: Annotated[str | None, option("--commit_message", "Title of the commit.")] = None,
    token: Annotated[
        str | None, option("--token", "A token; better is `hf auth login`, or HF_TOKEN in the environment.")
    ] = None,
) -> int:
    """Pushes, and prints where to."""
    from hfsae.hub import push_saes
    from hfsae.sae_folders import CONFIG_FILE, sae_folders, weights_alone
    from hfsae.saved.sets import find_set
    from hfsae.steering.steered_card import is_steered
    from hfsae.sweeps.sweep_results import RESULTS_JSON, lost_of_sweep

    place = Path(folder)
    if not place.is_dir():
        raise ValueError(f"{place} is no folder: give the one that training saved an SAE in.")
    where: dict[str, Any] = {
        "revision": revision,
        "tag": tag,
        "create_pr": create_pr,
        "private": private or None,
        "commit_message": commit_message,
        "token": token,
    }
    if is_steered(place):
        if subfolder or dashboard or collection:
            raise ValueError(f"{place} is a steered model: --subfolder, --dashboard and --collection are of SAEs.")
        return _push_steered(place, repo, license, where)
    names = sae_folders(place)
    if half := weights_alone(place):
        raise ValueError(
            f"{place} has weights without their {CONFIG_FILE} in {', '.join(half)}: write or download these SAEs "
            "again, or take their folders away."
        )
    if not names:
        raise ValueError(f"{place} holds no SAE (no config.json): save one there with sae.save_pretrained.")
    whole = None if subfolder else find_set(place)
    if whole is not None:
        whole.refuse_missing()
    if gone := lost_of_sweep(place, names):
        print(f"not here, and so not pushed: {', '.join(gone)}, of which {RESULTS_JSON} tells", file=sys.stderr)
    if dashboard:
        from hfsae.dashboard import ensure_dashboard
        from hfsae.hub.repository import Destination, refuse_stranger

        refuse_stranger(Destination(repo, **where))
        for name in names:
            ensure_dashboard(place / name)
    inside = {"/".join(part for part in (subfolder.strip("/"), name) if part): place / name for name in names}
    info = push_saes(
        inside,
        repo,
        license=license,
        collection=collection,
        together=None if whole is None else whole.record,
        **where,
    )
    _tell(info)
    return 0


def _push_steered(folder: Path, repo: str, license: str | None, where: dict[str, Any]) -> int:
    from hfsae.hub.repository import Destination
    from hfsae.steering.steered_card import push_steered

    _tell(push_steered(folder, Destination(repo, **where), license=license))
    return 0


def _tell(info: Any) -> None:
    print(f"pushed to {info.pr_url or info.repo_url} (commit {info.oid[:12]})")
