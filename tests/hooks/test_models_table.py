"""The table of `docs/models.md` says what the code offers."""

import pytest
import transformers

from tests.hooks.models_table import table, written


@pytest.mark.slow
def test_the_table_is_what_the_code_offers_today():
    release = written().partition("\n")[0]
    if transformers.__version__ not in release:
        pytest.skip(f"the table was written {release.rstrip(':').lower()}")
    assert table() == written(), "stale: run python -m tests.hooks.models_table"
