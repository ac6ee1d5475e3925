"""Labelled documents: sets that every machine with Python and torch has, and any dataset with a column of labels."""

import ast
import hashlib
import logging
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hfsae.data import find_document_column, load_text
from hfsae.data.document_column import column_names
from hfsae.data.stdlib_text import stdlib_documents

logger = logging.getLogger(__name__)

_PASSAGE = 600  # characters of a passage
_LEAST = 100  # characters of one that a file of Python or prose must have at least
_OF_A_SOURCE = 4  # passages of one document at most, so that no long one outweighs the others
_OF_A_CLASS = 240  # passages of a class at most
_CLASSES = 12  # classes at most, the largest
_SOURCES = 10  # documents from which a class is dealt whole
_TRAIN = 0.7
# A passage of which half the runs of eight words stand in another one is a copy of it.
_RUN, _COPIED = 8, 0.5
_LABELS = ("string", "large_string", "int", "uint", "bool")  # what the types of labels begin with


@dataclass(frozen=True)
class LabelledDocument:
    """A passage of a document.

    Attributes:
        text: The passage.
        label: What it is.
        source: The document that it is from.
        is_train: Whether probes are fitted on it; they are measured on the others.
    """

    text: str
    label: str
    source: str
    is_train: bool


@dataclass(frozen=True)
class DocumentSet:
    """Labelled passages, of each class some to fit on and some to measure on.

    Attributes:
        name: What the labels tell.
        documents: The passages.
    """

    name: str
    documents: tuple[LabelledDocument, ...]

    @property
    def classes(self) -> list[str]:
        """The labels, in order."""
        return sorted({document.label for document in self.documents})


def code_or_docstring() -> DocumentSet:
    """Passages of Python's standard library that are code without docstrings, or docstrings alone."""

    def labelled() -> Iterator[tuple[str, str, str]]:
        for path, text in _stdlib():
            docstrings, code = _parted(text)
            yield path, "docstring", docstrings
            yield path, "code", code

    return make_set("code or docstring", labelled())


def package_of_a_file() -> DocumentSet:
    """Files of Python's standard library, and which of its packages each is from."""
    files = [(path, path.split("/")[0], text) for path, text in _stdlib() if "/" in path]
    sizes = Counter(package for _, package, _ in files)
    return make_set("package of a file", (one for one in files if sizes[one[1]] >= _SOURCES))


def language_of_a_file() -> DocumentSet:
    """Python of the standard library, C++ headers of torch, and what installed packages say of themselves."""
    found = [(path, "Python", text) for path, text in _stdlib()]
    spec = find_spec("torch")
    headers = Path(spec.origin).parent / "include" if spec is not None and spec.origin else Path()
    for path in sorted(headers.rglob("*.h"))[::8]:
        found.append((path.relative_to(headers).as_posix(), "C++", path.read_text(encoding="utf-8", errors="replace")))
    for distribution in sorted(distributions(), key=lambda one: one.metadata["Name"] or ""):
        about: Any = distribution.metadata
        found.append((str(about["Name"]), "prose", about.get_payload() or about["Description"] or ""))
    return make_set("language of a file", found)


BUILT_IN: dict[str, Callable[[], DocumentSet]] = {
    "code or docstring": code_or_docstring,
    "language of a file": language_of_a_file,
    "package of a file": package_of_a_file,
}
"""The sets that need no download, by name."""


