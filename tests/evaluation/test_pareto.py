from hypothesis import given
from hypothesis import strategies as st

from hfsae.evaluation.pareto import fronts, pareto_front

rows = st.lists(st.tuples(st.integers(1, 20), st.integers(0, 20)), max_size=12).map(
    lambda pairs: [{"name": str(i), "l0": l0, "loss_recovered": value} for i, (l0, value) in enumerate(pairs)]
)


@given(rows)
def test_who_is_on_the_front_is_beaten_by_nobody_and_who_is_not_by_somebody(given_rows: list[dict]):
    front = pareto_front(given_rows, "loss_recovered")

    def beaten(row: dict) -> bool:
        return any(
            other["l0"] <= row["l0"]
            and other["loss_recovered"] >= row["loss_recovered"]
            and (other["l0"], other["loss_recovered"]) != (row["l0"], row["loss_recovered"])
            for other in given_rows
        )

    for row in given_rows:
        if row["name"] in front:
            assert not beaten(row)
        else:  # equals are named once
            assert beaten(row) or any(
                (other["l0"], other["loss_recovered"]) == (row["l0"], row["loss_recovered"])
                for other in given_rows
                if other["name"] in front
            )


def test_rows_without_figures_are_passed_over_and_places_stand_apart():
    table = [
        {"name": "a", "hook_point": "one", "l0": 8, "loss_recovered": None, "explained_variance": 0.5},
        {"name": "b", "hook_point": "one", "l0": 9, "loss_recovered": 0.9, "explained_variance": 0.4},
        {"name": "c", "hook_point": "two", "l0": 9, "loss_recovered": 0.1, "explained_variance": 0.1},
    ]
    assert fronts(table) == {
        "one": {"loss_recovered": ["b"], "explained_variance": ["a"]},
        "two": {"loss_recovered": ["c"], "explained_variance": ["c"]},
    }
