"""`hfsae push`, from the command line's own entry."""

import shutil
from pathlib import Path

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError

from hfsae import SAE, list_saes
from hfsae.cli import main
from hfsae.saving import write_json
from tests.hub.conftest import make


def test_a_folder_is_pushed_as_it_was_saved(hub, tmp_path, capsys, caplog):
    make().save_pretrained(tmp_path)
    options = ["--subfolder", "a/b", "--tag", "v1", "--license", "mit", "--message", "Mine", "--private"]
    assert main(["push", str(tmp_path), "tester/small", *options]) == 0
    assert capsys.readouterr().out.count("pushed to http") == 1
    assert "pushed to" not in caplog.text  # said once
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


def sweep_of_three(folder: Path) -> Path:
    """What a sweep leaves, one SAE with a smaller one inside of it; the third lies in a group's folder."""
    for seed, name in enumerate(("one", "two", "group-2/three")):
        make(seed).save_pretrained(folder / name)
    rows = [{"name": name, "part_of": None} for name in ("one", "two", "three")]
    write_json(folder / "results.json", {"saes": [*rows, {"name": "one, first 8", "part_of": "one"}]})
    return folder


def test_an_sae_of_a_sweep_that_is_gone_is_told(hub, tmp_path, capsys):
    folder = sweep_of_three(tmp_path / "sweep")
    assert main(["push", str(folder), "tester/sweep"]) == 0 and not capsys.readouterr().err
    shutil.rmtree(folder / "two")
    assert main(["push", str(folder), "tester/rest"]) == 0
    assert capsys.readouterr().err == "not here, and so not pushed: two, of which results.json tells\n"
    assert [entry.name for entry in list_saes("tester/rest")] == ["group-2/three", "one"]


@pytest.mark.parametrize("lost", ["config.json", "model.safetensors"])
def test_half_an_sae_is_refused_before_anything_is_pushed(hub, tmp_path, capsys, lost):
    folder = sweep_of_three(tmp_path / "sweep")
    (folder / "two" / lost).unlink()
    assert main(["push", str(folder), "tester/sweep"]) == 1
    assert "two" in capsys.readouterr().err
    with pytest.raises(RepositoryNotFoundError):
        HfApi().model_info("tester/sweep")


@pytest.mark.parametrize(("token", "message"), [("hf_wrong", "does not know the token"), (None, "there is no token")])
def test_who_is_no_member_of_the_hub_hears_so_before_a_dashboard_is_made(
    hub, tmp_path, capsys, monkeypatch, token, message
):
    make().save_pretrained(tmp_path)
    monkeypatch.delenv("HF_TOKEN")
    assert main(["push", str(tmp_path), "tester/small", "--dashboard", *(["--token", token] if token else [])]) == 1
    assert message in capsys.readouterr().err and not (tmp_path / "dashboard.html").exists()
    with pytest.raises(RepositoryNotFoundError):
        HfApi(token=hub.user.write_token).model_info("tester/small")
