import json

import pytest

from benchmarks.table import Cell, Place, best_rate, main
from hfsae import SAE


@pytest.mark.slow
def test_the_command_makes_what_is_missing_and_prints_what_is_there(tmp_path, capsys):
    part = ["--l0", "8", "--seeds", "0", "1", "--who", "hfsae", "--architectures", "topk", "batch_topk"]
    sizes = ["--tokens", "8192", "--batch_tokens", "1024", "--eval_tokens", "1500", "--score_tokens", "0"]
    command = [*part, *sizes, "--expansion_factor", "2", "--output", str(tmp_path)]
    main([*command, "--table"])
    assert "| topk |" not in capsys.readouterr().out and not list(tmp_path.iterdir())
    main(command)
    first = capsys.readouterr().out
    files = sorted(tmp_path.glob("embedded/l0-8/*/figures.json"))
    assert [file.parent.name for file in files] == [
        f"hfsae-{architecture}-default-seed{seed}" for architecture in ("batch_topk", "topk") for seed in (0, 1)
    ]
    figures = json.loads(files[0].read_text())
    assert 4 < figures["l0"] < 16 and 0.1 < figures["explained_variance"] < 1 and figures["kl"] > 0
    assert "| topk | hfsae | default | 2 | 8.0 |" in first
    sae = SAE.from_pretrained(files[0].parent)
    assert sae.config.hook_point == "resid_post.1" and sae.config.context_length == 128
    # What was there is not made again, what is missing is; a table alone makes nothing.
    times = [file.stat().st_mtime_ns for file in files]
    files[3].unlink()
    main([*command, "--table"])
    assert "| topk | hfsae | default | 1 | 8.0 |" in capsys.readouterr().out and not files[3].exists()
    main(command)
    assert [file.stat().st_mtime_ns for file in files[:3]] == times[:3] and files[3].is_file()
    scores = [[line.rsplit("|", 2)[0] for line in out.splitlines()] for out in (first, capsys.readouterr().out)]
    assert scores[0] == scores[1]  # but for the seconds


def test_the_searched_rate_explains_most_of_what_it_is_chosen_on(tmp_path, args_of_a_table):
    cell = Cell(Place("embedded", "examples/tiny_lm", "python-stdlib", "resid_post.1"), 8, "hfsae", "topk", 0)
    explained = {"default": 0.5, "0.0001": 0.1, "0.0003": 0.2, "0.001": 0.4, "0.003": 0.7, "0.01": 0.6}
    for rate, value in explained.items():
        folder = tmp_path / "embedded" / "l0-8" / f"hfsae-topk-{rate}-seed0"
        folder.mkdir(parents=True)
        name = "figures.json" if rate == "default" else "search.json"
        (folder / name).write_text(json.dumps({"calibration": {"explained_variance": value}}))
    assert best_rate(cell, args_of_a_table) == 0.003


@pytest.fixture
def args_of_a_table(tmp_path):
    from argparse import Namespace

    return Namespace(output=tmp_path, table=False)


def test_a_model_without_its_folder_is_refused_before_anything_is_made(tmp_path):
    with pytest.raises(SystemExit, match="smollm2 needs .* pass --smollm2 and --books"):
        main(["--models", "smollm2", "--output", str(tmp_path / "table")])
    assert not (tmp_path / "table").exists()
