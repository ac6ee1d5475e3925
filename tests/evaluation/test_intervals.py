import pytest

from hfsae.evaluation.intervals import Interval, told_apart


def test_a_range_includes_its_ends_and_may_be_open():
    assert 1 in Interval(1, 2) and 2 in Interval(1, 2) and 2.1 not in Interval(1, 2)
    assert -1e9 in Interval(high=0) and 1e9 in Interval() and 0.9 not in Interval(low=1)


@pytest.mark.parametrize(
    ("value", "text", "ends", "told"),
    [
        (0.79996, "0.8", [0.8], "0.79996"),
        (0.8 - 1e-12, "0.8", [None, 0.8], "0.799999999999"),
        (0.8, "0.8", [0.8], "0.8"),
        (0.7, "0.7", [0.8], "0.7"),
        (199.9996, "200", [5.0, 200.0], "199.9996"),
        (1000.2, "1,000", [1000.0], "1000.2"),
        (float("nan"), "nan", [0.8], "nan"),
    ],
)
def test_a_value_has_as_many_digits_as_tell_it_from_an_end(value, text, ends, told):
    assert told_apart(value, text, ends) == told
    assert all(end is None or (float(told.replace(",", "")) < end) == (value < end) for end in ends)
