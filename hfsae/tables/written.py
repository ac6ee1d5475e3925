"""`featurize`: writes the features of a dataset shard by shard, and goes on where it was interrupted."""

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast, get_args

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hfsae.analysis.document_sequences import Documents, DocumentSequenceReader, as_dataset
from hfsae.analysis.feature_reader import FeatureReader
from hfsae.analysis.weights import chosen_features
from hfsae.attachment import refuse_swapped
from hfsae.autoencoder import SparseAutoencoder
from hfsae.data.document_column import column_names
from hfsae.data.tokenizer_identity import tokenizer_sha256
from hfsae.differences import differences
from hfsae.folders import can_be_file, can_be_folder
from hfsae.functional.precision import own_precision
from hfsae.identity import Identity
from hfsae.in_use import in_use
from hfsae.processes import refuse_no_process
from hfsae.progress import token_bar
from hfsae.storage import appearing_whole, in_bytes
from hfsae.tables.choices import Level, Reduce
from hfsae.tables.rows import DocumentRows, Rows, TokenRows
from hfsae.tables.table import ABOUT, SHARDS, FeatureTable, read_about

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

# What a table has of its own, so that no column of the dataset may be called so.
_OWN = {"document", "features", "values", "n_tokens", "position", "token_id"}
# The folder beside a single file in which its shards wait for the last one.
_WAITING = ".shards"


class _Shard(NamedTuple):
    """Some consecutive documents of the dataset: their number, the row of the first one, and whether more follow."""

    number: int
    first: int
    documents: "Dataset"
    is_last: bool


@own_precision()
def featurize(
    sae: SparseAutoencoder,
    model: PreTrainedModel,
    tokenizer: "PreTrainedTokenizerBase",
    documents: Documents,
    output: str | Path,
    *,
    level: Level = "document",
    reduce: Reduce = "max",
    features: Sequence[int] | Tensor | None = None,
    columns: Sequence[str] = (),
    text_column: str | None = None,
    context_length: int | None = None,
    batch_size: int = 32,
    bf16: bool = False,
    documents_per_shard: int = 2_000,
    text: Mapping[str, Any] | None = None,
    rank: int = 0,
    world_size: int = 1,
    disable_tqdm: bool = False,
) -> FeatureTable | None:
    """Writes the features of every document of a dataset, or of every token, as sparse rows of parquet.

    Memory grows with `documents_per_shard`, not with the dataset. What was interrupted goes on: shards that are there
    are not read again. Tokens that the SAE's config leaves out do not count.

    Args:
        sae: The SAE.
        model: Its language model.
        tokenizer: Its tokenizer.
        documents: Texts in a list, or a dataset of texts, conversations or token ids; streams too.
        output: A file that ends in .parquet, or a folder of such files; several processes need a folder.
        level: One row a document or a token.
        reduce: How a document's value comes from those of its tokens. `"max"`; `"mean"`, over all tokens that count;
            `"count"` of the tokens on which the feature fires. `"last"` is the value on the last token that counts.
            Rows of tokens have no use for it.
        features: The features that are written; None for all.
        columns: Columns of the dataset that are carried along, such as ids and labels.
        text_column: The column of documents; None finds it.
        context_length: Tokens that the model sees at once; None takes the config's.
        batch_size: Sequences per run of the model.
        bf16: Whether a float32 model runs in bfloat16, as `collect_features` takes it.
        documents_per_shard: Documents whose rows are in memory together, and whose work an interruption can cost.
        text: What the dataset is, in values that JSON can hold; the table remembers it.
        rank: This process; it writes the shards r, r + world_size, ...
        world_size: The number of processes that write one folder.
        disable_tqdm: Whether to show no progress bar.

    Returns:
        The table; None where other processes have not yet written their shards.

    Raises:
        ValueError, TypeError: If an option is impossible, the SAE does not fit the model, or there is no document.
        FileExistsError: If `output` holds another table; says in what they differ.
        OSError: If the disk will not hold the table, judged by its first shard, which stays.

    Example:
        >>> table = featurize(sae, model, tokenizer, load_text("data.jsonl"), "features.parquet")  # doctest: +SKIP
        >>> table.to_csr().shape  # doctest: +SKIP
        (1000, 12288)
    """
    refuse_swapped(sae, model)
    output = Path(output)
    is_file = output.suffix == ".parquet" and not output.is_dir()
    _check(level, reduce, output, is_file, documents_per_shard)
    _check_processes(rank, world_size, output, is_file)
    _check_text(text)
    dataset = as_dataset(documents)
    _check_columns(column_names(dataset), columns)
    chosen = None if features is None else chosen_features(sae, features).unique()
    pieces = DocumentSequenceReader(sae.config, model, tokenizer, context_length=context_length, batch_size=batch_size)
    contents = pieces.contents(dataset, text_column)
    reader = FeatureReader(sae, model, chosen, bf16=bf16)
    about = {
        "level": level,
        "reduce": reduce if level == "document" else None,
        "n_features": sae.config.n_features,
        "features": None if chosen is None else chosen.tolist(),
        "hook_point": sae.config.hook_point,
        "base_model": sae.config.base_model,
        **Identity.of(sae).record(),
        "tokenizer_sha256": tokenizer_sha256(tokenizer),
        "context_length": pieces.context_length,
        "text_column": contents.column,
        "columns": list(columns),
        "documents_per_shard": documents_per_shard,
        # Tables of older versions have no word of it.
        **({"model_precision": reader.model_precision} if bf16 else {}),
        "text": dict(text) if text is not None else None,
    }
    folder = output.with_name(output.name + _WAITING) if is_file else output
    read = sorted({*contents.columns, *columns})
    n_documents = len(dataset) if isinstance(dataset, Sized) else None
    shards = _shards(dataset.select_columns(read), documents_per_shard)
    first = next(shards)
    if is_file and output.exists():
        return _same(output, about, chain([first], shards))
    is_whole = True
    held = in_use(folder) if world_size == 1 else nullcontext()  # several processes write files of their own
    with held, token_bar("features", None, disable=disable_tqdm) as bar:
        for shard in chain([first], shards):
            folder.mkdir(parents=True, exist_ok=True)
            file = folder / SHARDS.replace("*", f"{shard.number:05d}")
            told = about | {"shard": shard.number, "is_last": shard.is_last, "documents_sha256": _digest(shard)}
            if file.exists():
                _check_same(file, told)
            elif shard.number % world_size != rank:
                is_whole = False
            else:
                _write(file, _read(shard, reader, pieces, about, contents.column, bar), shard, columns, told)
                _check_disk(file, shard, n_documents, twice=is_file)
    if not is_whole and not _is_whole(folder):
        return None
    if is_file:
        _join(folder, output)
    return FeatureTable(output)


