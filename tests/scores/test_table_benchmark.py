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
