"""Files on their way into a repository: LFS, commits, and what is refused."""

import hashlib
import json
import os
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import get_session

from tests.hub_server import HubServer
from tests.test_hub_server.common import CARD, REPO, put, raises_status

BIG = os.urandom(11 * 2**20)  # more than the Hub takes outside LFS


def post_commit(hub: HubServer, lines: list[dict]):
    """Send the lines of a commit as they are, past the checks of the client."""
    return get_session().post(
        f"{hub.endpoint}/api/models/{REPO}/commit/main",
        content="\n".join(map(json.dumps, lines)),
        headers={"Authorization": f"Bearer {hub.user.write_token}"},
    )


def test_upload_folder_makes_one_commit(hub: HubServer, api: HfApi, tmp_path: Path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    files = {"README.md": CARD, "config.json": b"{}", "deep/er/model.safetensors": os.urandom(100)}
    for path, data in files.items():
        (tmp_path / path).write_bytes(data)
    info = api.upload_folder(repo_id=REPO, folder_path=tmp_path)
    assert hub.repo(REPO).files() == files
    assert [commit.commit_id for commit in api.list_repo_commits(REPO)][0] == info.oid
    assert len(api.list_repo_commits(REPO)) == 2


def test_text_stays_in_git_and_weights_go_through_lfs(hub: HubServer, api: HfApi):
    put(api, {"a.json": b"{}", "b.safetensors": b"weights", "c.dat": b"\0\1", "d.txt": "é".encode() * 300})
    files = hub.repo(REPO).resolve("main").files
    assert {path for path, blob in files.items() if blob.is_lfs} == {"b.safetensors", "c.dat"}
    assert len(hub.requests.matching("PUT", origin="storage")) == 2


@pytest.mark.parametrize("part_size", [None, 2**20])
def test_a_large_file_makes_the_round_trip(hub: HubServer, api: HfApi, part_size: int | None):
    hub.state.part_size = part_size
    put(api, {"big.txt": BIG})
    assert len(hub.requests.matching("PUT", origin="storage")) == (1 if part_size is None else 11)
    assert Path(hf_hub_download(REPO, "big.txt")).read_bytes() == BIG
    (file,) = api.get_paths_info(REPO, "big.txt")
    assert isinstance(file, RepoFile) and file.lfs
    assert file.lfs.sha256 == hashlib.sha256(BIG).hexdigest() and file.size == len(BIG)


@pytest.mark.parametrize("part_size", [None, 40])
def test_a_corrupted_upload_is_refused(hub: HubServer, api: HfApi, part_size: int | None):
    hub.state.part_size = part_size
    hub.fail(lambda request: request.origin == "storage" and request.method == "PUT", how="corrupt")
    with pytest.raises(RuntimeError, match=r"model\.safetensors") as caught:
        put(api, {"model.safetensors": b"x" * 100})
    assert "BadDigest" in str(caught.value.__cause__)
    assert hub.repo(REPO).files() == {}
    put(api, {"model.safetensors": b"x" * 100})
    assert hub.repo(REPO).files()["model.safetensors"] == b"x" * 100


def test_a_commit_cannot_name_a_large_file_that_was_not_uploaded(hub: HubServer, api: HfApi):
    lines = [
        {"key": "header", "value": {"summary": "Pretend"}},
        {"key": "lfsFile", "value": {"path": "a.bin", "algo": "sha256", "oid": "0" * 64, "size": 3}},
    ]
    response = post_commit(hub, lines)
    assert response.status_code == 400 and "does not exist" in response.json()["error"]


def test_a_large_file_that_is_there_is_not_sent_again(hub: HubServer, api: HfApi):
    put(api, {"a.safetensors": b"weights"})
    put(api, {"b.safetensors": b"weights"})
    assert len(hub.requests.matching("PUT", origin="storage")) == 1
    assert hub.repo(REPO).files()["b.safetensors"] == b"weights"


def test_an_unchanged_push_makes_no_commit(hub: HubServer, api: HfApi):
    files = {"config.json": b"{}", "model.safetensors": b"weights"}
    first, second = put(api, files), put(api, files)
    assert first.oid == second.oid
    assert len(hub.requests.matching("POST", "/commit/")) == 1
    assert put(api, files, create_pr=True).pr_url is None


def test_files_are_deleted_and_copied(hub: HubServer, api: HfApi):
    put(api, {"a.txt": b"a", "b/c.bin": b"c", "b/d.txt": b"d", "e.txt": b"e"})
    operations = [
        CommitOperationDelete("a.txt"),
        CommitOperationDelete("b/", is_folder=True),
        CommitOperationCopy("e.txt", "f.txt"),
        CommitOperationCopy("b/c.bin", "g.bin"),
    ]
    api.create_commit(REPO, operations, commit_message="Tidy up")
    assert hub.repo(REPO).files() == {"e.txt": b"e", "f.txt": b"e", "g.bin": b"c"}


def test_a_commit_with_one_bad_operation_changes_nothing(hub: HubServer, api: HfApi):
    operations = [CommitOperationAdd("new.txt", b"new"), CommitOperationDelete("missing.txt")]
    with pytest.raises(EntryNotFoundError, match="doesn't exist"):
        api.create_commit(REPO, operations, commit_message="Half")
    assert hub.repo(REPO).files() == {}


def test_a_stale_parent_commit_is_refused(api: HfApi):
    old = api.model_info(REPO).sha
    put(api, {"a.txt": b"a"}, parent_commit=old)
    with raises_status(412):
        put(api, {"b.txt": b"b"}, parent_commit=old)


def test_a_path_out_of_the_repository_is_refused(hub: HubServer, api: HfApi):
    with pytest.raises(ValueError, match="path_in_repo"):
        CommitOperationAdd("../evil.txt", b"x")
    put(api, {"a": b"a"})
    for path in ("../evil.txt", "b/../../evil.txt", "/evil.txt", ".git/config", "a/below-a-file"):
        lines = [
            {"key": "header", "value": {"summary": "Escape"}},
            {"key": "file", "value": {"path": path, "content": "eA==", "encoding": "base64"}},
        ]
        assert post_commit(hub, lines).status_code == 400, path
    assert hub.repo(REPO).files() == {"a": b"a"}


@pytest.mark.parametrize(
    ("metadata", "complaint"),
    [
        ("license: my-own", "license"),
        ("base_model: /home/me/gpt2", "base_model"),
        ("base_model: gpt2\nbase_model_relation: friend", "base_model_relation"),
        ("tags: [1, 2]", "tags"),
        ("tags: [a", "YAML"),
        ("- a list", "mapping"),
        ("value: !!python/object/apply:os.getcwd []", "YAML"),
        ("model-index:\n- results: []", "name"),
        (
            "model-index:\n- name: m\n  results:\n  - task: {type: t}\n    metrics: [{type: l0, value: 1}]",
            "dataset.type",
        ),
    ],
)
def test_a_card_with_invalid_metadata_is_refused(hub: HubServer, api: HfApi, metadata: str, complaint: str):
    with pytest.raises(ValueError, match=f"(?s)Invalid metadata.*{complaint}"):
        put(api, {"README.md": f"---\n{metadata}\n---\n".encode()})
    assert hub.requests.matching("POST", "/commit/") == []


def test_a_card_without_metadata_gives_a_warning(api: HfApi):
    with pytest.warns(UserWarning, match="empty or missing yaml metadata"):
        put(api, {"README.md": b"# Nothing\n"})
