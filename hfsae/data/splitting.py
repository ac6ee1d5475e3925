"""The split of a text into disjoint parts: by documents, and where there are too few of them within each."""

import hashlib
import json
import logging
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

from hfsae.data.document_column import DocumentColumn, find_document_column
from hfsae.progress import quietly

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

    AnyDataset = TypeVar("AnyDataset", Dataset, IterableDataset)
else:
    AnyDataset = TypeVar("AnyDataset")

logger = logging.getLogger(__name__)

Part = Literal["train", "calibration", "evaluation"]

# The share of the documents that each part gets when nobody says otherwise.
DEFAULT_SHARES: dict[str, float] = {"train": 0.96, "calibration": 0.02, "evaluation": 0.02}

# Of fewer documents one would be too large a share: they are cut instead.
_LEAST_DEALT_WHOLE = 20
# Characters within which a cut looks for white space.
_LONGEST_WORD = 100


def split_documents(
    dataset: AnyDataset,
    part: Part,
    *,
    shares: Mapping[str, float] | None = None,
    text_column: str | None = None,
    chat: bool = False,
) -> AnyDataset:
    """One part of a dataset; the parts share no document, however often a document is repeated.

    A document belongs to a part by the SHA-256 of its content alone. So the answer is the same for a stream and for a
    table, in every order and on every machine. Equal documents are never on two sides.

    Where a part would stay empty there are few documents. They are then dealt in the order of their hashes, so that
    each part has at least one. Fewer than 20 are cut instead, each at the shares (conversations are not). So a few
    books, or one long log, give their ends to calibration and evaluation.

    Args:
        dataset: A map-style or a streaming dataset. Its first documents are read, of a short one all.
        part: The part to keep.
        shares: The expected share of the documents of each part; by default `DEFAULT_SHARES` (96 % train, 2 %
            calibration, 2 % evaluation). They must add up to at most 1; what is left over belongs to no part.
        text_column: The column that holds the documents (text, token ids or messages). None finds it.
        chat: Whether documents are conversations.

    Returns:
        A dataset of the same kind.

    Raises:
        ValueError: If `part` is unknown, the shares are impossible, or there is not enough text for every part.
    """
    shares = DEFAULT_SHARES if shares is None else shares
    if part not in get_args(Part) or part not in shares:
        raise ValueError(f"part is {part!r}, expected one of {', '.join(map(repr, shares))}")
    if set(shares) - set(get_args(Part)) or min(shares.values()) < 0 or sum(shares.values()) > 1 + 1e-9:
        raise ValueError(
            f"shares are {dict(shares)}, expected shares of at least 0 that add up to at most 1, of {Part}"
        )
    if not shares[part]:
        raise ValueError(f"the share of {part!r} is 0: no document belongs to it.")
    # Always in the same order, so that the order in which the shares were written does not move documents.
    names = [name for name in get_args(Part) if shares.get(name)]
    ends = dict(zip(names, accumulate(shares[name] for name in names), strict=True))
    bounds = {name: (end - shares[name], end) for name, end in ends.items()}
    contents = find_document_column(dataset, text_column, chat=chat)
    try:
        return _part(dataset, part, contents, names, bounds)
    except UnicodeDecodeError as error:
        # JSON files are not asked whether they are UTF-8 before somebody wants the text.
        shown = reprlib.repr(bytes(error.object[max(0, error.start - 20) : error.end + 20]))
        raise ValueError(
            f"a document in the column {contents.column!r} is not UTF-8: {shown}. Convert the file, or leave it out."
        ) from error


