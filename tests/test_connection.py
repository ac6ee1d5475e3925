"""No network is not no SAE; a silent server is waited for no longer than is said; each failure is told apart."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants, get_session

from hfsae import SAE, TopKSAEConfig, export_sae, list_saes, load_saes
from hfsae.cli import main
from hfsae.connection import failed, never_silent
from hfsae.hub import PushError
from hfsae.saved.convert import convert
from hfsae.saved.measuring_again import evaluate_saved

REPO = "tester/one"


@pytest.fixture
def sae() -> SAE:
    return SAE.from_config(TopKSAEConfig(d_in=8, n_features=32, k=4))


# -- a server that says nothing ---------------------------------------------------------------------------------------
def within(seconds: float, act: Callable[[], object], **error) -> None:
    started = time.perf_counter()
    with pytest.raises(OSError, **error):
        act()
    assert time.perf_counter() - started < seconds


@pytest.mark.parametrize("ask", [lambda: list_saes(REPO), lambda: load_saes(REPO)], ids=["list", "load"])
def test_reading_from_a_silent_server_ends_with_an_os_error(hub, monkeypatch, ask):
    hub.fail(how="hang", times=None)
    monkeypatch.setattr("hfsae.connection.READING", 0.5)
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.5)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.5)
    within(5, ask, match="the Hub cannot be reached; check the network and HF_ENDPOINT")


def test_pushing_to_a_silent_server_ends_with_a_push_error(hub, sae, monkeypatch):
    hub.fail(how="hang", times=None)
    monkeypatch.setattr("hfsae.hub.errors.WRITING", 0.5)
    within(5, lambda: sae.push_to_hub(REPO, retries=1), match="tester/one was not pushed: the Hub cannot be reached")
    assert len(hub.requests) == 2


def test_a_server_that_falls_silent_in_the_middle_of_a_push_is_asked_again(hub, sae, monkeypatch):
    hub.fail(("POST", "/commit/"), how="hang")
    monkeypatch.setattr("hfsae.hub.errors.WRITING", 0.5)
    sae.push_to_hub(REPO)
    assert "model.safetensors" in hub.repo(REPO).files()


def test_the_limit_holds_for_requests_without_one_and_with_a_longer_one(hub):
    seen: list[float | None] = []
    with never_silent(7.0):
        get_session().event_hooks["request"].append(lambda request: seen.append(request.extensions["timeout"]["read"]))
        for timeout in (None, 3.0, 60.0):
            get_session().get(f"{hub.endpoint}/api/models", timeout=timeout)
    get_session().get(f"{hub.endpoint}/api/models", timeout=None)
    get_session().event_hooks["request"].pop()
    assert seen == [7.0, 3.0, 7.0, None]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["hang", "down"])
def test_loading_without_an_answer_ends_with_an_os_error_within_the_time_that_is_stated(hub, sae, tmp_path, how):
    """The client asks eight times and waits 23 s in between: that is one look at one file, and no second one."""
    sae.push_to_hub(REPO)
    code = f"""
import time
import hfsae.connection
from hfsae import SAE
hfsae.connection.READING = 1.0
started = time.perf_counter()
try:
    SAE.from_pretrained({REPO!r})
except OSError as error:
    print(time.perf_counter() - started, error)
