"""Which text: one value that says it whole, for training, caches, records, cards and whoever measures again."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from hfsae.data.splitting import DEFAULT_SHARES, Part, split_documents
from hfsae.data.text import STDLIB, is_builder, load_text, only_split, text_commit
from hfsae.folders import in_full


def _told(title: str, default: Any = None, *, argument: str | None = None) -> Any:
    """A field, what cards call it, and the training argument that says it where that has another name."""
    return field(default=default, metadata={"title": title, "argument": argument})


@dataclass(frozen=True, kw_only=True)
class TextSource:
    """All that decides which text is read, and how its documents are understood.

    Args:
        dataset: As `load_text` takes it; None for a dataset that came as an object, which nobody can load again.
        dataset_config: Configuration of the dataset.
        dataset_revision: Branch, tag or commit of the dataset on the Hub.
        data_files: Which of its files.
        split: Its split; None: the only one, or `"test"` where there are several.
        streaming: Whether it is read while iterating.
        part: The part of its documents (`split_documents`); None for all of them.
        calibration_share: The share of its documents that is kept for calibration.
        evaluation_share: The share that is kept for evaluation.
        text_column: The column of documents; None finds it.
        chat: Whether documents are conversations.
        assistant_only: Of conversations, whether only what the assistant says counts.
        mix_documents: Whether documents are joined to fill blocks.

    Example:
        >>> TextSource(dataset="data.jsonl", split="train", part="evaluation").shares["evaluation"]
        0.02
    """

    dataset: str | None = _told("text", argument="dataset_name")
    dataset_config: str | None = _told("configuration")
    dataset_revision: str | None = _told("revision of the text")
    data_files: str | tuple[str, ...] | None = _told("files", argument="dataset_data_files")
    split: str | None = _told("split", argument="dataset_split")
    streaming: bool = _told("streamed", False)
    part: Part | None = _told("part of the documents")
    calibration_share: float = _told("share kept for calibration", DEFAULT_SHARES["calibration"])
    evaluation_share: float = _told("share kept for evaluation", DEFAULT_SHARES["evaluation"])
    text_column: str | None = _told("column")
    chat: bool = _told("conversations", False)
    assistant_only: bool = _told("only what the assistant says", True)
    mix_documents: bool = _told("documents joined", True)

    def __post_init__(self) -> None:
        if isinstance(self.data_files, list):  # as JSON and YAML have it
            object.__setattr__(self, "data_files", tuple(self.data_files))

    @classmethod
    def of_arguments(cls, arguments: Mapping[str, Any], **changes: Any) -> "TextSource":
        """The text that training arguments name.

        Args:
            arguments: Arguments by name: all of them, or as many as differ from their defaults.
            **changes: Fields that are otherwise.
        """
        told = {name: arguments[argument] for name, argument in ARGUMENTS.items() if argument in arguments}
        return cls(**{"split": "train", **told, **changes})

    @classmethod
    def of_record(cls, record: Mapping[str, Any], arguments: Mapping[str, Any]) -> "TextSource":
        """The text that a record of metrics names.

        Args:
            record: What `recorded` gave, with or without other things; or a record of an earlier version, which told
                dataset, configuration, split and part alone.
            arguments: The training arguments beside it, which tell the rest of an earlier version's.
        """
        told = {name: record[name] for name in ARGUMENTS.keys() | {"part"} if record.get(name) is not None}
        if "mix_documents" in record:
            return cls(**told)
        trained = cls.of_arguments(arguments)
        # A text of its own to evaluate on had neither revision nor files; parts were of the text that is trained on.
        of_the_set = (
            {} if told.get("part") is None else _chosen(trained, "dataset_revision", "data_files", "streaming")
        )
        return cls(**of_the_set | _chosen(trained, *READING) | told)

    def recorded(self) -> dict[str, Any]:
        """The source as plain values, less what is None; of a text on this machine with its absolute path."""
        values = {f.name: getattr(self, f.name) for f in fields(self)} | self._places()
        return {name: _plain(value) for name, value in values.items() if value is not None}

    def _places(self) -> dict[str, Any]:
        """The fields that name files of this machine, in full."""
        if self.dataset is None or self.dataset == STDLIB:
            return {}
        files = self._files
        if files is not None and is_builder(self.dataset):
            files = _path_in_full(files) if isinstance(files, str) else [_path_in_full(file) for file in files]
        return {"dataset": in_full(self.dataset), "data_files": files}

    @property
    def shares(self) -> dict[str, float]:
        """The share of the documents that each part gets."""
        held_out = {"calibration": self.calibration_share, "evaluation": self.evaluation_share}
        return {"train": 1 - self.calibration_share - self.evaluation_share, **held_out}

    @property
    def reading(self) -> dict[str, Any]:
        """How its documents are understood, as `TokenBlocks` takes it."""
        return _chosen(self, *READING)

    def named(self, part: Part | None) -> "TextSource":
        """The same text, another part of it."""
        return replace(self, part=part)

    def resolved(self) -> "TextSource":
        """The same text with what was left open: its split, and its commit on the Hub where that can be reached.

        Raises:
            FileNotFoundError: If there is no such text.
            ValueError: If it has several splits and none is called `"test"`.
        """
        if self.dataset is None:
            return self
        split = self.split or only_split(
            self.dataset, config=self.dataset_config, data_files=self._files, revision=self.dataset_revision
        )
        commit = text_commit(self.dataset, self.dataset_revision)
        return replace(self, split=split, dataset_revision=commit or self.dataset_revision)

    def load(self) -> Any:
        """The dataset with all its documents.

        Raises:
            ValueError, FileNotFoundError: As `load_text`; ValueError too if the text came as an object.
        """
        if self.dataset is None:
            raise ValueError("the text came as an object, without a name to load it by.")
        if self.dataset_revision is not None and Path(self.dataset).expanduser().exists():
            raise ValueError(
                f"{self.dataset} is a file or folder here, and such a text has no revision ({self.dataset_revision}): "
                "leave the revision out, or go to another directory to read the dataset of that name on the Hub."
            )
        return load_text(
            self.dataset,
            config=self.dataset_config,
            split=self.split,
            streaming=self.streaming,
            data_files=self._files,
            revision=self.dataset_revision,
        )

    @property
    def _files(self) -> str | list[str] | None:
        return list(self.data_files) if isinstance(self.data_files, tuple) else self.data_files

    def documents(self, dataset: Any = None) -> Any:
        """The documents of its part.

        Args:
            dataset: The whole text, where it was loaded already; None loads it.

        Raises:
            ValueError, FileNotFoundError: As `load_text` and `split_documents`.
        """
        dataset = self.load() if dataset is None else dataset
        if self.part is None:
            return dataset
        return split_documents(dataset, self.part, shares=self.shares, text_column=self.text_column, chat=self.chat)

    def __str__(self) -> str:
        """Its name, configuration, split and part."""
        told = (self.dataset, self.dataset_config, self.split, self.part)
        return ", ".join(str(part) for part in told if part)


# The training argument that tells each field; the part is none.
ARGUMENTS = {f.name: f.metadata["argument"] or f.name for f in fields(TextSource) if f.name != "part"}
# How documents are understood.
READING = ("text_column", "chat", "assistant_only", "mix_documents")
# What cards call each field, and the values that go without saying.
FIELD_TITLES = {f.name: f.metadata["title"] for f in fields(TextSource)}
DEFAULTS = {f.name: f.default for f in fields(TextSource)}


def refuse_parts_alone(dataset: str | None, dataset_config: str | None, split: str | None) -> None:
    """Refuses a configuration or a split of a dataset that is not named, which nothing would read.

    Raises:
        ValueError: With what is missing.
    """
    if dataset is None and (dataset_config is not None or split is not None):
        part = f"configuration {dataset_config!r}" if dataset_config is not None else f"split {split!r}"
        raise ValueError(f"the {part} is of a dataset, and none is named: name it too (dataset=..., --dataset_name).")


def _path_in_full(path: str) -> str:
    return path if "://" in path else os.path.abspath(path)


def _chosen(source: TextSource, *names: str) -> dict[str, Any]:
    return {name: getattr(source, name) for name in names}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
