"""What passes by itself is tried again, with growing waits; what does not is not."""

import time

import pytest
from huggingface_hub import HfApi

from hfsae import list_saes
from hfsae.hub import PushError
from hfsae.hub.backoff import Backoff, is_passing

REPO = "tester/small"


@pytest.mark.parametrize("fault", [{"status": 503}, {"how": "drop"}, {"how": "lose"}])
def test_a_commit_that_fails_once_is_made_once(hub, sae, fault):
    hub.fail(("POST", "/commit/"), **fault)
    info = sae.push_to_hub(REPO)
    assert len(hub.repo(REPO).commits) == 2 and info.oid == hub.repo(REPO).resolve("main").oid
    assert len(hub.requests.matching("PUT", origin="storage")) == 1


def test_a_commit_whose_answer_got_lost_is_not_made_again_with_its_deletions(hub, sae, tmp_path):
    sae.save_pretrained(tmp_path, max_shard_size="1KB")
    HfApi().create_repo(REPO)
    HfApi().upload_folder(repo_id=REPO, folder_path=tmp_path)
    hub.fail(("POST", "/commit/"), how="lose")
    sae.push_to_hub(REPO)
    assert len(hub.repo(REPO).commits) == 3
    assert hub.repo(REPO).files().keys() == {"README.md", "config.json", "model.safetensors"}


def test_a_pull_request_whose_answer_got_lost_is_not_opened_again(hub, sae, other):
    sae.push_to_hub(REPO)
    hub.fail(("POST", "/commit/"), how="lose")
    info = other.push_to_hub(REPO, create_pr=True)
    assert len(hub.repo(REPO).discussions) == 1
    assert info.pr_num == 1 and info.oid == hub.repo(REPO).resolve("refs/pr/1").oid
    assert other.push_to_hub(REPO, create_pr=True).pr_num == 1


def test_requests_that_the_client_does_not_repeat_are_repeated_too(hub, sae):
    for method, path in (
        ("POST", "/api/repos/create"),
        ("POST", "/branch/"),
        ("GET", "/revision/"),
        ("POST", "/tag/"),
    ):
        hub.fail((method, path), status=502)
    sae.push_to_hub(REPO, revision="wide", tag="v1")
    assert hub.repo(REPO).resolve("v1").oid == hub.repo(REPO).resolve("wide").oid


def test_a_connection_that_drops_while_the_old_card_is_read_costs_no_human_text(hub, sae):
    """The client calls a file whose answer did not come missing: it must not be taken for one that is not there."""
    sae.push_to_hub(REPO)
    card = hub.repo(REPO).files()["README.md"] + b"\n## My notes\n"
    HfApi().upload_file(path_or_fileobj=card, path_in_repo="README.md", repo_id=REPO)
    hub.fail(("HEAD", "README.md"), status=503)
    sae.b_dec.data += 1
    sae.push_to_hub(REPO)
    assert b"## My notes" in hub.repo(REPO).files()["README.md"]


def test_waits_grow_and_end(hub):
    hub.fail(("GET", "/api/models/"), status=503, times=None)
    started = time.perf_counter()
    with pytest.raises(Exception, match="503"):
        Backoff(retries=2)(lambda: HfApi().model_info(REPO))
    assert len(hub.requests) == 3 and 1.5 <= time.perf_counter() - started < 5


def test_what_will_not_pass_is_not_repeated(hub, sae):
    hub.fail(("POST", "/api/repos/create"), status=403)
    with pytest.raises(PushError):
        sae.push_to_hub(REPO)
    assert len(hub.requests.matching("POST", "/api/repos/create")) == 1
    assert not is_passing(ValueError())


# -- the Hub's own limit, as it words it ------------------------------------------------------------------------------
LIMITED = {"RateLimit": '"api";r=0;t=2', "RateLimit-Policy": '"fixed window";"api";q=500;w=300'}


@pytest.mark.parametrize(
    "method, path",
    [("POST", "/api/repos/create"), ("GET", "/revision/|/api/models/tester/small"), ("POST", "/commit/")],
)
def test_a_push_waits_as_long_as_the_hub_says_and_no_shorter(hub, sae, method, path):
    hub.fail((method, path), status=429, headers=LIMITED)
    started = time.perf_counter()
    sae.push_to_hub(REPO, retries=1)
    assert 3 <= time.perf_counter() - started < 8


def test_reading_waits_too(hub, sae):
    sae.push_to_hub(REPO)
    hub.fail(("GET", "/api/models/tester/small"), status=429, headers=LIMITED)
    started = time.perf_counter()
    assert [entry.name for entry in list_saes(REPO)] == [""]
    assert 3 <= time.perf_counter() - started < 8


@pytest.mark.parametrize("headers", [{"RateLimit": '"api";r=0;t=3599'}, {"Retry-After": "3600"}])
def test_what_would_take_too_long_is_said_at_once(hub, sae, headers):
    hub.fail(("POST", "/commit/"), status=429, headers=headers, times=None)
    started = time.perf_counter()
    with pytest.raises(PushError, match="limits how many requests an account makes; wait 3,600 s and push again"):
        sae.push_to_hub(REPO)
    assert time.perf_counter() - started < 5 and len(hub.requests.matching("POST", "/commit/")) == 1


def test_the_hubs_whole_window_is_waited_out():
    assert Backoff().longest_wait > 300


def test_the_page_of_a_proxy_in_place_of_json_passes(hub, sae):
    hub.fail(("POST", "/api/validate-yaml"), status=503, body=b"<html>Service unavailable</html>")
    sae.push_to_hub(REPO)
    assert "model.safetensors" in hub.repo(REPO).files()
