"""Draws who imports whom in the package: docs/import_graph.svg. Run it after a part of the package moved.

    python docs/scripts/import_graph.py

A part is a file or a folder of hfsae/. Its floor is one above the highest part that it imports, inside of functions
and for type checking too. Lines go down to a part; a line that other lines imply is left out. The script fails if
parts import each other in a circle.
"""

import ast
from collections.abc import Iterator
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "docs" / "import_graph.svg"
_BOX, _GAP, _ROW, _PER_ROW = (118, 26), 14, 74, 9

Edges = dict[str, set[str]]


def imports() -> Edges:
    """What each part imports: when it is loaded, inside of functions, and for type checking."""
    edges: Edges = {}
    for path in sorted((ROOT / "hfsae").rglob("*.py")):
        part = path.relative_to(ROOT / "hfsae").parts[0].removesuffix(".py")
        if part != "__init__":
            edges.setdefault(part, set()).update(set(_own(ast.parse(path.read_text()))) - {part})
    return edges


def _own(tree: ast.AST) -> Iterator[str]:
    """The parts of hfsae that a piece of code imports, wherever it does so."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "hfsae":
            modules = [f"hfsae.{alias.name}" for alias in node.names]
        else:
            modules = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        for part in (module.split(".")[1] for module in modules if module.startswith("hfsae.")):
            place = ROOT / "hfsae" / part
            if place.is_dir() or place.with_suffix(".py").exists():
                yield part


def floors(edges: Edges) -> dict[str, int]:
    """The floor of every part, from 0.

    Raises:
        ValueError: If parts import each other in a circle; names them.
    """
    found: dict[str, int] = {}
    while rest := edges.keys() - found.keys():
        ready = {part for part in rest if edges[part] <= found.keys()}
        if not ready:
            raise ValueError(f"there is a circle among {', '.join(sorted(rest))}.")
        found |= {part: max((found[name] + 1 for name in edges[part]), default=0) for part in ready}
    return found


def _not_implied(edges: Edges) -> Edges:
    """The imports that no chain of other imports implies."""

    def below(part: str) -> set[str]:
        return edges[part].union(*(below(name) for name in edges[part]))

    reach = {part: below(part) for part in edges}
    implied = {part: set().union(*(reach[name] for name in edges[part])) for part in edges}
    return {part: edges[part] - implied[part] for part in edges}


def drawn() -> str:
    """The picture, as SVG."""
    edges = imports()
    floor = floors(edges)
    rows: list[list[str]] = []
    for level in range(max(floor.values()), -1, -1):
        parts = sorted(part for part in floor if floor[part] == level)
        rows += [parts[i : i + _PER_ROW] for i in range(0, len(parts), _PER_ROW)]
    width = 60 + max(len(row) for row in rows) * (_BOX[0] + _GAP)
    at: dict[str, tuple[float, float]] = {}
    for i, row in enumerate(rows):
        left = 60 + (width - 60 - len(row) * (_BOX[0] + _GAP)) / 2
        at |= {part: (left + j * (_BOX[0] + _GAP), 12 + i * _ROW) for j, part in enumerate(row)}
    lines = [_line(at[part], at[name]) for part, names in _not_implied(edges).items() for name in sorted(names)]
    boxes = [_box(part, *place) for part, place in sorted(at.items())]
    labels = {level: min(at[part][1] for part in at if floor[part] == level) for level in set(floor.values())}
    texts = [f'<text class="floor" x="6" y="{y + 17:.0f}">{level}</text>' for level, y in sorted(labels.items())]
    height = 12 + len(rows) * _ROW
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" role="img">',
            f"<title>The parts of hfsae on {max(floor.values()) + 1} floors, and who imports whom</title>",
            "<style>svg{background:#fff}rect{fill:#eef;stroke:#557}text{font:12px sans-serif;text-anchor:middle;"
            "fill:#223}path{fill:none;stroke:#bbc}.floor{text-anchor:start;"
            "fill:#889}</style>",
            *lines,
            *boxes,
            *texts,
            "</svg>\n",
        ]
    )


def _line(start: tuple[float, float], end: tuple[float, float]) -> str:
    x1, y1, x2, y2 = start[0] + _BOX[0] / 2, start[1] + _BOX[1], end[0] + _BOX[0] / 2, end[1]
    if y2 < y1:
        y1, y2 = start[1], end[1] + _BOX[1]
    bend = (y1 + y2) / 2
    return f'<path d="M{x1:.0f} {y1:.0f}C{x1:.0f} {bend:.0f} {x2:.0f} {bend:.0f} {x2:.0f} {y2:.0f}"/>'


def _box(part: str, x: float, y: float) -> str:
    middle = x + _BOX[0] / 2
    return (
        f'<rect x="{x:.0f}" y="{y:.0f}" width="{_BOX[0]}" height="{_BOX[1]}" rx="4"/>'
        f'<text x="{middle:.0f}" y="{y + 17:.0f}">{escape(part)}</text>'
    )


if __name__ == "__main__":
    PICTURE.write_text(drawn())
