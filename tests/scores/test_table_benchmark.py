import pytest
from kept import found_line, kept_line

from benchmarks import table


def test_a_line_is_made_once_and_belongs_to_all_that_it_is_of(tmp_path):
    made = iter(range(5))
    file = tmp_path / "new" / "figures.jsonl"
    of = {"place": "embedded", "tokens": 10}
    assert [kept_line(file, of, lambda: {"made": next(made)}) for _ in range(2)] == [{"made": 0}, {"made": 0}]
    assert found_line(file, {**of, "tokens": 20}) is None
    assert kept_line(file, {**of, "tokens": 20}, lambda: {"made": next(made)}) == {"made": 1}
    assert found_line(file, of) == {"made": 0} and len(file.read_text(encoding="utf-8").splitlines()) == 2

    def broken():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kept_line(file, {"place": "books"}, broken)
    assert found_line(file, {"place": "books"}) is None


def test_behind_a_mean_stands_the_noise_of_a_seed_and_an_order_only_where_seeds_leave_one():
    def seeds(*scores: float) -> list[dict[str, object]]:
        return [{"probing": {"value": score, "low": 0.0, "high": 1.0}, "absorption": score} for score in scores]

    assert table._with_noise(seeds(0.5, 0.6), "probing", ".3f") == "0.550 ± 0.071"
    assert table._with_noise(seeds(0.5), "probing", ".3f") == "0.500"
    assert table._with_noise(seeds(), "probing", ".3f") == ""
    far = {"topk": seeds(0.5, 0.52), "gated": seeds(0.3, 0.32)}
    assert list(table.orders(far)) == [
        "* probing: topk 0.510 > gated 0.310 (seeds differ by 0.014, architectures by 0.141)",
        "* absorption: gated 0.310 > topk 0.510 (seeds differ by 0.014, architectures by 0.141)",
    ]
    near = {"topk": seeds(0.5, 0.6), "gated": seeds(0.55, 0.57)}
    assert all("no ranking" in line for line in table.orders(near))
    assert list(table.orders({"topk": seeds(0.5, 0.6)})) == []
    assert list(table.orders({"topk": seeds(0.5), "gated": seeds(0.4)})) == []


@pytest.mark.slow
def test_the_table_is_printed_from_its_figures_where_no_sae_is(tmp_path, capsys):
    figures = str(tmp_path / "figures.jsonl")
    command = ["--figures", figures, "--l0", "8", "--seeds", "0", "1", "--architectures", "topk", "--who", "hfsae"]
    sizes = ["--expansion_factor", "4", "--eval_tokens", "2000", "--score_tokens", "3000"]
    table.main([*command, *sizes, "--tokens", "8192", "--output", str(tmp_path / "here")])
    made = capsys.readouterr().out
    assert "| topk | hfsae | default | 2 | 8.0 |" in made
    table.main([*command, *sizes, "--tokens", "8192", "--output", str(tmp_path / "elsewhere"), "--table"])
    assert capsys.readouterr().out == made and not (tmp_path / "elsewhere").exists()
    # Figures of a run on other tokens are other figures.
    table.main([*command, *sizes, "--tokens", "16384", "--output", str(tmp_path / "elsewhere"), "--table"])
    assert "| hfsae |" not in capsys.readouterr().out
    table.main([*command, *sizes, "--tokens", "16384", "--seeds", "0", "--output", str(tmp_path / "here")])
    assert (
        len({sae.parent for sae in (tmp_path / "here").rglob("model.safetensors")}) == 3
    )  # none took another's place
