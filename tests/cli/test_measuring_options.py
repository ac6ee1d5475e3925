"""Options that several commands have are keywords of what the commands call, with the same defaults."""

import inspect
from dataclasses import fields

import pytest

from hfsae.cli.measuring_options import Collecting, Reading
from hfsae.dashboard import gather
from hfsae.saved.kept_features import SavedFeatures


@pytest.mark.parametrize(("options", "called"), [(Reading, gather), (Collecting, SavedFeatures)])
def test_options_are_keywords_with_the_same_defaults(options, called):
    taken = inspect.signature(called).parameters
    given = options().keywords()
    assert given == {name: taken[name].default for name in given}
    assert len(given) == len(fields(options))
