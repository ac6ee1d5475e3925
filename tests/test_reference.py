"""The site's pages: every public name stands on one, and every page is in the site's menu."""

import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PUBLIC = [
    "hfsae",
    *(
        f"hfsae.{part}"
        for part in (
            "analysis",
            "architectures",
            "dashboard",
            "data",
            "evaluation",
            "functional",
            "hooks",
            "hub",
            "interop",
            "training",
        )
    ),
]


def shown() -> dict[str, Any]:
    """What the pages show, by the name that they use."""
    pages = [page.read_text() for page in (DOCS / "reference").glob("*.md")]
    names = [name for page in pages for name in re.findall(r"^::: (\S+)$", page, re.M)]
    assert len(names) == len(set(names)), "a name stands on two pages"
    found = {name: getattr(import_module(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in names}
    for name, one in found.items():
        home = getattr(one, "__module__", "")
        if home.endswith(f".{name.rpartition('.')[2]}"):
            assert name.startswith(home), f"the page would show the module {home}: name what is in it"
    return found


def leaves(menu: Any) -> Iterator[str]:
    if isinstance(menu, str):
        yield menu
    else:
        for entry in menu.values() if isinstance(menu, dict) else menu:
            yield from leaves(entry)


@pytest.mark.parametrize("module", PUBLIC)
def test_every_public_name_stands_on_a_page(module):
    on_pages = shown().values()
    public = import_module(module)
    assert not [name for name in public.__all__ if not any(getattr(public, name) is one for one in on_pages)]


def test_every_part_with_public_names_is_looked_at():
    packages = {
        f"hfsae.{path.parent.name}" for path in (ROOT / "hfsae").glob("*/__init__.py") if "__all__" in path.read_text()
    }
    assert packages | {"hfsae"} == set(PUBLIC)


def test_every_page_is_in_the_menu_once():
    pages = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
    assert pages == sorted(leaves(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
