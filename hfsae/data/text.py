"""Where text comes from: a dataset by name or path."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from hfsae.data.local_files import BUILDERS, LocalText, SampleBy, is_text_file
from hfsae.data.stdlib_text import StdlibSplit, stdlib_dataset

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

STDLIB = "python-stdlib"


def load_text(
    name: str | Path,
    *,
    config: str | None = None,
    split: str | None = "train",
    streaming: bool = False,
    data_files: str | Sequence[str] | None = None,
    revision: str | None = None,
    sample_by: SampleBy | None = None,
) -> "Dataset | IterableDataset":
    """Loads a text dataset, one document a row.

    Args:
        name: A dataset on the Hub (`"Salesforce/wikitext"`), a file, a folder of files, or a folder written by
            `Dataset.save_to_disk`. Files are .txt, .json, .jsonl, .csv, .parquet or .arrow, also compressed
            (.jsonl.gz). `"python-stdlib"` is the sources of the Python that runs, with the splits `"train"` and
            `"held_out"`.
        config: The dataset's configuration (`"wikitext-2-raw-v1"`), where it has several.
        split: The split to load. Local files without split names in them are `"train"`; slices (`"train[:1000]"`)
            work when `streaming` is False. None takes the only split there is, or `"test"` where there are several.
        streaming: Read while iterating instead of preparing the whole dataset first.
        data_files: Which files of a Hub dataset or of a local folder to take, as paths or glob patterns inside it.
        revision: The Hub dataset's branch, tag or commit.
        sample_by: What a document of a .txt file is. `"passage"`, the default for local files: whole paragraphs
            gathered to about 2,000 characters. `"line"`; `"paragraph"`, up to an empty line. `"document"`: the whole
            file, which cannot be shared among processes or split into parts.

    Returns:
        A `datasets.Dataset`, or a `datasets.IterableDataset` when `streaming` is True.

    Raises:
        FileNotFoundError: If neither a local path nor a Hub dataset of this name can be reached.
        ValueError: If the split is unknown, all files are empty, or `sample_by` does not apply. Likewise if a folder
            mixes kinds of files, a file is of an unknown kind, or one is broken. That names the line; a stream tells
            it while iterating.

    Example:
        >>> load_text("python-stdlib", split="held_out").column_names
        ['text', 'path']
    """
    if sample_by is not None and sample_by not in get_args(SampleBy):
        raise ValueError(f"sample_by is {sample_by!r}, expected one of {', '.join(map(repr, get_args(SampleBy)))}")
    if split is None:
        split = only_split(str(name), config=config, data_files=data_files, revision=revision)
    if name == STDLIB:
        dataset = stdlib_dataset(cast(StdlibSplit, split))
        return dataset.to_iterable_dataset() if streaming else dataset
    path = Path(name).expanduser()
    if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
        return _load_saved(path, split, streaming)
    if path.exists():
        local = LocalText.at(path, data_files)
        named = {"name": config} if local.tells_splits else {}
        return local.load(sample_by, split=split, streaming=streaming, **named)
    return _load_from_hub(
        str(name), sample_by, name=config, split=split, streaming=streaming, data_files=data_files, revision=revision
    )


def only_split(
    name: str | Path,
    *,
    config: str | None = None,
    data_files: str | Sequence[str] | None = None,
    revision: str | None = None,
) -> str:
    """The split of a text of which none is named: the only one, or that for measuring where there are several.

    Args:
        name: As `load_text` takes it, like the others.
        config: The dataset's configuration.
        data_files: Which of its files.
        revision: The Hub dataset's branch, tag or commit.

    Raises:
        FileNotFoundError: If there is no such text.
        ValueError: If it has several splits and none is called `"test"`.

    Example:
        >>> only_split("python-stdlib")
        'held_out'
    """
    from datasets import get_dataset_split_names

    path = Path(name).expanduser()
    if name == STDLIB:
        return "held_out"
    if (path / "dataset_dict.json").is_file():
        splits = json.loads((path / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
    elif (path / "dataset_info.json").is_file() or (path.exists() and not LocalText.at(path, data_files).tells_splits):
        splits = ["train"]
    else:
        with _explained(str(name)):
            source = str(path if path.is_dir() else name)
            splits = get_dataset_split_names(source, config, data_files=data_files, revision=revision)
    if len(splits) == 1:
        return splits[0]
    if "test" not in splits:
        raise ValueError(
            f"{name} has the splits {', '.join(map(repr, splits))}: name one (--dataset_split, or split=...)."
        )
    return "test"


def is_builder(name: str) -> bool:
    """Whether a name is a kind of files (`"json"`), whose `data_files` are paths of this machine or addresses."""
    return name in BUILDERS and not Path(name).exists()


def text_commit(name: str | Path, revision: str | None = None) -> str | None:
    """The commit of a dataset on the Hub; None for a local one, and where the Hub cannot be asked.

    Args:
        name: As `load_text` takes it.
        revision: Branch, tag or commit.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if name == STDLIB or Path(name).expanduser().exists():
        return None
    # What every error of the transport derives from: httpx's or httpx2's, whichever huggingface_hub was built on.
    transport: type[Exception] = HfHubHTTPError.__mro__[1]  # type: ignore[assignment]
    try:
        return HfApi().dataset_info(str(name), revision=revision).sha
    except (OSError, HFValidationError, transport):
        return None  # loading says what is wrong, in full


def _load_saved(folder: Path, split: str, streaming: bool) -> "Dataset | IterableDataset":
    from datasets import DatasetDict, load_from_disk

    dataset = load_from_disk(str(folder))
    if isinstance(dataset, DatasetDict):
        if split not in dataset:
            raise ValueError(f"{folder} has no split {split!r}; it has {', '.join(map(repr, dataset))}")
        dataset = dataset[split]
    return dataset.to_iterable_dataset() if streaming else dataset


def _load_from_hub(source: str, sample_by: SampleBy | None, **options: Any) -> "Dataset | IterableDataset":
    from datasets import load_dataset

    if sample_by is not None:
        if sample_by == "passage":
            raise ValueError("sample_by='passage' is for local .txt files")
        options["sample_by"] = sample_by
    with _explained(source):
        return load_dataset(source, **options)


@contextmanager
def _explained(source: str) -> Iterator[None]:
    """Says where a text was looked for that is not a local file or folder.

    Raises:
        FileNotFoundError: If it cannot be on the Hub, or is not.
    """
    from datasets.exceptions import DatasetNotFoundError

    path = Path(source).expanduser()
    if path.exists():
        yield
        return
    if source.startswith((".", "/", "~")) or source.count("/") > 1 or is_text_file(path):
        raise FileNotFoundError(f"no file or folder {path.absolute()}")
    try:
        yield
    except (DatasetNotFoundError, ConnectionError) as error:
        raise FileNotFoundError(
            f"no text {source!r}: there is no file or folder {path.absolute()}, and the Hub gave no dataset of that "
            f"name ({error}). Check the name, the network and, for a private or gated dataset, `hf auth login`"
        ) from error
