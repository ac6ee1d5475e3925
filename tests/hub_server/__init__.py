"""A Hugging Face Hub on loopback, which the genuine `huggingface_hub` client, `hf` and `transformers` talk to.

It speaks HTTP and keeps its state in memory. `HubServer` is all that tests need; `tests/conftest.py` starts one for
the whole session and gives it, emptied, to each test as the fixture `hub`. Inside: `state` and `repository` (what a
Hub holds), `routes` (its endpoints, tables of method, pattern and handler), `wire` (HTTP), `faults` (what goes wrong
on request).
"""

from .base import HubError
from .faults import Fault
from .repository import Repo
from .server import HubServer
from .state import User
from .wire import LogEntry, Request, RequestLog

__all__ = ["Fault", "HubError", "HubServer", "LogEntry", "Repo", "Request", "RequestLog", "User"]