def labelled_dataset(
    name: str,
    label_column: str,
    *,
    config: str | None = None,
    split: str | None = None,
    text_column: str | None = None,
) -> DocumentSet:
    """A dataset whose rows have a text and a label: files, or a dataset of the Hub.

    Args:
        name: As for `load_text`.
        label_column: The column of labels.
        config: Configuration of the dataset.
        split: Its split; None: `"train"`. Probes are measured on a share of the same split.
        text_column: The column of texts; None finds it.

    Raises:
        ValueError: If there is no such column, there are no labels, or only one. Likewise if labels are neither text
            nor whole numbers nor yes and no.
        FileNotFoundError: If there is no such dataset.
    """
    dataset: Any = load_text(name, config=config, split=split or "train")
    if label_column not in (columns := column_names(dataset)):
        raise ValueError(f"{name} has no column {label_column!r} of labels; it has {', '.join(map(repr, columns))}.")
    others = dataset.remove_columns(label_column) if text_column is None else dataset
    contents = find_document_column(others, text_column)
    if contents.kind != "text":
        raise ValueError(f"{name} holds no texts, but {contents.kind}: expected a column of texts.")
    feature = dataset.features[label_column]
    names = getattr(feature, "names", None)
    if not str(getattr(feature, "dtype", "")).startswith(_LABELS):
        raise ValueError(
            f"the column {label_column!r} of {name} holds {feature}: expected one label a row, as text, whole "
            "number or yes and no."
        )
    rows = zip(dataset[contents.column], dataset[label_column], strict=True)
    labelled = (
        (str(number), str(names[label] if names else label), text)
        for number, (text, label) in enumerate(rows)
        if label is not None and not (names and label == -1) and text  # -1 is a ClassLabel that is not known
    )
    return make_set(f"{label_column} of {Path(name).name}", labelled, shortest=1)


def make_set(name: str, labelled: Iterable[tuple[str, str, str]], *, shortest: int = _LEAST) -> DocumentSet:
    """Cuts documents into passages, and deals them to two sides.

    Of equal documents of one label the first counts, so that none is on both sides. Equal documents of several labels
    are left out, since no probe can tell them. A document is on one side, by a hash of its name. Where a class has
    fewer than ten documents these are cut: the first seven tenths of its passages are to fit on. A passage to measure
    on is left out where it is nearly one that is fitted on, such as a licence. That is so where half of its runs of
    eight words stand there.

    Args:
        name: What the labels tell.
        labelled: (name of the document, label, text) of each.
        shortest: Characters that a passage needs. What is left at a document's end needs a hundred always.

    Raises:
        ValueError: If there is no label, one class only, or no class of two has text on both sides.
    """
    by_class: dict[str, list[tuple[str, list[str]]]] = defaultdict(list)
    for source, label, text in _once(name, labelled):
        if passages := _passages(text, shortest):
            by_class[label].append((source, passages))
    if len(by_class) < 2:
        only = f", {next(iter(by_class))!r}" if by_class else ""
        raise ValueError(f"{name}: {len(by_class)} classes{only}; a probe needs two at least, with some text each.")
    largest = sorted(by_class, key=lambda label: (-sum(len(one[1]) for one in by_class[label]), label))[:_CLASSES]
    documents: list[LabelledDocument] = []
    for label in sorted(largest):
        documents += _dealt(label, by_class[label])
    documents = _on_one_side(name, documents)
    whole = {label for label in largest if len({one.is_train for one in documents if one.label == label}) == 2}
    if len(whole) < 2:
        raise ValueError(f"{name}: too little text to fit on some of a class and to measure on the rest of it.")
    if left_out := sorted(set(by_class) - whole):
        shown = ", ".join(map(repr, left_out[:5])) + (", ..." if len(left_out) > 5 else "")
        logger.warning("%s: left out, since others are larger or too little text is theirs: %s", name, shown)
    return DocumentSet(name, tuple(one for one in documents if one.label in whole))


def _once(name: str, labelled: Iterable[tuple[str, str, str]]) -> Iterator[tuple[str, str, str]]:
    """Documents of which no two have one text; blanks around it do not count."""
    every = [one for one in labelled if one[2].strip()]
    labels: dict[str, set[str]] = defaultdict(set)
    for _, label, text in every:
        labels[text.strip()].add(label)
    seen, again, several = set(), 0, 0
    for source, label, text in every:
        if len(labels[text.strip()]) > 1:
            several += 1
        elif text.strip() in seen:
            again += 1
        else:
            seen.add(text.strip())
            yield source, label, text
    if again or several:
        logger.warning(
            "%s: left out: %d documents that are as another one of their label, and %d whose text has several labels.",
            *(name, again, several),
        )


