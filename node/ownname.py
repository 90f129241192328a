"""Dev mode needs no key, so it answers to its own address only.

A foreign page whose name is made to resolve to this machine (DNS rebinding) asks under that name
and gets nothing; so does a proxy that hands on the name it was asked under. A page that asks under
our own address, as it may without asking first where a request has no JSON body, is told apart by
the `Origin` that its browser adds: it changes nothing here.
"""

from __future__ import annotations

import re

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

_REFUSAL = (
    "This node runs in dev mode and answers as localhost only. To serve it under another name, "
    "start it with --mode strict.\n"
)
_FOREIGN = "This node runs in dev mode and takes orders from its own pages only.\n"
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_HOST = re.compile(rb"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::[0-9]{1,5})?")


class OwnNameOnly:
    """ASGI middleware that refuses requests for any host but this one."""

    def __init__(self, app: ASGIApp, *, host: str) -> None:
        self._app = app
        self._names = {"localhost", "127.0.0.1", "::1", host.lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 400 or 403."""
        if scope["type"] != "http" or self.admits(scope):
            await self._app(scope, receive, send)
        elif not self._is_own(scope):
            await PlainTextResponse(_REFUSAL, 400)(scope, receive, send)
        else:
            await PlainTextResponse(_FOREIGN, 403)(scope, receive, send)

    def admits(self, scope: Scope) -> bool:
        """Tell whether the node listens to a request."""
        return self._is_own(scope) and (
            scope["method"] in _SAFE_METHODS or not self._is_foreign(scope)
        )

    def _is_own(self, scope: Scope) -> bool:
        return _read_name(_list_values(scope, b"host")) in self._names

    def _is_foreign(self, scope: Scope) -> bool:
        """Tell whether a page of another site asks. Only browsers send an origin."""
        origins = _list_values(scope, b"origin")
        hosts = [origin.partition(b"://")[2] for origin in origins]
        return bool(origins) and _read_name(hosts) not in self._names


def _list_values(scope: Scope, wanted: bytes) -> list[bytes]:
    return [value for name, value in scope["headers"] if name == wanted]


def _read_name(given: list[bytes]) -> str | None:
    """Return the name in the one `host[:port]` given, None unless it is certain."""
    match = _HOST.fullmatch(given[0]) if len(given) == 1 else None
    return (match[1] or match[2]).decode().lower() if match else None
