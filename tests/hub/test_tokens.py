"""A token goes to the Hub, and nowhere else: not to the storage, not into files, logs or messages."""

import logging
import os
import traceback
from pathlib import Path

import pytest

from hfsae import SAE, find_saes, list_saes, load_saes, push_saes
from hfsae.hub import PushError
from hfsae.hub.repository import Destination
from tests.hub.conftest import make

REPO = "lab-member/sae"


@pytest.fixture
def token(hub) -> str:
    return hub.add_user("lab-member").write_token


def test_it_is_in_nothing_that_is_published_or_cached(hub, token, caplog):
    with caplog.at_level(logging.DEBUG):
        push_saes({"a": make()}, REPO, token=token, tag="v1", collection="Ours", private=True)
        assert list(load_saes(REPO, token=token)) == ["a"] == [entry.name for entry in list_saes(REPO, token=token)]
        assert [entry.repo_id for entry in find_saes(token=token)] == [REPO]
    published = hub.repo(REPO).files()
    cached = {path: path.read_bytes() for path in Path(os.environ["HF_HOME"]).rglob("*") if path.is_file()}
    assert published and cached
    assert not [name for name, content in {**published, **cached}.items() if token.encode() in content]
    assert token not in caplog.text


def test_it_is_sent_to_the_hub_and_never_to_the_storage(hub, token):
    make().push_to_hub(REPO, token=token)
    SAE.from_pretrained(REPO, token=token)
    assert any(entry.sent_token for entry in hub.requests)
    assert not [entry for entry in hub.requests if entry.origin == "storage" and entry.sent_token]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 412, 413, 418])
@pytest.mark.parametrize("path", ["/api/repos/create", "/preupload/", "/commit/"])
def test_no_error_repeats_it_even_where_the_hub_does(hub, token, status, path):
    hub.fail(("POST", path), status=status, message=f"No way, {token}.", times=None)
    with pytest.raises(OSError) as refused:
        make().push_to_hub(REPO, token=token, retries=0)
    assert token not in str(refused.value)


@pytest.mark.parametrize("bad", ["hf_secret\n\nwith more", "hf_sécret", "hf_secret two"])
def test_a_token_that_no_http_header_can_hold_is_not_repeated_with_its_traceback(hub, bad):
    """The HTTP library itself would print it in full."""
    for act in (
        lambda: make().push_to_hub(REPO, token=bad),
        lambda: list_saes(REPO, token=bad),
        lambda: load_saes(REPO, token=bad),
        lambda: find_saes(token=bad),
    ):
        with pytest.raises(ValueError, match="copy it again") as refused:
            act()
        shown = "".join(traceback.format_exception(refused.value, chain=True))
        assert "secret" not in "".join(line for line in shown.splitlines() if "ValueError" in line)
    assert not hub.requests


def test_a_destination_does_not_show_it():
    assert "hf_secret" not in repr(Destination(REPO, token="hf_secret"))


@pytest.mark.parametrize("switch", [True, False])
def test_the_stored_token_can_be_asked_for_and_left_out(hub, switch):
    make().push_to_hub("tester/sae", token=True)
    hub.requests.clear()
    assert [entry.name for entry in list_saes("tester/sae", token=switch)] == [""]
    assert list(load_saes("tester/sae", token=switch)) == [""]
    assert [entry.repo_id for entry in find_saes(token=switch)] == ["tester/sae"]
    # transformers asks for this file of a model with the stored token whatever it is told.
    asked = [entry for entry in hub.requests if entry.origin == "hub" and "adapter_config" not in entry.path]
    assert {entry.sent_token for entry in asked} == {switch}


def test_pushing_without_a_token_is_refused_by_the_hub(hub):
    with pytest.raises(PushError, match="tester/sae was not pushed"):
        make().push_to_hub("tester/sae", token=False)


@pytest.mark.parametrize("path", ["/api/repos/create", "/commit/"])
def test_no_traceback_repeats_it_even_where_the_hub_does(hub, token, path):
    hub.fail(("POST", path), status=403, message=f"No way, {token}.", times=None)
    with pytest.raises(PushError) as refused:
        make().push_to_hub(REPO, token=token, retries=0)
    assert token not in "".join(traceback.format_exception(refused.value))