def _part(
    dataset: Any, part: Part, contents: DocumentColumn, names: list[Part], bounds: Mapping[str, tuple[float, float]]
) -> Any:
    few = _few_documents(dataset, contents.column, bounds)
    if few is None:
        start, end = bounds[part]
        with quietly():
            return dataset.filter(partial(_is_between, start=start, end=end), input_columns=[contents.column])
    if len(few) >= _LEAST_DEALT_WHOLE or (contents.kind == "chat" and len(few) >= len(names)):
        chosen = _dealt(few, {name: end - start for name, (start, end) in bounds.items()})[part]
        logger.info("%d documents are few: %d of them are the part for %s", len(few), len(chosen), part)
        with quietly():
            return dataset.filter(partial(_is_one_of, chosen=chosen), input_columns=[contents.column])
    if not few or contents.kind == "chat":
        what = f"{len(few)} conversations" if few else "no text at all"
        raise ValueError(f"{what} cannot be split into {', '.join(names)}: give more text, or text for each of them.")
    logger.info("%d documents are few: each is cut, and a share of it is the part for %s", len(few), part)
    return _cut(dataset, contents, *bounds[part], part)


def _few_documents(
    dataset: "Dataset | IterableDataset", column: str, bounds: Mapping[str, tuple[float, float]]
) -> list[int] | None:
    """The hashes of all different documents, ascending, where a part has none; None where every part has one."""
    found, empty = set(), dict(bounds)
    for document in _documents(dataset, column):
        if not _has_content(document):
            continue
        number = _hash(document)
        found.add(number)
        empty = {name: (start, end) for name, (start, end) in empty.items() if not start <= number / 2**48 < end}
        if not empty:
            return None
    return sorted(found)


def _documents(dataset: "Dataset | IterableDataset", column: str) -> Iterator[Any]:
    for row in dataset.select_columns([column]).with_format(None):
        yield row[column]  # type: ignore[call-overload, index]


def _has_content(document: Any) -> bool:
    return bool(document.strip() if isinstance(document, str) else document)


def _hash(document: Any) -> int:
    """The first 48 bits of the SHA-256 of a document's content."""
    content = document if isinstance(document, str) else json.dumps(document, sort_keys=True)
    return int.from_bytes(hashlib.sha256(content.encode("utf-8", errors="surrogatepass")).digest()[:6], "big")


def _is_between(document: Any, start: float, end: float) -> bool:
    return start <= _hash(document) / 2**48 < end


def _is_one_of(document: Any, chosen: set[int]) -> bool:
    return _hash(document) in chosen


def _dealt(hashes: Sequence[int], shares: Mapping[str, float]) -> dict[str, set[int]]:
    """Documents in the order of their hashes, for every part its share of them and at least one."""
    counts = {name: max(1, round(len(hashes) * share)) for name, share in shares.items()}
    largest = max(counts, key=lambda name: counts[name])
    counts[largest] -= max(0, sum(counts.values()) - len(hashes))
    ends = dict(zip(counts, accumulate(counts.values()), strict=True))
    return {name: set(hashes[ends[name] - counts[name] : ends[name]]) for name in counts}


def _cut(dataset: Any, contents: DocumentColumn, start: float, end: float, part: str) -> Any:
    """The same share of every document.

    Raises:
        ValueError: If nothing is left of any.
    """
    options: dict[str, Any] = {} if dataset.features is None else {"features": dataset.features}
    section = partial(_section, columns=contents.columns, start=start, end=end)
    with quietly():
        cut = dataset.map(section, **options)
    if not any(_has_content(document) for document in _documents(cut, contents.column)):
        raise ValueError(
            f"the documents are too few and too short to keep a share of {end - start:g} for {part}: give more text, "
            "a larger share, or text of its own for it."
        )
    return cut


def _section(row: Mapping[str, Any], columns: Sequence[str], start: float, end: float) -> dict[str, Any]:
    """What lies between two shares of a document's length, words left whole."""
    document = row[columns[0]]
    if document is None:
        return {}
    first, last = (_place(document, share) for share in (start, end))
    return {column: row[column][first:last] for column in columns}


def _place(document: Any, share: float) -> int:
    """Where a share of a document ends."""
    if share > 1 - 1e-9:
        return len(document)
    place = int(len(document) * share + 1e-6)
    if isinstance(document, str) and place:
        after = document[place : place + _LONGEST_WORD]
        place += next((i for i, character in enumerate(after) if character.isspace()), 0)
    return place
