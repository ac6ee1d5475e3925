import pytest

from hfsae.processes import all_or_none, has_group, process, refuse_no_process


def test_one_process_alone_is_the_first_of_one():
    assert not has_group() and process() == (0, 1)


@pytest.mark.parametrize(("rank", "world_size"), [(0, 0), (2, 2), (-1, 2), (0, -1)])
def test_what_is_no_process_of_so_many_is_refused(rank: int, world_size: int):
    with pytest.raises(ValueError, match=f"rank is {rank} of world_size={world_size}: expected"):
        refuse_no_process(rank, world_size)
    refuse_no_process(1, 2)


def test_an_error_of_one_process_alone_is_its_own():
    with pytest.raises(KeyError, match="mine"), all_or_none():
        raise KeyError("mine")
