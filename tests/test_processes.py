import pytest

from hfsae.processes import all_or_none, has_group, process


def test_one_process_alone_is_the_first_of_one():
    assert not has_group() and process() == (0, 1)


def test_an_error_of_one_process_alone_is_its_own():
    with pytest.raises(KeyError, match="mine"), all_or_none():
        raise KeyError("mine")