"""
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_ETAG_TIMEOUT": "1", "HF_HUB_DOWNLOAD_TIMEOUT": "1"}

    def run() -> str:
        return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True).stdout

    if how == "hang":
        hub.fail(how="hang", times=None)
        said = run()
    else:
        with hub.down():
            said = run()
    assert f"there is no folder {REPO} here, and the Hub cannot be reached to look for a repository" in said
    assert float(said.split()[0]) < 23 + 8 + 4


# -- each failure its own sentence ------------------------------------------------------------------------------------
@pytest.fixture
def one_try(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client gives up at once instead of after 23 s."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


def looks(name: str) -> dict[str, Callable[[], object]]:
    return {
        "load": lambda: SAE.from_pretrained(name),
        "eval": lambda: evaluate_saved(name),
        "convert": lambda: convert(name, "never-written"),
    }


@pytest.mark.parametrize("way", looks(""))
def test_no_network_is_told_from_no_config(hub, one_try, way):
    with hub.down(), pytest.raises(OSError, match=f"no folder {REPO} here, and the Hub cannot be reached") as raised:
        looks(REPO)[way]()
    assert failed(raised.value) and not isinstance(raised.value, FileNotFoundError)


@pytest.mark.parametrize("way", looks(""))
def test_a_server_out_of_order_is_told_from_no_config(hub, one_try, way):
    hub.fail(status=503, times=None)
    with pytest.raises(OSError, match=f"no folder {REPO} here, and the Hub cannot be reached"):
        looks(REPO)[way]()


@pytest.mark.parametrize(
    "name, sentence",
    [
        ("runs/nothere", "there is no folder runs/nothere here, and the Hub shows no repository of that name"),
        ("./nothere", r"there is no (folder )?\.?/?nothere"),
        ("/not/here", "there is no (folder )?/not/here"),
        ("a/b/c", "there is no folder a/b/c"),
        ("not here", "there is no folder not here here, and no repository of the Hub can have that name"),
    ],
)
@pytest.mark.parametrize("way", looks(""))
def test_a_folder_that_is_not_there_is_called_so(hub, way, name, sentence):
    with pytest.raises(FileNotFoundError, match=sentence):
        looks(name)[way]()


def test_the_command_line_says_it_in_one_line(hub, capsys):
    for command in (["info"], ["eval"], ["features", "--text", "x"], ["verify"]):
        assert main([command[0], "runs/nothere", *command[1:]]) == 1
        said = capsys.readouterr().err
        assert "there is no folder runs/nothere here" in said and len(said.splitlines()) == 1, command


def test_a_language_model_that_is_not_there_is_called_so_in_one_line(hub, tmp_path, capsys):
    options = [
        "--dataset_name",
        "python-stdlib",
        "--hook_point",
        "resid_post.1",
        "--output_dir",
        str(tmp_path / "run"),
    ]
    for name, sentence in (
        ("./nothere", "in the folder ./nothere, which is not there"),
        ("nothere/model", "nothere/model"),
    ):
        assert main(["train", "--model_name_or_path", name, *options]) == 1
        said = capsys.readouterr().err.strip()
        assert sentence in said and len(said.splitlines()) == 1, name
        assert "Repo id must" not in said and "local_files_only" not in said


def test_a_gated_repository_says_where_to_ask(hub):
    stranger = hub.add_user("stranger")
    SAE.from_config(TopKSAEConfig(d_in=8, n_features=32, k=4)).push_to_hub("stranger/sae", token=stranger.write_token)
    hub.repo("stranger/sae").gated = "manual"
    with pytest.raises(PermissionError, match="stranger/sae is gated: ask for access"):
        SAE.from_pretrained("stranger/sae")


# -- without a network, from the cache --------------------------------------------------------------------------------
def test_an_sae_of_another_project_that_was_loaded_once_loads_without_a_network(hub, sae, one_try, tmp_path):
    theirs = SAE.from_config(TopKSAEConfig(d_in=8, n_features=32, k=4, hook_point="blocks.1.hook_resid_post"))
    export_sae(theirs, tmp_path / "theirs", "saelens")
    HfApi().create_repo("tester/theirs")
    HfApi().upload_folder(repo_id="tester/theirs", folder_path=tmp_path / "theirs")
    loaded = SAE.from_pretrained("tester/theirs")
    with hub.down():
        assert SAE.from_pretrained("tester/theirs").W_dec.equal(loaded.W_dec)
        assert SAE.from_pretrained("tester/theirs", local_files_only=True).W_dec.equal(loaded.W_dec)
    shutil.rmtree(Path(constants.HF_HUB_CACHE) / "models--tester--theirs")
    with pytest.raises(OSError, match="tester/theirs is neither a folder here nor in the cache"):
        SAE.from_pretrained("tester/theirs", local_files_only=True)


def test_a_push_error_is_no_failure_of_the_connection_where_the_hub_said_no(hub, sae):
    with pytest.raises(PushError) as refused:
        sae.push_to_hub(REPO, token="hf_nobody")
    assert not failed(refused.value)
