"""What the documents of a dataset are: texts, conversations or token ids, told by the type of their column."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

DocumentKind = Literal["text", "chat", "ids"]

# What messages of conversations are made of: as chat templates read them, and as ShareGPT wrote them.
MESSAGE_KEYS = (("role", "content"), ("from", "value"))

_CALLED: dict[DocumentKind, str] = {"text": "texts", "chat": "conversations", "ids": "token ids"}
# Columns of whole numbers that stand beside those of token ids.
_BESIDE_IDS = {"attention_mask", "token_type_ids", "special_tokens_mask", "position_ids", "labels"}
# The first of these columns is meant where several could be, if it holds documents of the kind.
_USUAL: dict[str, DocumentKind] = {"input_ids": "ids", "text": "text", "messages": "chat"}
# What chat templates call the tools that an assistant has, and so do datasets of their calls.
_TOOLS = "tools"
_OF_OTHER_THINGS = "lists of other things"
# Rows that are looked at where a dataset does not know the types of its columns.
_FIRST_ROWS = 16


class DocumentColumn(NamedTuple):
    """Which column holds the documents, and what they are.

    Attributes:
        kind: Texts, conversations or token ids.
        column: The column's name.
        mask: The column that marks padding of token ids; None where there is none.
        tools: The column of the tools that the assistant of a conversation has; None where there is none.
    """

    kind: DocumentKind
    column: str
    mask: str | None = None
    tools: str | None = None

    @property
    def beside(self) -> str | None:
        """The column that belongs to the documents, if there is one."""
        return self.mask if self.kind == "ids" else self.tools

    @property
    def columns(self) -> list[str]:
        """All that is read of a row."""
        return [self.column] if self.beside is None else [self.column, self.beside]


def find_document_column(
    dataset: "Dataset | IterableDataset", text_column: str | None = None, *, chat: bool | None = False
) -> DocumentColumn:
    """Finds the documents of a dataset.

    Args:
        dataset: Any dataset with named columns.
        text_column: The column of documents. None takes `input_ids`, `text` or `messages`, or else the only column
            that can be one of documents. What `set_format(columns=...)` hides is not taken.
        chat: True wants conversations. None prefers them to other columns where there are any.

    Returns:
        The column and what its type says: strings are texts, lists of whole numbers token ids, lists of messages
        conversations.

    Raises:
        ValueError: If `text_column` is no column of documents, if the choice is not clear, or if conversations are
            wanted and there are none; names the columns.
        TypeError: If it is no dataset.
    """
    refuse_no_dataset(dataset)
    kinds = _kinds(dataset)
    if not kinds:
        raise ValueError("the dataset is empty: it has neither rows nor columns.")
    if text_column is not None:
        if text_column not in kinds:
            raise ValueError(f"{_described(kinds)}; {text_column!r} is not among them: give text_column.")
        found = kinds[text_column]
        if found not in _CALLED and found != "empty":
            raise ValueError(
                f"the column {text_column!r} holds {found}; documents are strings, lists of token ids, or lists of "
                f"messages. {_described(kinds)}."
            )
        column, kind = text_column, found if found in _CALLED else ("chat" if chat else "text")
    else:
        shown = _shown(dataset, kinds)
        column = _found({name: kind for name, kind in kinds.items() if name in shown}, chat)
        kind = kinds[column]
    if chat and kind != "chat":
        raise ValueError(
            f"chat=True, but the column {column!r} holds {_CALLED[kind]}: {_described(kinds)}. Conversations are "  # type: ignore[index]
            "lists of messages with role and content, or from and value."
        )
    mask = "attention_mask" if kind == "ids" and "attention_mask" in kinds else None
    # Types that other things have, such as the names of tools alone, are nothing that a chat template reads.
    tools = _TOOLS if kind == "chat" and kinds.get(_TOOLS) in ("text", _OF_OTHER_THINGS) else None
    return DocumentColumn(kind, column, mask, tools)  # type: ignore[arg-type]


def _found(kinds: Mapping[str, str], chat: bool | None) -> str:
    """The column of documents that nobody named."""
    of_kind = {kind: [name for name, of in kinds.items() if of == kind] for kind in _CALLED}
    of_kind["ids"] = [name for name in of_kind["ids"] if name not in _BESIDE_IDS]
    if chat or (chat is None and of_kind["chat"]):
        usual, others = ["messages"], of_kind["chat"]
    else:
        usual, others = list(_USUAL), [name for names in of_kind.values() for name in names]
    for name in usual:
        if kinds.get(name) == _USUAL[name]:
            return name
    if len(others) == 1:
        return others[0]
    wanted = "of conversations" if chat else "of documents"
    which = f"several could be the one {wanted}" if others else f"none is one {wanted}"
    hint = " (or chat=True for conversations)" if of_kind["chat"] and chat is False else ""
    raise ValueError(f"{_described(kinds)}; {which}: give text_column{hint}.")


def _described(kinds: Mapping[str, str]) -> str:
    told = ", ".join(f"{name!r} ({_CALLED.get(kind, kind)})" for name, kind in kinds.items())  # type: ignore[call-overload]
    return f"the dataset has the columns {told}"


def column_names(dataset: "Dataset | IterableDataset") -> list[str]:
    """The dataset's columns, read from its first row where a stream does not know them."""
    return list(dataset.column_names or next(iter(dataset.take(1)), {}))


