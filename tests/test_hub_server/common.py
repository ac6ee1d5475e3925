"""What the tests of the loopback Hub share."""

from contextlib import AbstractContextManager

import pytest
from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError

REPO = "tester/model"
CARD = b"""---
library_name: hfsae
license: mit
tags: [topk]
base_model: org/lm
base_model_relation: adapter
---
# A card
"""


def put(api: HfApi, files: dict[str, bytes], repo_id: str = REPO, **kwargs) -> CommitInfo:
    """Commit files, given by path; keyword arguments go to `create_commit`."""
    operations = [CommitOperationAdd(path, data) for path, data in files.items()]
    return api.create_commit(repo_id, operations, commit_message="Add files", **kwargs)


def raises_status(status: int) -> AbstractContextManager[pytest.ExceptionInfo[HfHubHTTPError]]:
    """Expect that the Hub answers with this HTTP status."""
    return pytest.raises(HfHubHTTPError, match=rf"\b{status} ")