def _check(level: str, reduce: str, output: Path, is_file: bool, documents_per_shard: int) -> None:
    for name, given, choices in (("level", level, get_args(Level)), ("reduce", reduce, get_args(Reduce))):
        if given not in choices:
            raise ValueError(f"{name} is {given!r}, expected one of {', '.join(map(repr, choices))}.")
    if documents_per_shard < 1:
        raise ValueError(f"documents_per_shard must be positive, got {documents_per_shard}.")
    if not is_file and output.suffix and not output.is_dir():
        raise ValueError(f"output is {output}: expected a name that ends in .parquet, or a folder.")
    (can_be_file if is_file else can_be_folder)(output)


def _check_processes(rank: int, world_size: int, output: Path, is_file: bool) -> None:
    refuse_no_process(rank, world_size)
    if is_file and world_size > 1:
        raise ValueError(f"several processes write a folder of files: name one in place of the file {output}.")


def _check_text(text: Mapping[str, Any] | None) -> None:
    try:
        json.dumps(None if text is None else dict(text))
    except TypeError as error:
        raise TypeError(f"text is {text!r}, expected values that JSON can hold: {error}.") from error


def _check_columns(there: Sequence[str], wanted: Sequence[str]) -> None:
    if isinstance(wanted, str):
        raise TypeError(f"columns is {wanted!r}, expected a list of names: [{wanted!r}].")
    if missing := [name for name in wanted if name not in there]:
        raise ValueError(f"the dataset has no column {missing[0]!r}; it has {', '.join(map(repr, there))}.")
    if taken := sorted(_OWN & set(wanted)):
        raise ValueError(f"a table has a column {taken[0]!r} of its own: rename that of the dataset first.")


def _shards(dataset: Any, size: int) -> Iterator[_Shard]:
    """The documents in parts of `size`, each a dataset of its own; the last one knows that it is.

    Raises:
        ValueError: If there is no document.
    """
    from datasets import Dataset

    number, waiting = 0, None
    for rows in dataset.with_format(None).iter(batch_size=size):
        part = cast(Dataset, Dataset.from_dict(rows, features=dataset.features))
        if waiting is not None:
            yield _Shard(number, number * size, waiting, False)
            number += 1
        waiting = part
    if waiting is None:
        raise ValueError("the dataset has no document: nothing is written.")
    yield _Shard(number, number * size, waiting, True)


def _digest(shard: _Shard) -> str:
    """What tells these documents, and what is carried along of them, from others."""
    rows: Any = shard.documents.with_format("arrow")[:]
    return hashlib.sha256(repr(rows.to_pylist()).encode()).hexdigest()


