"""Faults that a test injects between the client and the Hub."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from .base import HubError
from .wire import Request, Response

When = Callable[[Request], bool] | tuple[str | None, str] | None
How = Literal["refuse", "drop", "lose", "truncate", "corrupt", "hang"]


@dataclass
class Fault:
    """What goes wrong, with which requests, and how often.

    Attributes:
        when: The requests it concerns: a predicate, or (method or None, a regular expression searched for in the
            path), or None for all.
        how: `refuse`: answer with `status`, do nothing. `drop`: hang up before the request is handled. `lose`: handle
            the request, then hang up without an answer. `truncate`: hang up in the middle of the answer's body.
            `corrupt`: change the last byte of the request's body on its way. `hang`: take the request and say nothing
            until the client hangs up.
        status: What `refuse` answers.
        message: What it says with it.
        headers: Headers of that answer.
        body: Its body, instead of the Hub's JSON: the page of a proxy.
        skip: Matching requests that pass before the fault strikes.
        times: How often it strikes; None: always.
    """

    when: When = None
    how: How = "refuse"
    status: int = 503
    message: str = ""
    skip: int = 0
    times: int | None = 1
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None

    def concerns(self, request: Request) -> bool:
        if self.when is None:
            return True
        if callable(self.when):
            return self.when(request)
        method, path = self.when
        return method in (None, request.method) and re.search(path, request.path) is not None

    def strikes(self, request: Request) -> bool:
        """Whether this request is hit; counts it."""
        if self.times == 0 or not self.concerns(request):
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        if self.times is not None:
            self.times -= 1
        return True

    def refusal(self) -> Response:
        if self.body is not None:
            return Response(self.status, self.body, {"Content-Type": "text/html", **self.headers})
        message = self.message or f"Injected fault: HTTP {self.status}"
        return Response.error(HubError(self.status, message, headers=self.headers))
