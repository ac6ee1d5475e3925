"""Listings, search, downloads, the cache, and the storage that no token may reach."""

import hashlib
from pathlib import Path

import pytest
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import get_session

from tests.hub_server import HubServer
from tests.test_hub_server.common import CARD, REPO, put


def test_info_tells_sizes_hashes_and_what_the_card_says(api: HfApi):
    put(api, {"README.md": CARD, "w.safetensors": b"weights"})
    info = api.model_info(REPO, files_metadata=True)
    assert info.siblings and info.card_data and info.tags
    sizes = {sibling.rfilename: sibling.size for sibling in info.siblings}
    assert sizes["w.safetensors"] == 7 and sizes["README.md"] == len(CARD)
    lfs = {sibling.rfilename: sibling.lfs.sha256 for sibling in info.siblings if sibling.lfs}
    assert lfs == {"w.safetensors": hashlib.sha256(b"weights").hexdigest()}
    assert info.card_data.base_model == "org/lm" and info.library_name == "hfsae"
    assert {"hfsae", "topk", "license:mit", "base_model:adapter:org/lm", "safetensors"} <= set(info.tags)
    assert api.model_info(REPO, expand=["sha"]).tags is None


def test_search_finds_by_library_tag_base_model_author_and_name(api: HfApi):
    put(api, {"README.md": CARD})
    api.create_repo("lab/plain")

    def found(**query) -> list[str]:
        return [model.id for model in api.list_models(**query)]

    for name in ("hfsae", "topk", "base_model:org/lm", "base_model:adapter:org/lm", ["hfsae", "license:mit"]):
        assert found(filter=name) == [REPO]
    assert found(filter=["hfsae", "jumprelu"]) == []
    assert found(author="lab") == found(search="PLAI") == ["lab/plain"]
    assert found() == ["lab/plain", REPO] and found(limit=1) == ["lab/plain"]
    (full,) = api.list_models(filter="hfsae", full=True, cardData=True)
    assert full.card_data and full.card_data.license == "mit"
    assert full.siblings and "README.md" in {sibling.rfilename for sibling in full.siblings}


def test_tree_lists_folders_and_follows_pages(api: HfApi):
    first = put(api, {f"zoo/{i:02}/config.json": str(i).encode() for i in range(30)})
    second = put(api, {"zoo/00/config.json": b"new"})
    (zoo,) = [entry for entry in api.list_repo_tree(REPO) if entry.path != ".gitattributes"]
    assert zoo.path == "zoo" and hasattr(zoo, "tree_id")
    assert len(list(api.list_repo_tree(REPO, "zoo"))) == 30
    entries = list(api.list_repo_tree(REPO, "zoo", recursive=True, expand=True))
    assert len(entries) == 60  # more than one page
    changed = {entry.path: entry.last_commit.oid for entry in entries if entry.last_commit}
    assert changed["zoo/00"] == changed["zoo/00/config.json"] == second.oid
    assert changed["zoo/01"] == changed["zoo/01/config.json"] == first.oid
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree(REPO, "nowhere"))
    assert [node.path for node in api.get_paths_info(REPO, ["zoo/05", "nowhere"])] == ["zoo/05"]


def test_snapshot_of_a_subfolder_fetches_nothing_else(hub: HubServer, api: HfApi):
    put(api, {f"{place}/{name}": place.encode() for place in ("a", "b") for name in ("config.json", "w.safetensors")})
    hub.requests.clear()
    folder = Path(snapshot_download(REPO, allow_patterns=["b/*"]))
    assert sorted(str(p.relative_to(folder)) for p in folder.rglob("*.*")) == ["b/config.json", "b/w.safetensors"]
    assert hub.requests.matching(path="/resolve/.*/a/") == []


def test_a_range_of_a_file_is_served(api: HfApi, hub: HubServer):
    put(api, {"w.safetensors": b"0123456789"})
    url = f"{hub.endpoint}/{REPO}/resolve/main/w.safetensors"
    for header, status, body in (
        ("bytes=2-4", 206, b"234"),
        ("bytes=7-", 206, b"789"),
        ("bytes=-2", 206, b"89"),
        ("bytes=5-99", 206, b"56789"),
        ("bytes=10-", 416, b""),
    ):
        response = get_session().get(url, headers={"Range": header}, follow_redirects=True)
        assert (response.status_code, response.content) == (status, body)


def test_missing_files_and_repositories_raise_their_own_errors(api: HfApi):
    with pytest.raises(EntryNotFoundError):
        hf_hub_download(REPO, "missing.txt")
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download(REPO, "missing.txt", revision="nowhere")
    with pytest.raises(RepositoryNotFoundError):
        hf_hub_download("tester/missing", "missing.txt")


def test_the_cache_serves_when_the_hub_is_down(hub: HubServer, api: HfApi):
    put(api, {"a.txt": b"a"})
    cached = hf_hub_download(REPO, "a.txt")
    with hub.down():
        assert hf_hub_download(REPO, "a.txt") == cached
    assert api.model_info(REPO).id == REPO


def test_each_test_starts_with_an_empty_cache(hub: HubServer):
    with pytest.raises(LocalEntryNotFoundError):
        hf_hub_download(REPO, "a.txt", local_files_only=True)


def test_the_storage_never_sees_a_token(hub: HubServer):
    api = HfApi()
    api.create_repo("secret", private=True)
    put(api, {"w.safetensors": b"weights"}, repo_id="tester/secret")
    assert Path(hf_hub_download("tester/secret", "w.safetensors")).read_bytes() == b"weights"
    assert {entry.method for entry in hub.requests.matching(origin="storage")} == {"PUT", "GET"}
    assert not any(entry.sent_token for entry in hub.requests.matching(origin="storage"))
    assert all(entry.sent_token for entry in hub.requests.matching(origin="hub"))


def test_the_storage_refuses_tokens_and_unsigned_urls(hub: HubServer, api: HfApi):
    put(api, {"w.safetensors": b"weights"})
    signed = (
        get_session()
        .head(f"{hub.endpoint}/{REPO}/resolve/main/w.safetensors", follow_redirects=False)
        .headers["Location"]
    )
    assert signed.startswith(hub.storage) and get_session().get(signed).content == b"weights"
    assert get_session().get(signed.split("?")[0]).status_code == 403
    assert get_session().get(signed, headers={"Authorization": "Bearer hf_x"}).status_code == 400
    with pytest.raises(AssertionError, match="a token was sent to another origin"):
        hub.check()
    hub.requests.clear()