def _on_one_side(name: str, documents: list[LabelledDocument]) -> list[LabelledDocument]:
    """Passages without those to measure on that are copies of one to fit on, or nearly.

    Different documents begin with one licence, or are generated from one template with other names in it.
    """
    fitted_on: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for number, one in enumerate(documents):
        for run in _runs(one.text) if one.is_train else ():
            fitted_on[run].append(number)

    def is_copied(text: str) -> bool:
        runs = _runs(text)
        shared = Counter(number for run in runs for number in fitted_on.get(run, ()))
        return max(shared.values(), default=0) >= _COPIED * len(runs)

    kept = [one for one in documents if one.is_train or not is_copied(one.text)]
    if len(kept) < len(documents):
        again = len(documents) - len(kept)
        logger.warning("%s: left out: %d passages to measure on that are near copies of fitted ones.", name, again)
    return kept


def _runs(text: str) -> set[tuple[str, ...]]:
    """Every run of some words one after another; of a text with fewer all of them."""
    words = re.findall(r"\w+", text) or [text.strip()]
    return {tuple(words[start : start + _RUN]) for start in range(max(1, len(words) - _RUN + 1))}


def _dealt(label: str, sources: list[tuple[str, list[str]]]) -> list[LabelledDocument]:
    generator = random.Random(0)
    found: list[LabelledDocument] = []
    if len(sources) >= _SOURCES:
        for source, passages in sources:
            chosen = generator.sample(passages, min(len(passages), _OF_A_SOURCE))
            found += [LabelledDocument(text, label, source, _is_train(source)) for text in chosen]
    else:
        for source, passages in sources:
            end = round(len(passages) * _TRAIN)
            # One after another they resemble each other: what lies between the sides belongs to neither.
            parts = [(passages[: max(end - 1, 1)], True), (passages[end:], False)]
            found += [
                LabelledDocument(text, label, f"{source}:{number}", is_train)
                for part, is_train in parts
                for number, text in enumerate(part)
            ]
    if len(found) > _OF_A_CLASS:
        found = generator.sample(found, _OF_A_CLASS)
    return found


def _is_train(source: str) -> bool:
    return int.from_bytes(hashlib.sha256(source.encode()).digest()[:6], "big") / 2**48 < _TRAIN


def _passages(text: str, shortest: int) -> list[str]:
    """Whole lines, of some hundred characters together; a line that is longer is cut."""
    passages: list[str] = []
    waiting = ""
    for line in text.splitlines(keepends=True):
        waiting += line
        while len(waiting) >= _PASSAGE:
            passages.append(waiting[:_PASSAGE] if len(line) > _PASSAGE else waiting)
            waiting = waiting[_PASSAGE:] if len(line) > _PASSAGE else ""
    if len(waiting.strip()) >= (_LEAST if passages else shortest):
        passages.append(waiting)
    return [passage for passage in passages if passage.strip()]


def _stdlib() -> Iterator[tuple[str, str]]:
    for split in ("train", "held_out"):
        for document in stdlib_documents(split):
            yield document["path"], document["text"]


def _parted(text: str) -> tuple[str, str]:
    """The docstrings of a module, and the rest of it."""
    try:
        tree = ast.parse(text)
    except SyntaxError:  # a file of the standard library that shows a fault
        return "", text
    lines = text.splitlines(keepends=True)
    kept, docstrings = [True] * len(lines), []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        first = node.body[0] if node.body else None
        if (found := ast.get_docstring(node)) and first is not None and first.end_lineno:
            docstrings.append(found)
            kept[first.lineno - 1 : first.end_lineno] = [False] * (first.end_lineno - first.lineno + 1)
    return "\n\n".join(docstrings), "".join(line for line, stays in zip(lines, kept, strict=True) if stays)
