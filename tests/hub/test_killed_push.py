"""A process that is killed while it pushes leaves the old commit or the new one; the next push finishes its work."""

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from multiprocessing.context import ForkServerContext

import pytest

from hfsae import SAE, load_saes, push_saes
from tests.hub.conftest import make
from tests.hub_server import HubServer, Request

REPO = "tester/small"
PART = 4096  # bytes: weights of 8 KB take several

# Where the process is when it dies; whether the Hub still does what it was asked; whether the commit is there then.
MOMENTS = {
    "before the upload": ("POST", "/preupload/", 0, "drop", False),
    "between two parts of the weights": ("PUT", "/parts/2", 0, "lose", False),
    "when one of two files has arrived": ("POST", "/lfs/verify", 1, "drop", False),
    "before the commit": ("POST", "/commit/", 0, "drop", False),
    "before it hears of its commit": ("POST", "/commit/", 0, "lose", True),
    "before the tag": ("POST", "/tag/", 0, "drop", True),
}


def saes() -> dict[str, SAE]:
    return {"a": make(seed=0), "b": make(seed=1)}


def push() -> None:
    push_saes(saes(), REPO, tag="v1")


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """New processes in which torch is imported already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hfsae.hub"])
    return context


@pytest.fixture
def parts(hub: HubServer) -> Iterator[HubServer]:
    """A Hub that wants weights in parts."""
    hub.state.part_size = PART
    yield hub


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_process_leaves_all_or_nothing_and_the_next_push_sends_only_what_is_missing(parts, processes, moment):
    method, path, skip, how, committed = MOMENTS[moment]
    hub, pusher = parts, processes.Process(target=push)
    passed = 0

    def kill(request: Request) -> bool:
        """At the moment, the process dies, while it waits for an answer."""
        nonlocal passed
        if request.method != method or path not in request.path:
            return False
        passed += 1
        if passed == skip + 1:
            os.kill(pusher.pid, signal.SIGKILL)
        return passed > skip

    hub.fail(kill, how=how)
    ours = set(hub.listener.connections)
    pusher.start()
    pusher.join(timeout=120)
    assert pusher.exitcode == -signal.SIGKILL
    while hub.listener.connections - ours:  # what was on its way when the process died
        time.sleep(0.01)
    repo = hub.repo(REPO)
    assert len(repo.commits) == 1 + committed and bool(repo.files()) is committed
    arrived = set(repo.lfs_oids)
    hub.faults.clear()
    hub.requests.clear()
    push()
    assert len(repo.commits) == 2 and repo.resolve("v1").oid == repo.resolve("main").oid
    sent = {entry.path.split("/")[2] for entry in hub.requests.matching("PUT", origin="storage")}
    assert len(arrived | sent) == 2 and not arrived & sent
    for name, sae in load_saes(REPO).items():
        assert all(sae.state_dict()[key].equal(value) for key, value in saes()[name].state_dict().items())
    whole = repo.files()
    hub.reset()
    push()
    assert hub.repo(REPO).files() == whole, "what an undisturbed push leaves"
