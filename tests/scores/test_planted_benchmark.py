import json

import pytest

from benchmarks.planted import main

ARCHITECTURES = {"standard", "topk", "abs_topk", "matching_pursuit", "batch_topk", "matryoshka", "jumprelu", "gated"}


@pytest.mark.slow
def test_the_command_trains_every_architecture_and_goes_on_where_it_ended(tmp_path, capsys):
    command = ["--seeds", "0", "1", "--active", "4", "--tokens", "8192", "--output", str(tmp_path)]
    main(command)
    first = capsys.readouterr().out
    files = sorted(tmp_path.glob("*.json"))
    assert [file.name for file in files] == [f"seed{seed}-active4-tokens8192.json" for seed in (0, 1)]
    found = json.loads(files[0].read_text())["found"]
    assert found.keys() == ARCHITECTURES and all(0.3 < one["mcc"]["value"] < 1 for one in found.values())
    assert found["topk"]["l0"] <= 4 and "\nmcc: " in first
    times = [file.stat().st_mtime_ns for file in files]
    files[1].unlink()
    main(command)
    # The run that was there is not made again, the other one comes out as before.
    assert files[0].stat().st_mtime_ns == times[0] and files[1].stat().st_mtime_ns != times[1]
    assert capsys.readouterr().out == first