def _digest_of_all(digests: Iterable[str]) -> str:
    """What tells the documents of a table in one file from others, from those of its shards."""
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _read(
    shard: _Shard,
    reader: FeatureReader,
    pieces: DocumentSequenceReader,
    about: Mapping[str, Any],
    column: str,
    bar: Any,
) -> Rows:
    """The rows of a shard's documents."""
    n_features = about["n_features"]
    if about["level"] == "token":
        rows: DocumentRows | TokenRows = TokenRows(n_features)
    else:
        rows = DocumentRows(len(shard.documents), n_features, about["reduce"])
    for batch in pieces.batches(shard.documents, text_column=column):
        rows.add(batch, reader.read(batch.tokens), 0)
        bar.update(int(batch.tokens.keep.sum()))
    return rows.rows()


def _write(file: Path, rows: Rows, shard: _Shard, columns: Sequence[str], about: Mapping[str, Any]) -> None:
    """Writes a shard whole or not at all."""
    import pyarrow
    import pyarrow.parquet as parquet

    offsets = torch.nn.functional.pad(rows.per_row.cumsum(0), (1, 0)).int().numpy()
    carried = shard.documents.select_columns(list(columns)).with_format("arrow")[:] if columns else None
    table: dict[str, Any] = {"document": (rows.document + shard.first).numpy()}
    table |= {name: values.int().numpy() for name, values in rows.more.items()}
    if carried is not None:
        table |= {name: carried[name].take(pyarrow.array(rows.document.numpy())) for name in columns}
    table |= {
        "features": pyarrow.ListArray.from_arrays(offsets, rows.features.int().numpy()),
        "values": pyarrow.ListArray.from_arrays(offsets, rows.values.numpy()),
    }
    made = pyarrow.table(table).replace_schema_metadata({ABOUT: json.dumps(dict(about)).encode()})
    with appearing_whole(file) as beside:
        parquet.write_table(made, beside, compression="zstd")


def _check_disk(file: Path, shard: _Shard, n_documents: int | None, *, twice: bool) -> None:
    """Refuses to go on where the rest would not fit, as the first shard tells it.

    Args:
        file: The shard that was written.
        shard: What it holds.
        n_documents: Of the whole dataset; None where nobody knows.
        twice: Whether all shards are joined into one file afterwards.
    """
    if n_documents is None:
        return
    left = n_documents - shard.first - len(shard.documents)
    size = file.stat().st_size
    needed = size * left / len(shard.documents)
    if twice:
        needed += size * n_documents / len(shard.documents)
    free = shutil.disk_usage(file.parent).free
    if needed > free:
        raise OSError(
            f"{file.parent} has {in_bytes(free)} free, but about {in_bytes(int(needed))} of features are still to be "
            "written: free some space and call it again, it goes on; or write fewer features."
        )


def _is_whole(folder: Path) -> bool:
    """Whether all shards are there, whoever wrote them."""
    numbers = {(about := read_about(file))["shard"]: about["is_last"] for file in folder.glob(SHARDS)}
    return any(numbers.values()) and set(numbers) == set(range(len(numbers)))


def _join(folder: Path, output: Path) -> None:
    """Puts shards together as one file, a few rows in memory at a time, and removes them."""
    import pyarrow
    import pyarrow.parquet as parquet

    shards = sorted(folder.glob(SHARDS))
    abouts = [read_about(shard) for shard in shards]
    digest = _digest_of_all(about["documents_sha256"] for about in abouts)
    about = abouts[0] | {"shard": 0, "is_last": True, "documents_sha256": digest}
    # A column of a stream may begin with rows that have no value in it, and so no type.
    schema = pyarrow.unify_schemas([parquet.read_schema(shard) for shard in shards], promote_options="permissive")
    schema = schema.with_metadata({ABOUT: json.dumps(about).encode()})
    with appearing_whole(output) as beside, parquet.ParquetWriter(beside, schema, compression="zstd") as writer:
        for shard in shards:
            for batch in parquet.ParquetFile(shard).iter_batches():
                writer.write_batch(batch.cast(schema))
    shutil.rmtree(folder)


def _same(output: Path, about: Mapping[str, Any], shards: Iterable[_Shard]) -> FeatureTable:
    """The table that is there already.

    Raises:
        FileExistsError: If it is another one.
    """
    digest = _digest_of_all(_digest(shard) for shard in shards)
    _check_same(output, {**about, "shard": 0, "is_last": True, "documents_sha256": digest})
    return FeatureTable(output)


def _check_same(file: Path, about: Mapping[str, Any]) -> None:
    there, now = read_about(file), json.loads(json.dumps(dict(about)))
    if "settings" not in there:
        del now["settings"]  # of an older version, which knew none
    differing = differences(there, now)
    if differing:
        raise FileExistsError(
            f"{file} is of another table: {'; '.join(differing)}. Choose another output, or remove that one first."
        )
