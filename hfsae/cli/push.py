"""`hfsae push`: publishes a saved SAE, or a folder of many."""

import argparse


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares what is pushed, where to, and how."""
    parser.add_argument("folder", help="folder of an SAE, or of folders of SAEs, which are pushed in one commit")
    parser.add_argument("repo", help="Hub repository, such as org/gpt2-l8-16x; made when missing")
    parser.add_argument("--subfolder", default="", help="folder in the repository")
    parser.add_argument("--revision", help="branch to commit to; made when missing")
    parser.add_argument("--tag", help="name for the commit")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request instead")
    parser.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    parser.add_argument("--dashboard", action="store_true", help="push a dashboard along, made where there is none")
    parser.add_argument("--license", help="licence for cards that have none, such as apache-2.0")
    parser.add_argument("--collection", help="title of a collection to put the repository on")
    parser.add_argument("--message", help="title of the commit")
    parser.add_argument("--token", help="a token; better is `hf auth login`, or HF_TOKEN in the environment")


def run(args: argparse.Namespace) -> int:
    """Pushes, and prints where to."""
    from pathlib import Path

    from hfsae.hub import push_saes
    from hfsae.places import sae_folders

    folder = Path(args.folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: give the one that training saved an SAE in.")
    names = sae_folders(folder)
    if not names:
        raise ValueError(f"{folder} holds no SAE (no config.json): save one there with sae.save_pretrained.")
    if args.dashboard:
        from hfsae.dashboard import ensure_dashboard

        for name in names:
            ensure_dashboard(folder / name)
    inside = {"/".join(part for part in (args.subfolder.strip("/"), name) if part): folder / name for name in names}
    info = push_saes(
        inside,
        args.repo,
        license=args.license,
        collection=args.collection,
        revision=args.revision,
        tag=args.tag,
        create_pr=args.create_pr,
        private=args.private,
        commit_message=args.message,
        token=args.token,
    )
    print(f"pushed to {info.pr_url or info.repo_url} (commit {info.oid[:12]})")
    return 0