def refuse_no_dataset(dataset: object, called: str = "the text") -> None:
    """Refuses what is no dataset, such as a list, a file's name, or all splits of a dataset at once.

    Args:
        dataset: What is given.
        called: What the message calls it.

    Raises:
        TypeError: With what was given, and how a dataset is made of it.
        ValueError: As `refuse_transform`.
    """
    from datasets import Dataset, IterableDataset

    if isinstance(dataset, Dataset | IterableDataset):
        return refuse_transform(dataset, called)
    splits = ", ".join(map(repr, dataset)) if isinstance(dataset, Mapping) else ""
    how = (
        f"choose one of its splits ({splits})"
        if splits
        else "make a dataset of a list with Dataset.from_dict({'text': texts})"
    )
    raise TypeError(f"{called} is a {type(dataset).__name__}: expected a Dataset or an IterableDataset; {how}.")


def _shown(dataset: "Dataset | IterableDataset", columns: Iterable[str]) -> Iterable[str]:
    """The columns that rows have when the user looks at them: `set_format` may hide some."""
    told = getattr(dataset, "format", None)
    return columns if told is None or told["output_all_columns"] else told["columns"]


def refuse_transform(dataset: object, called: str) -> None:
    """Refuses a dataset whose rows a function of the user's makes when they are read: they are read without it.

    Args:
        dataset: A dataset.
        called: What the message calls it.

    Raises:
        ValueError: If it has a transform.
    """
    if getattr(dataset, "format", {}).get("type") == "custom":
        raise ValueError(
            f"{called} has a transform (set_transform, with_transform), and would be read without it: make its rows "
            "with map, or take the transform off with reset_format()."
        )


def _kinds(dataset: "Dataset | IterableDataset") -> dict[str, str]:
    """What each column holds: a `DocumentKind`, `"empty"` where no value was seen, or else a description."""
    features = dataset.features
    kinds = {name: _kind_of_feature(feature) for name, feature in (features or {}).items()}
    unknown = [name for name, kind in kinds.items() if kind is None]
    if features is None or unknown:
        dataset = dataset if features is None else dataset.select_columns(unknown)
        rows: Any = dataset.with_format(None)
        for row in islice(rows, _FIRST_ROWS):  # of a shorter table, datasets 4.0 refuses to `take` so many
            kinds |= {name: kinds.get(name) or _kind_of_value(value) for name, value in row.items()}
            if all(kinds.values()):
                break  # as few rows as possible: a stream may be one that cannot be read again
    return {name: kind or _USUAL.get(name, "empty") for name, kind in kinds.items()}


def _kind_of_feature(feature: Any) -> str | None:
    """What a column of this type holds; None where its values must be looked at."""
    dtype, inner = getattr(feature, "dtype", None), getattr(feature, "feature", None)
    if inner is None:
        if dtype in ("null", None) or type(feature).__name__ == "Json":
            return None
        return "text" if "string" in dtype else dtype
    if isinstance(inner, Mapping):
        return "chat" if any(set(keys) <= inner.keys() for keys in MESSAGE_KEYS) else _OF_OTHER_THINGS
    dtype = getattr(inner, "dtype", None)
    if dtype in ("null", None) or type(inner).__name__ == "Json":
        return None if getattr(inner, "feature", None) is None else "lists of lists"
    return "ids" if "int" in dtype else f"lists of {dtype}"


def _kind_of_value(value: Any) -> str | None:
    """What a value says of its column; None if it is missing or empty."""
    if value is None or (not isinstance(value, str) and hasattr(value, "__len__") and not len(value)):
        return None
    if isinstance(value, str):
        return "text"
    if isinstance(value, np.ndarray | torch.Tensor):
        value = value.tolist()
    if not isinstance(value, Sequence) or isinstance(value, bytes):
        return type(value).__name__
    first = value[0]
    if isinstance(first, Integral) and not isinstance(first, bool):
        return "ids"
    if isinstance(first, Mapping):
        return "chat" if any(set(keys) <= first.keys() for keys in MESSAGE_KEYS) else _OF_OTHER_THINGS
    return f"lists of {type(first).__name__}"
