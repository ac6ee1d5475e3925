"""Positions that were left out, as SAELens' slices say it."""

import pytest

from hfsae.interop.positions import excluded_positions, kept_slice
from hfsae.interop.settings import Settings


def metadata(kept) -> Settings:
    return Settings({"seqpos_slice": kept}, "cfg.json of here")


@pytest.mark.parametrize(
    "kept, length",
    [([5, None], 8), ([5, None], None), ([None], None), (None, 8), ([6], 8), ([2, 6], 8), ([None, -1], 8)]
    + [([-3, None], 8), ([1, 8, 2], 8), ([None, None, -1], 8), ([20, None], 8)],
)
def test_what_a_slice_leaves_out(kept, length):
    expected = set(range(length or 100)) - set(list(range(length or 100))[slice(*(kept or [None]))])
    assert excluded_positions(metadata(kept), length) == sorted(expected)


@pytest.mark.parametrize("excluded", [[], [0], [0, 1, 2], [0, 7], [6, 7], [0, 1, 6, 7], [0, 2, 4, 6], [1, 3, 5, 7]])
def test_slices_go_back(excluded: list[int]):
    kept = kept_slice(excluded, 8)
    assert excluded_positions(metadata(kept), 8) == excluded


def test_what_is_no_slice_is_refused():
    for excluded, length in (([3], 8), ([0, 1, 4], None)):
        with pytest.raises(ValueError, match="SAELens keeps one slice"):
            kept_slice(excluded, length)
    for kept in (5, "all", [1, "x"], [], [0, 8, 0], [0, 1, 2, 3], [True, None]):
        with pytest.raises(ValueError, match="seqpos_slice = .*, expected start, stop and step"):
            excluded_positions(metadata(kept), 8)
    with pytest.raises(ValueError, match="does not say how long a block is: pass context_length="):
        excluded_positions(metadata([0, -1]), None)
