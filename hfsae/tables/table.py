"""`FeatureTable`: sparse rows of features on disk, and what they are of."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hfsae.storage import DamagedFileError

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset
    from scipy.sparse import csr_array

ABOUT = b"hfsae"
"""The key of a parquet file's metadata under which a table says what it is, as JSON."""
SHARDS = "features-*.parquet"
"""What the files of a table in a folder are called."""


class FeatureTable:
    """A table that `featurize` wrote: a parquet file, or a folder of them.

    Every row has `document` (the row of the dataset), `features` (a list of indices, ascending) and `values` (as many
    numbers). Rows of documents also have `n_tokens`, rows of tokens `position` and `token_id`. Then come the columns
    of the dataset that were carried along.

    Args:
        path: The file or folder.

    Attributes:
        about: What the rows are of: `level`, `reduce`, `n_features`, `hook_point`, `base_model`, `weights_sha256`,
            `settings`, `features`, `columns`, and more.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If the file is no such table, or the folder lacks a part of it.

    Example:
        >>> table = FeatureTable("features.parquet")  # doctest: +SKIP
        >>> table.to_csr().shape  # doctest: +SKIP
        (1000, 12288)
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._files = [self.path] if self.path.is_file() else sorted(self.path.glob(SHARDS))
        if not self._files:
            raise FileNotFoundError(f"{self.path} holds no table of features: `hfsae featurize` writes one.")
        abouts = [read_about(file) for file in self._files]
        there = {about.pop("shard") for about in abouts}
        missing = set(range(max(there) + 1)) - there
        ends = [about.pop("is_last") for about in abouts]
        for about in abouts:
            about.pop("documents_sha256")  # of each part its own
        if self.path.is_dir() and (missing or not any(ends)):
            what = f"its parts {', '.join(map(str, sorted(missing)))}" if missing else "its end"
            raise ValueError(
                f"{self.path} lacks {what}: call `hfsae featurize` again as before, and it goes on where it ended."
            )
        if any("settings" not in about for about in abouts):  # an older version, which knew none, began it
            for about in abouts:
                about.pop("settings", None)
        if any(about != abouts[0] for about in abouts):
            raise ValueError(f"{self.path} holds parts of several tables: write each into a folder of its own.")
        self.about: dict[str, Any] = abouts[0]

    def __len__(self) -> int:
        import pyarrow.parquet as parquet

        return sum(parquet.read_metadata(file).num_rows for file in self._files)

    def __repr__(self) -> str:
        about = self.about
        of = about["level"] if about["level"] == "token" else f"document, {about['reduce']}"
        chosen = "" if about["features"] is None else f"{len(about['features']):,} of "
        return f"FeatureTable({len(self):,} rows of {chosen}{about['n_features']:,} features, one a {of}; {self.path})"

    def batches(self) -> Iterator["pyarrow.RecordBatch"]:
        """The rows in order, some at a time: memory for a table of any length."""
        import pyarrow.parquet as parquet

        for file in self._files:
            yield from parquet.ParquetFile(file).iter_batches()

    def to_arrow(self) -> "pyarrow.Table":
        """The rows as a table of pyarrow, which `polars.from_arrow` takes."""
        import pyarrow
        import pyarrow.parquet as parquet

        parts = [parquet.read_table(file) for file in self._files]
        return pyarrow.concat_tables(parts, promote_options="permissive")

    def to_pandas(self) -> Any:
        """The rows as a frame of pandas."""
        return self.to_arrow().to_pandas()

    def to_dataset(self) -> "Dataset":
        """The rows as a dataset, read from the disk as they are asked for."""
        from datasets import Dataset, Features

        if not len(self):  # which from_parquet takes for a mistake
            rows = self.to_arrow()
            return Dataset.from_dict(rows.to_pydict(), features=Features.from_arrow_schema(rows.schema))
        return Dataset.from_parquet([str(file) for file in self._files])  # type: ignore[return-value]

    def to_csr(self) -> "csr_array":
        """The values as a sparse matrix of scipy, (rows, n_features) float32: 8 bytes an entry.

        Raises:
            ImportError: If scipy is not installed.
        """
        try:
            from scipy.sparse import csr_array
        except ImportError as error:
            raise ImportError("a sparse matrix needs scipy: pip install scipy") from error
        counts, features, values = [], [], []
        for batch in self.batches():
            counts.append(np.diff(batch["features"].offsets.to_numpy()))
            features.append(batch["features"].flatten().to_numpy())
            values.append(batch["values"].flatten().to_numpy())
        empty = np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.float32)
        per_row, columns, entries = (
            np.concatenate(parts) if parts else none
            for parts, none in zip((counts, features, values), empty, strict=True)
        )
        starts = np.concatenate([[0], np.cumsum(per_row, dtype=np.int64)])
        return csr_array((entries, columns, starts), shape=(len(per_row), self.about["n_features"]))


def read_about(file: Path) -> dict[str, Any]:
    """What a parquet file of a table says of itself.

    Raises:
        DamagedFileError: If it is no whole parquet file.
        ValueError: If `featurize` did not write it.
    """
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        metadata = parquet.read_schema(file).metadata or {}
    except pyarrow.ArrowInvalid as error:
        raise DamagedFileError(f"{file} is no whole parquet file ({error}): write it again.") from error
    if ABOUT not in metadata:
        raise ValueError(f"{file} is no table of features: `hfsae featurize` writes one.")
    return json.loads(metadata[ABOUT])
