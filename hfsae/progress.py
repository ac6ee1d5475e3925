"""Progress bars: one look for all of hfsae's own, and silence for those of the libraries below."""

import logging
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
from tqdm.auto import tqdm
from transformers.utils import logging as transformers_logging

# For a terminal that says it has none, as some containers have it: tqdm would draw nothing.
_COLUMNS, _ROWS = 80, 24


def token_bar(description: str, total: int | None, *, done: int = 0, disable: bool = False) -> tqdm:
    """A bar that counts tokens; close it, or use it as a context, before the next one begins.

    Args:
        description: What goes on: `"training"`.
        total: Tokens in all; None where nobody knows.
        done: Tokens that an earlier run did, which the rate leaves out.
        disable: Whether nothing is shown.
    """
    return bar(description, total, done=done, unit="tokens", disable=disable)


def bar(description: str, total: int | None, *, unit: str, done: int = 0, disable: bool = False) -> tqdm:
    """The same for whatever is counted.

    Args:
        description: As for `token_bar`, like the others.
        total: How many in all.
        unit: What is counted: `"features"`.
        done: How many an earlier run did.
        disable: Whether nothing is shown.
    """
    has_size = shutil.get_terminal_size((0, 0)).columns > 0
    return tqdm(
        desc=description,
        total=total,
        initial=done,
        unit=f" {unit}",
        unit_scale=True,
        dynamic_ncols=has_size,
        ncols=None if has_size else _COLUMNS,
        nrows=None if has_size else _ROWS,
        disable=disable,
    )


class LogsAboveBars(logging.StreamHandler):
    """A handler that writes a line above the bars that are drawn, which would stand in the midst of one otherwise."""

    def emit(self, record: logging.LogRecord) -> None:
        """Writes a record, and draws the bars again."""
        with tqdm.external_write_mode(file=self.stream):
            super().emit(record)


@contextmanager
def quietly() -> Iterator[None]:
    """Without the bars of transformers and datasets, which would tear hfsae's own apart.

    They show the loading of weights, and the mapping and filtering of rows. Downloads from the Hub keep their bars.
    """
    datasets = sys.modules.get("datasets")  # what nobody has imported shows no bar
    weights_shown, downloads_shown = transformers_logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    rows_shown = datasets is not None and not datasets.are_progress_bars_disabled()
    if weights_shown:
        transformers_logging.disable_progress_bar()
        if downloads_shown:  # transformers switches them off too
            enable_progress_bars()
    if datasets is not None and rows_shown:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if weights_shown:
            transformers_logging.enable_progress_bar()
        if datasets is not None and rows_shown:
            datasets.enable_progress_bars()
