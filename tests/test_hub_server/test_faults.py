"""Injected faults, as the client meets them."""

import os
from pathlib import Path

import pytest
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.constants import DOWNLOAD_CHUNK_SIZE
from huggingface_hub.utils import get_session

from tests.hub_server import HubServer
from tests.test_hub_server.common import REPO, put, raises_status


def test_an_upload_survives_a_passing_503(hub: HubServer, api: HfApi):
    hub.fail(("POST", "/preupload/"), status=503)
    put(api, {"a.txt": b"a"})
    assert [entry.status for entry in hub.requests.matching("POST", "/preupload/")] == [503, 200]


def test_a_failed_commit_leaves_the_repo_and_the_second_try_sends_no_weights(hub: HubServer, api: HfApi):
    hub.fail(("POST", "/commit/"), status=500)
    with raises_status(500):
        put(api, {"w.safetensors": b"weights"})
    assert hub.repo(REPO).files() == {}
    put(api, {"w.safetensors": b"weights"})
    assert len(hub.requests.matching("PUT", origin="storage")) == 1


@pytest.mark.parametrize(("how", "committed"), [("drop", False), ("lose", True)])
def test_a_dropped_connection_before_and_after_the_commit(hub: HubServer, api: HfApi, how, committed: bool):
    hub.fail(("POST", "/commit/"), how=how)
    with pytest.raises(Exception, match="disconnected"):
        put(api, {"a.txt": b"a"})
    assert ("a.txt" in hub.repo(REPO).files()) == committed
    assert hub.requests.matching("POST", "/commit/")[0].status is None


def test_a_download_that_breaks_off_is_resumed(hub: HubServer, api: HfApi):
    chunk = DOWNLOAD_CHUNK_SIZE  # what the client writes at once, and so can resume from
    data = os.urandom(2 * chunk + 2)
    put(api, {"w.safetensors": data})
    hub.fail(("GET", "/objects/"), how="truncate")
    assert Path(hf_hub_download(REPO, "w.safetensors")).read_bytes() == data
    assert [entry.range for entry in hub.requests.matching("GET", "/objects/")] == [None, f"bytes={chunk}-"]


def test_faults_strike_the_request_they_name(hub: HubServer):
    def statuses(count: int) -> list[int]:
        return [get_session().get(f"{hub.endpoint}/api/models").status_code for _ in range(count)]

    hub.fail(skip=2, status=418)
    assert statuses(4) == [200, 200, 418, 200]
    hub.fail(lambda request: request.path == "/api/models", status=500, times=2)
    assert statuses(3) == [500, 500, 200]
    hub.fail(("POST", ".*"), status=500)
    assert statuses(1) == [200]
    hub.fail((None, "models$"), status=502, times=None)
    assert statuses(3) == [502, 502, 502]
    hub.reset()
    assert statuses(1) == [200] and len(hub.requests) == 1


def test_a_crash_of_the_server_is_told_to_the_test(hub: HubServer):
    hub.fail(lambda request: 1 / 0 > 1)
    with pytest.raises(Exception, match="disconnected"):
        HfApi().whoami()
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        hub.check()
    hub.reset()
