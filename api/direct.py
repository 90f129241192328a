"""The requests of a job's life, found and answered without routes and ASGI.

A server that has such a request whole, head and body, may ask here for who answers it, and send
what that returns. Everything else about a request is as anywhere: the same resources stand behind
the routes, and whatever is not found here goes that way.

A client that keeps its connection sends the same headers with every request, so what was read of
them is remembered by their bytes, and reading them again costs nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from starlette.routing import BaseRoute, Route
from starlette.types import Scope

from api.answers import Header
from api.head import Head
from api.resource import Operation, Resource

MAX_BODY_BYTES = 32 << 10
"""Such bodies are held without asking for room: one for each connection at most."""

_NAMED = re.compile(rb"(/v1/[a-z]+/)([A-Za-z0-9_]{1,64})(/[a-z]+)?")
"""A path with one variable part, which needs no decoding."""
_PATTERN = re.compile(r"(/v1/[a-z]+/)\{([a-z_]+)\}(/[a-z]+)?")

MAX_KNOWN_HEADS = 4_096
"""Beyond that all of them are read anew."""
MAX_KNOWN_HEAD_BYTES = 1_024


class KnownHead(NamedTuple):
    """What was read of the lines between the first one and the body."""

    head: Head
    headers: Sequence[Header]
    """All of them, names in lower case."""
    body_bytes: int


class Found(NamedTuple):
    """Who answers a request, and what of its address varies."""

    resource: Resource
    path_params: dict[str, str]
    query: bytes


class _Entry(NamedTuple):
    resource: Resource
    parameter: str
    """Name of the variable part, empty if there is none."""
    takes_query: bool


class Direct:
    """The operations that are answered directly, by method and path."""

    def __init__(
        self, routes: Iterable[BaseRoute], *, admits: Callable[[Scope], bool] = lambda _scope: True
    ) -> None:
        """`admits` tells of a request's method and headers whether the node listens to it at all.

        One that is not admitted goes the usual way, where it is refused.
        """
        self.admits = admits
        self._plain: dict[tuple[bytes, bytes], _Entry] = {}
        self._named: dict[tuple[bytes, bytes, bytes | None], _Entry] = {}
        self._other: set[bytes] = set()
        """Paths that look as if they held a name, and do not."""
        self._heads: dict[tuple[bytes, bytes], KnownHead] = {}
        for route in routes:
            if isinstance(route, Route) and isinstance(route.app, Resource):
                self._other.add(route.path.encode())
                for method, operation in route.app.operations.items():
                    if operation.direct != "never":
                        self._add(method.encode(), route.path, route.app, operation)

    def _add(self, method: bytes, path: str, resource: Resource, operation: Operation) -> None:
        takes_query = operation.direct == "always"
        named = _PATTERN.fullmatch(path)
        if named is None:
            self._plain[method, path.encode()] = _Entry(resource, "", takes_query)
        else:
            before, parameter, after = named.groups()
            place = method, before.encode(), after.encode() if after else None
            self._named[place] = _Entry(resource, parameter, takes_query)

    def find(self, method: bytes, url: bytes) -> Found | None:
        """Return who answers, None if the request must go through the routes."""
        path, mark, query = url.partition(b"?")
        name = ""
        entry = self._plain.get((method, path))
        if entry is None:
            match = _NAMED.fullmatch(path) if path not in self._other else None
            entry = self._named.get((method, match[1], match[3])) if match else None
            if match is None or entry is None:
                return None
            name = match[2].decode()
        if mark and (not entry.takes_query or b"#" in query):
            return None
        return Found(entry.resource, {entry.parameter: name} if name else {}, query)

    def recall(self, method: bytes, lines: bytes) -> KnownHead | None:
        """Return what was remembered of the header lines of such a request."""
        return self._heads.get((method, lines))

    def remember(self, method: bytes, lines: bytes, known: KnownHead) -> None:
        """Keep what was read of header lines that were admitted with this method."""
        if len(lines) > MAX_KNOWN_HEAD_BYTES or known.head.is_unique:
            return
        if len(self._heads) >= MAX_KNOWN_HEADS:
            self._heads.clear()
        self._heads[method, lines] = known
