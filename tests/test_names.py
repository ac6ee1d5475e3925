"""One word for one thing: no two modules of the package have one name, and no two public things."""

import ast
from collections import defaultdict
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "hfsae"
COMMANDS = PACKAGE / "cli"  # A file is called as its command, and offers `run`.
REFERENCE = PACKAGE / "functional/reference.py"  # The plain formula of a thing has the name of that thing.
# What several modules of a folder offer because it is what that folder's table calls.
INTERFACES = {PACKAGE / "interop": {"fits", "read", "recognises", "write"}}
FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path.parent != COMMANDS]


def several(found: dict[str, set[Path]]) -> dict[str, list[str]]:
    """Names that stand at more than one place, with the places."""
    return {name: sorted(map(str, places)) for name, places in found.items() if len(places) > 1}


def test_no_two_modules_have_one_name():
    modules: dict[str, set[Path]] = defaultdict(set)
    for path in FILES:
        if path.stem != "__init__":
            modules[path.stem].add(path)
    assert several(modules) == {}


def test_no_two_public_classes_or_functions_have_one_name():
    things: dict[str, set[Path]] = defaultdict(set)
    for path in FILES:
        for node in ast.parse(path.read_text()).body:
            if not isinstance(node, ast.ClassDef | ast.FunctionDef) or node.name.startswith("_"):
                continue
            if path != REFERENCE and node.name not in INTERFACES.get(path.parent, ()):
                things[node.name].add(path)
    assert several(things) == {}
