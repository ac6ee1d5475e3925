"""A client to test the loopback Hub with."""

import pytest
from huggingface_hub import HfApi

from tests.hub_server import HubServer
from tests.test_hub_server.common import REPO


@pytest.fixture
def api(hub: HubServer) -> HfApi:
    """A client with the write token of the default account, which owns the repository `tester/model`."""
    api = HfApi()
    api.create_repo(REPO)
    return api
