"""`hfsae dashboard`: the features of a saved SAE on one page."""

import argparse
from pathlib import Path
from typing import Any

from hfsae.cli.measuring import add_hub_options, add_measuring_options, hub_options, measuring_options


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares the SAE, the page, and what it shows."""
    add_contents(parser)
    parser.add_argument(
        "--output",
        help="a file that ends in .html, or a folder for large SAEs and the web (default: dashboard.html beside it)",
    )


def add_contents(parser: argparse.ArgumentParser) -> None:
    """Declares the SAE and what its dashboard is to show."""
    parser.add_argument("path", help="folder of the SAE, Hub repository, or release of the catalogue")
    add_hub_options(parser)
    parser.add_argument(
        "--text", action="append", default=[], help="a prompt, to see which features fire where; may be repeated"
    )
    parser.add_argument("--labels", help="labels that the page saved; they become labels.json where there is none")
    parser.add_argument(
        "--write",
        action="store_true",
        help="let what is shown of another text or model, and other labels, replace what lies beside the weights",
    )
    add_measuring_options(parser)
    parser.add_argument("--tokens", type=int, default=1_000_000, help="tokens to read (default: %(default)s)")


def contents(args: argparse.Namespace) -> dict[str, Any]:
    """What `hfsae.dashboard.gather` wants, of the arguments."""
    return {
        "texts": args.text,
        "labels": args.labels,
        "write": args.write,
        **hub_options(args),
        **measuring_options(args),
    }


def run(args: argparse.Namespace) -> int:
    """Collects what is missing and writes the page."""
    from hfsae.dashboard import make_dashboard

    page = make_dashboard(args.path, args.output, **contents(args))
    print(f"wrote {page} ({_size(page):.1f} MB)")
    return 0


def _size(page: Path) -> float:
    """Megabytes of the page and of the pieces that belong to it."""
    return sum(path.stat().st_size for path in [page, *page.parent.glob("features-*.js")]) / 1e6
