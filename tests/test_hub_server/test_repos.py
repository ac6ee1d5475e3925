"""Accounts, tokens, repositories, and who may do what with them."""

from pathlib import Path

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

from tests.hub_server import HubServer
from tests.test_hub_server.common import REPO, put, raises_status


def test_whoami_names_the_account_and_the_role_of_the_token(hub: HubServer):
    assert HfApi().whoami()["name"] == "tester"
    assert [org["name"] for org in HfApi().whoami()["orgs"]] == ["lab"]
    assert HfApi(token=hub.user.read_token).whoami()["auth"]["accessToken"]["role"] == "read"


def test_unknown_token_is_refused(api: HfApi):
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        HfApi(token="hf_wrong").whoami()
    with pytest.raises(HfHubHTTPError, match="Invalid credentials") as caught:
        HfApi(token="hf_wrong").model_info(REPO)
    assert caught.value.response.status_code == 401


def test_create_repo_twice_conflicts_unless_exist_ok(hub: HubServer):
    api = HfApi()
    assert api.create_repo("model").repo_id == REPO
    assert api.create_repo(REPO, exist_ok=True).repo_id == REPO
    with raises_status(409):
        api.create_repo(REPO)
    assert api.repo_exists(REPO)


def test_model_and_dataset_of_one_name_are_two_repositories(api: HfApi):
    api.create_repo(REPO, repo_type="dataset")
    put(api, {"data.txt": b"x"}, repo_type="dataset")
    assert api.file_exists(REPO, "data.txt", repo_type="dataset")
    assert not api.file_exists(REPO, "data.txt")


def test_writing_to_a_foreign_namespace_is_forbidden(hub: HubServer, api: HfApi):
    stranger = HfApi(token=hub.add_user("stranger").write_token)
    with raises_status(403):
        stranger.create_repo("tester/other")
    for write in (
        lambda: put(stranger, {"a.txt": b"a"}),
        lambda: stranger.create_branch(REPO, branch="mine"),
        lambda: stranger.delete_repo(REPO),
    ):
        with raises_status(403):
            write()
    assert len(hub.repo(REPO).commits) == 1  # the one that came with the repository


def test_a_member_of_an_organisation_writes_there(hub: HubServer):
    colleague = HfApi(token=hub.add_user("colleague", "lab").write_token)
    HfApi().create_repo("lab/model")
    put(colleague, {"a.txt": b"a"}, repo_id="lab/model")
    assert hub.repo("lab/model").files()["a.txt"] == b"a"


def test_a_read_token_reads_and_does_not_write(hub: HubServer, api: HfApi):
    reader = HfApi(token=hub.user.read_token)
    assert reader.model_info(REPO).id == REPO
    for write in (lambda: put(reader, {"a.txt": b"a"}), lambda: reader.create_repo("second")):
        with raises_status(403):
            write()


def test_a_private_repo_is_hidden_from_strangers(hub: HubServer):
    api, stranger = HfApi(), HfApi(token=hub.add_user("stranger").write_token)
    api.create_repo("secret", private=True)
    put(api, {"a.txt": b"a"}, repo_id="tester/secret")
    assert api.model_info("tester/secret").private
    for outsider in (stranger, HfApi(token=False)):
        with pytest.raises(RepositoryNotFoundError):
            outsider.model_info("tester/secret")
        with pytest.raises(RepositoryNotFoundError):
            outsider.hf_hub_download("tester/secret", "a.txt")
        assert list(outsider.list_models(author="tester")) == []


def test_a_gate_keeps_files_not_the_page(hub: HubServer, api: HfApi):
    put(api, {"a.txt": b"a"})
    api.update_repo_settings(REPO, gated="manual")
    stranger = HfApi(token=hub.add_user("stranger").read_token)
    assert stranger.model_info(REPO).gated == "manual"
    with pytest.raises(GatedRepoError):
        stranger.hf_hub_download(REPO, "a.txt")
    with pytest.raises(GatedRepoError):
        stranger.auth_check(REPO)
    api.grant_access(REPO, "stranger")
    assert Path(stranger.hf_hub_download(REPO, "a.txt")).read_bytes() == b"a"


def test_delete_repo(api: HfApi):
    api.delete_repo(REPO)
    assert not api.repo_exists(REPO)
    with pytest.raises(RepositoryNotFoundError):
        api.delete_repo(REPO)
    api.delete_repo(REPO, missing_ok=True)
