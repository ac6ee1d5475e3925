"""A push that breaks off at any of its requests leaves the old commit or the new one, and the next push heals it."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from huggingface_hub import HfApi

from hfsae import SAE, list_saes, load_saes, push_saes
from hfsae.hub import PushError
from hfsae.hub.repository import Destination, Repository
from tests.hub.conftest import make
from tests.hub_server import HubServer

REPO = "tester/small"


def push_one(sae: SAE) -> None:
    sae.push_to_hub(REPO, tag="v1", revision="wide", retries=0)


def push_two(sae: SAE) -> None:
    push_saes({"a/one": sae, "a/two": sae}, REPO, revision="wide", retries=0)


def requests_of(hub: HubServer, push: Callable[[SAE], None], before: Callable[[], None], sae: SAE) -> int:
    """How many requests an undisturbed push takes."""
    hub.reset()
    before()
    hub.requests.clear()
    push(sae)
    return len(hub.requests)


def state(hub: HubServer) -> dict[str, dict[str, bytes]]:
    """All files on every branch."""
    repo = hub.state.repos.get(("model", REPO))
    refs = {} if repo is None else repo.refs
    return {ref: repo.files(ref) for ref in refs if repo and ref.startswith("refs/heads/")}


@pytest.mark.parametrize(
    "push, before", [(push_one, "nothing"), pytest.param(push_two, "an older SAE", marks=pytest.mark.slow)]
)
def test_a_push_that_is_refused_at_any_request_is_whole_or_not_there(hub, push, before):
    older, sae = make(seed=1), make()

    def prepare() -> None:
        if before != "nothing":
            push_saes({"a/one": older}, REPO, revision="wide")

    n_requests = requests_of(hub, push, prepare, sae)
    whole = state(hub)["refs/heads/wide"]
    assert n_requests > 8
    for i in range(n_requests):
        hub.reset()
        prepare()
        old = state(hub).get("refs/heads/wide", {})
        hub.requests.clear()
        hub.fail(skip=i, status=418)  # which nobody repeats
        try:
            push(sae)
        except PushError as error:
            assert "418" in str(error)
        after = state(hub).get("refs/heads/wide", {})
        assert after in ({}, old, whole), f"torn at request {i}"
        arrived = set(hub.repo(REPO).lfs_oids) if ("model", REPO) in hub.state.repos else set()
        hub.requests.clear()
        hub.faults.clear()
        push(sae)
        assert state(hub)["refs/heads/wide"] == whole, f"not healed after request {i}"
        sent = {entry.path.split("/")[-1] for entry in hub.requests.matching("PUT", origin="storage")}
        assert not sent & arrived, f"sent twice after request {i}"


def test_a_push_whose_answers_get_lost_one_after_the_other_heals_itself(hub, sae):
    """Each request is carried out, and the connection breaks before its answer arrives."""
    paths = ["/api/repos/create", "/branch/", "/commit/", "/tag/"]
    for path in paths:
        hub.fail(("POST", path), how="lose")
    sae.push_to_hub(REPO, revision="wide", tag="v1")
    repo = hub.repo(REPO)
    assert len(repo.commits) == 2 and repo.resolve("v1").oid == repo.resolve("wide").oid
    assert len(hub.requests.matching("PUT", origin="storage")) == 1


@pytest.mark.slow
@pytest.mark.parametrize("how", ["lose", "drop"])
def test_a_push_that_loses_its_connection_at_any_request_succeeds_by_itself_with_one_commit(hub, sae, how):
    """Weights are sent again only where it is not known whether they arrived."""
    n_requests = requests_of(hub, push_one, lambda: None, sae)
    whole = state(hub)["refs/heads/wide"]
    for i in range(n_requests):
        hub.reset()
        hub.fail(skip=i, how=how)
        sae.push_to_hub(REPO, tag="v1", revision="wide")
        repo = hub.repo(REPO)
        assert state(hub)["refs/heads/wide"] == whole and len(repo.commits) == 2, f"after request {i}"
        assert repo.resolve("v1").oid == repo.resolve("wide").oid
        (struck,) = [entry for entry in hub.requests if entry.status is None]
        assert len(hub.requests.matching("PUT", origin="storage")) == 1 + (struck.method == "PUT")


def test_weights_that_arrived_are_not_sent_again(hub, sae):
    hub.fail(("POST", "/commit/"), status=418)
    with pytest.raises(PushError):
        sae.push_to_hub(REPO, retries=0)
    sae.push_to_hub(REPO)
    assert len(hub.requests.matching("PUT", origin="storage")) == 1


def test_an_upload_that_is_changed_on_its_way_does_not_arrive(hub, sae):
    hub.fail(("PUT", "/objects/"), how="corrupt")
    with pytest.raises(PushError, match="HTTP 400"):
        sae.push_to_hub(REPO, retries=0)
    assert hub.repo(REPO).files() == {}
    sae.push_to_hub(REPO)
    assert torch.equal(SAE.from_pretrained(REPO).W_dec, sae.W_dec)


# -- two at once ------------------------------------------------------------------------------------------------------
def test_of_two_who_opened_the_same_commit_the_second_is_told(hub, tmp_path):
    HfApi().create_repo(REPO)
    first, second = Repository(Destination(REPO)), Repository(Destination(REPO))
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text(name)
    first.commit(tmp_path / "first", "First")
    with pytest.raises(PushError, match="somebody else pushed to main in the meantime") as refused:
        second.commit(tmp_path / "second", "Second")
    assert refused.value.status == 412 and hub.repo(REPO).files() == {"a.txt": b"first"}


def test_many_who_push_at_once_and_once_more_when_told_to_lose_nothing(hub):
    HfApi().create_repo(REPO)
    saes = {f"sae-{i}": make(seed=i) for i in range(3)}

    def push(name: str) -> None:
        for _ in range(50):
            try:
                saes[name].push_to_hub(REPO, subfolder=name)
                return
            except PushError as error:
                assert error.status == 412
        raise AssertionError("never got through")

    with ThreadPoolExecutor(3) as pushers:
        list(pushers.map(push, saes))
    assert [entry.name for entry in list_saes(REPO)] == ["sae-0", "sae-1", "sae-2"]
    assert hub.repo(REPO).files()["README.md"].decode().count("| [") == 3
    assert all(torch.equal(loaded.W_dec, saes[name].W_dec) for name, loaded in load_saes(REPO).items())


def test_somebody_who_pushes_between_a_failure_and_its_repetition_is_not_overwritten(hub, sae, other):
    sae.push_to_hub(REPO)
    struck = []

    def fail_after_another_push(request) -> bool:
        if request.method != "POST" or "/commit/" not in request.path or struck:
            return False
        struck.append(request)
        return True

    hub.fail(fail_after_another_push, status=503)
    card = hub.repo(REPO).files()["README.md"] + b"\nMine.\n"
    with ThreadPoolExecutor(1) as pusher:
        push = pusher.submit(other.push_to_hub, REPO)
        while not struck:
            pass
        HfApi().upload_file(path_or_fileobj=card, path_in_repo="README.md", repo_id=REPO)
        assert isinstance(push.exception(), PushError) and push.exception().status == 412
    assert hub.repo(REPO).files()["README.md"] == card
    assert torch.equal(SAE.from_pretrained(REPO).W_dec, sae.W_dec)
