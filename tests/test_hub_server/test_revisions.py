"""Branches, tags, history, discussions and pull requests."""

from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, RevisionNotFoundError

from tests.hub_server import HubServer
from tests.test_hub_server.common import REPO, put, raises_status


def test_branches_tags_refs_and_commits(api: HfApi):
    first = put(api, {"a.txt": b"1"}).oid
    api.create_tag(REPO, tag="v1")
    api.create_branch(REPO, branch="dev/x")
    second = put(api, {"a.txt": b"2"}, revision="dev/x").oid
    for create in (lambda: api.create_branch(REPO, branch="dev/x"), lambda: api.create_tag(REPO, tag="v1")):
        with raises_status(409):
            create()
    refs = api.list_repo_refs(REPO)
    assert {ref.name: ref.target_commit for ref in refs.branches} == {"main": first, "dev/x": second}
    assert {ref.ref: ref.target_commit for ref in refs.tags} == {"refs/tags/v1": first}
    assert api.model_info(REPO, revision="v1").sha == first
    assert [c.commit_id for c in api.list_repo_commits(REPO, revision="dev/x")][:2] == [second, first]
    for revision, content in ((first, "1"), ("dev/x", "2"), ("v1", "1")):
        assert Path(hf_hub_download(REPO, "a.txt", revision=revision)).read_text() == content
    api.delete_tag(REPO, tag="v1")
    api.delete_branch(REPO, branch="dev/x")
    with pytest.raises(RevisionNotFoundError):
        api.model_info(REPO, revision="v1")


def test_a_push_to_a_branch_that_does_not_exist_fails(api: HfApi):
    with pytest.raises(RevisionNotFoundError):
        put(api, {"a.txt": b"a"}, revision="nowhere")


def test_a_pull_request_is_opened_loaded_and_merged(hub: HubServer, api: HfApi):
    put(api, {"a.txt": b"a", "gone.txt": b"g"})
    operations = [CommitOperationAdd("b.bin", b"b"), CommitOperationDelete("gone.txt")]
    info = api.create_commit(REPO, operations, commit_message="Improve", create_pr=True)
    assert (info.pr_num, info.pr_revision) == (1, "refs/pr/1")
    assert Path(hf_hub_download(REPO, "b.bin", revision="refs/pr/1")).read_bytes() == b"b"
    put(api, {"more.txt": b"m"}, revision="refs/pr/1")
    put(api, {"meanwhile.txt": b"w"})
    with pytest.raises(EntryNotFoundError):
        hf_hub_download(REPO, "b.bin")
    (ref,) = api.list_repo_refs(REPO, include_pull_requests=True).pull_requests or []
    assert ref.ref == "refs/pr/1"

    api.merge_pull_request(REPO, 1)
    details = api.get_discussion_details(REPO, 1)
    assert details.status == "merged" and details.merge_commit_oid == api.model_info(REPO).sha
    expected = {"a.txt": b"a", "b.bin": b"b", "more.txt": b"m", "meanwhile.txt": b"w"}
    assert hub.repo(REPO).files() == expected


def test_a_pull_request_that_conflicts_is_not_merged(hub: HubServer, api: HfApi):
    put(api, {"a.txt": b"old"})
    put(api, {"a.txt": b"theirs"}, create_pr=True)
    put(api, {"a.txt": b"ours"})
    assert api.get_discussion_details(REPO, 1).conflicting_files == ["a.txt"]
    with raises_status(409):
        api.merge_pull_request(REPO, 1)
    assert hub.repo(REPO).files()["a.txt"] == b"ours"


def test_a_stranger_with_a_read_token_proposes_and_does_not_merge(hub: HubServer, api: HfApi):
    stranger = HfApi(token=hub.add_user("stranger").read_token)
    assert put(stranger, {"b.safetensors": b"b"}, create_pr=True).pr_revision == "refs/pr/1"
    put(stranger, {"b.safetensors": b"better"}, revision="refs/pr/1")
    with raises_status(403):
        put(HfApi(token=hub.add_user("another").write_token), {"c.txt": b"c"}, revision="refs/pr/1")
    with raises_status(403):
        stranger.merge_pull_request(REPO, 1)
    api.merge_pull_request(REPO, 1)
    assert hub.repo(REPO).files() == {"b.safetensors": b"better"}


def test_a_pull_request_can_start_from_an_older_commit(hub: HubServer, api: HfApi):
    old = put(api, {"a.txt": b"old"}).oid
    put(api, {"a.txt": b"new"})
    put(api, {"b.txt": b"b"}, create_pr=True, parent_commit=old)
    assert hub.repo(REPO).files("refs/pr/1") == {"a.txt": b"old", "b.txt": b"b"}
    api.merge_pull_request(REPO, 1)
    assert hub.repo(REPO).files() == {"a.txt": b"new", "b.txt": b"b"}


def test_discussions_are_opened_commented_and_closed(api: HfApi):
    num = api.create_discussion(REPO, "A question", description="Why?").num
    api.comment_discussion(REPO, num, comment="Because.")
    api.change_discussion_status(REPO, num, "closed")
    details = api.get_discussion_details(REPO, num)
    assert [event.type for event in details.events] == ["comment", "comment", "status-change"]
    assert details.status == "closed"
    draft = api.create_pull_request(REPO, "A draft")
    assert draft.status == "draft" and draft.git_reference == "refs/pr/2"
    assert [d.num for d in api.get_repo_discussions(REPO, discussion_type="pull_request")] == [2]
