"""The table of routes: (method, pattern) to handler, with the access to a repository that each one needs."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlencode

from .base import HubError
from .state import Access, Caller, Hub
from .wire import Request, Response

PLACEHOLDERS = {
    "kind": "model|dataset|space",
    "prefix": "(?:datasets/|spaces/)?",  # what stands before the id in the URL of a page or file: nothing for models
    "repo": "[^/]+(?:/[^/]+)?",
    "path": ".+",
}


@dataclass(frozen=True)
class Call:
    """A request on its way to a handler: who sent it, to which Hub."""

    hub: Hub
    request: Request
    caller: Caller

    def page(self, items: list[Any], size: int) -> Response:
        """The page of a list that the request's `cursor` asks for, with a `Link` header to the next one."""
        start = int(self.request.option("cursor", "0"))
        headers = {}
        if start + size < len(items):
            query = urlencode({**self.request.query, "cursor": start + size}, doseq=True)
            headers["Link"] = f'<{self.hub.endpoint}{self.request.target}?{query}>; rel="next"'
        return Response.json(items[start : start + size], headers=headers)


Handler = Callable[..., Any]


@dataclass(frozen=True)
class Route:
    method: str
    pattern: re.Pattern[str]
    access: Access | None
    handler: Handler


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """`/api/{kind}s/{repo}/refs` as a regular expression with named groups; `{name}` is one segment by default."""
    pieces = re.split(r"\{(\w+)\}", pattern)
    literals, names = pieces[::2], [*pieces[1::2], ""]
    groups = [f"(?P<{name}>{PLACEHOLDERS.get(name, '[^/]+')})" if name else "" for name in names]
    return re.compile("".join(re.escape(text) + group for text, group in zip(literals, groups, strict=True)))


class Routes:
    """A table of routes, filled by the decorator `@routes.on(...)`; the first that matches answers."""

    def __init__(self) -> None:
        self.table: list[Route] = []

    def on(self, method: str, pattern: str, access: Access | None = None) -> Callable[[Handler], Handler]:
        """Register a handler.

        It is called with a `Call` and the placeholders of the pattern as keyword arguments. Where the pattern names a
        `{repo}`, the handler gets the `Repo` itself, after the caller's `access` to it was checked. What it returns
        is sent as JSON, unless it is a `Response`.
        """

        def register(handler: Handler) -> Handler:
            self.table.append(Route(method, compile_pattern(pattern), access, handler))
            return handler

        return register

    def include(self, *others: "Routes") -> "Routes":
        for other in others:
            self.table += other.table
        return self

    def dispatch(self, hub: Hub, request: Request) -> Response:
        """Find the route, check access, call the handler."""
        method = "GET" if request.method == "HEAD" else request.method
        call = Call(hub, request, hub.identify(request.token))
        for route in self.table:
            match = route.pattern.fullmatch(request.target)
            if route.method == method and match:
                arguments: dict[str, Any] = {key: unquote(value) for key, value in match.groupdict("").items()}
                if route.access:
                    kind = arguments.pop("kind", None) or arguments.pop("prefix").removesuffix("s/") or "model"
                    arguments["repo"] = hub.open_repo(call.caller, kind, arguments["repo"], route.access)
                result = route.handler(call, **arguments)
                return result if isinstance(result, Response) else Response.json(result)
        raise HubError(404, f"This Hub has no endpoint {request.method} {request.target}")
