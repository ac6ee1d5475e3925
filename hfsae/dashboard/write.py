"""`write_dashboard`: a collection of features as one HTML file, or as a folder that is loaded in pieces."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from hfsae.analysis import FeatureCollection, FeatureMap, TokenTexts
from hfsae.analysis.plain_values import significant
from hfsae.dashboard.page import render_page
from hfsae.dashboard.page_contents import Comparison, Matches, MeasuredFigure, PageContents
from hfsae.folders import can_be_file, can_be_folder
from hfsae.label_file import SCORES, Label, explanation_of
from hfsae.saving import files_at_once

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PAGE = "index.html"


def can_be_page(output: str | Path) -> None:
    """Raises where a dashboard cannot be written: a folder has the name of its file, or a file that of its folder.

    Raises:
        FileExistsError: Names what is in the way.
    """
    (can_be_file if Path(output).suffix == ".html" else can_be_folder)(output)


def write_dashboard(
    collection: FeatureCollection,
    tokenizer: "PreTrainedTokenizerBase",
    output: str | Path,
    *,
    title: str = "Features",
    labels: Mapping[int, str | Label] | None = None,
    prompts: Sequence[Mapping[str, Any]] = (),
    comparison: Comparison | None = None,
    layout: FeatureMap | None = None,
    measured: Sequence[MeasuredFigure] = (),
    links: Mapping[str, Path] = MappingProxyType({}),
    matches: Sequence[Matches] = (),
) -> Path:
    """Writes the dashboard of a collection. It opens offline, from the disk, and fetches nothing.

    Args:
        collection: What `collect_features` found.
        tokenizer: The tokenizer of the language model.
        output: A file that ends in `.html` holds everything. Anything else is a folder: `index.html`, and the features
            in files of their own that are read when they are needed. That is better for large SAEs and for pages on
            the web.
        title: What the page is called.
        labels: Labels by feature (`read_labels`, or `read_label_records` with what a language model scored).
        prompts: What `read_prompts` found, for the page of prompts.
        comparison: Of a crosscoder: what its sources share, and what each has of a feature.
        layout: Where features stand on the map (`feature_map`); None for a page without one.
        measured: Figures of the SAE, for the overview.
        links: Files that the overview leads to, by what they are called. A page from the disk shows them.
        matches: Features of other SAEs that are the same (`matches_with`); pages of features lead to them.

    Returns:
        The page's path.

    Example:
        >>> collection = collect_features(sae, model, tokenizer, load_text("data.jsonl"))  # doctest: +SKIP
        >>> write_dashboard(collection, tokenizer, "dashboard.html")  # doctest: +SKIP
        PosixPath('dashboard.html')
    """
    output = Path(output)
    can_be_page(output)
    contents = PageContents.of(collection, TokenTexts(tokenizer), comparison, layout)
    folder = output.parent if output.suffix == ".html" else output
    index = contents.index | {
        "title": title,
        "prompts": list(prompts),
        "measured": [asdict(figure) | {"value": significant(figure.value)} for figure in measured],
        "matches": [_matches(one, folder) for one in matches],
        "links": [[name, relative_link(path, folder)] for name, path in links.items()],
        **_labels(labels or {}),
    }
    if output.suffix == ".html":
        _write({output.name: render_page(title, index | {"files": None}, contents.groups)}, output.parent)
        return output
    pieces = {_file_name(number, group): _call(number, group) for number, group in enumerate(contents.groups)}
    page = render_page(title, index | {"files": list(pieces)}, [], files_beside=True)
    # Files appear in the order of their names, so the page comes after what it loads.
    _write(pieces | {PAGE: page}, output)
    for path in output.glob("features-*.js"):
        if path.name not in pieces:
            path.unlink()
    return output / PAGE


def _matches(matches: Matches, folder: Path) -> dict[str, Any]:
    return {
        "name": matches.name,
        "page": None if matches.page is None else relative_link(matches.page, folder),
        "chance": significant(matches.chance),
        "pairs": {str(own): [theirs, significant(cosine)] for own, (theirs, cosine) in matches.pairs.items()},
    }


def relative_link(path: Path, folder: Path) -> str:
    """The address of a file for a page that lies in a folder."""
    return quote(Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix())


def _labels(labels: Mapping[int, str | Label]) -> dict[str, Any]:
    """The labels as `labels.json` has them."""
    given = {feature: label if isinstance(label, Label) else Label(label) for feature, label in labels.items()}
    named = {str(feature): label for feature, label in given.items() if label.text}
    explained = {feature: explanation_of(label) for feature, label in named.items()}
    return {
        "labels": {feature: label.text for feature, label in named.items()},
        "explained": {feature: record for feature, record in explained.items() if record},
        "scores": SCORES,
    }


def _file_name(number: int, group: str) -> str:
    """Named after its content, so that a page never shows a piece of another one."""
    return f"features-{number:05}-{hashlib.sha256(group.encode()).hexdigest()[:12]}.js"


def _call(number: int, group: str) -> str:
    # A script and not JSON: browsers let no page that was opened from the disk read a file, but every page load one.
    return f"receiveFeatures({number}, {json.dumps(group)});\n"


def _write(content: Mapping[str, str], folder: Path) -> None:
    with files_at_once(folder) as beside:
        for name, text in content.items():
            (beside / name).write_text(text, encoding="utf-8", newline="\n")
