"""`hfsae push`, from the command line's own entry."""

import pytest

from hfsae import SAE, list_saes
from hfsae.cli import main
from tests.hub.conftest import make


def test_a_folder_is_pushed_as_it_was_saved(hub, tmp_path, capsys):
    make().save_pretrained(tmp_path)
    options = ["--subfolder", "a/b", "--tag", "v1", "--license", "mit", "--message", "Mine", "--private"]
    assert main(["push", str(tmp_path), "tester/small", *options]) == 0
    assert "pushed to http" in capsys.readouterr().out
    repo = hub.repo("tester/small")
    assert repo.private and repo.resolve("v1").title == "Mine"
    assert SAE.from_pretrained("tester/small", subfolder="a/b", revision="v1").config.k == 4


def test_a_folder_of_many_is_pushed_in_one_commit(hub, tmp_path):
    for name in ("one", "deep/two"):
        make().save_pretrained(tmp_path / name)
    make().save_pretrained(tmp_path / "checkpoint-3" / "saes")
    assert main(["push", str(tmp_path), "tester/many", "--collection", "Mine"]) == 0
    assert [entry.name for entry in list_saes("tester/many")] == ["deep/two", "one"]
    assert len(hub.repo("tester/many").commits) == 2 and len(hub.state.collections) == 1


@pytest.mark.parametrize("create_pr", [False, True])
def test_a_pull_request_is_opened_on_request(hub, tmp_path, capsys, create_pr):
    make().save_pretrained(tmp_path)
    main(["push", str(tmp_path), "tester/small", *["--create-pr"][: int(create_pr)]])
    assert len(hub.repo("tester/small").discussions) == create_pr
    assert ("/discussions/1" in capsys.readouterr().out) == create_pr


def test_mistakes_are_one_line_and_name_no_token(hub, tmp_path, capsys):
    make().save_pretrained(tmp_path / "sae")
    for folder, token, message in (
        ("sae", "hf_wrong", "does not know the token"),
        ("sae", "hf_wr\nong", "copy it again"),
        ("nothing", "hf_wrong", "is no folder"),
    ):
        assert main(["push", str(tmp_path / folder), "tester/small", "--token", token]) == 1
        error = capsys.readouterr().err
        assert message in error and "hf_wr" not in error and error.count("\n") == 1
    (tmp_path / "empty").mkdir()
    assert main(["push", str(tmp_path / "empty"), "tester/small"]) == 1
    assert "holds no SAE" in capsys.readouterr().err
