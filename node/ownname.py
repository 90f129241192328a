"""Dev mode needs no key, so it answers to its own address only.

A foreign page whose name is made to resolve to this machine (DNS rebinding) asks under that name
and gets nothing; so does a proxy that hands on the name it was asked under.
"""

from __future__ import annotations

import re

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

_REFUSAL = (
    "This node runs in dev mode and answers as localhost only. To serve it under another name, "
    "start it with --mode strict.\n"
)
_HOST = re.compile(rb"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::[0-9]{1,5})?")


class OwnNameOnly:
    """ASGI middleware that refuses requests for any host but this one."""

    def __init__(self, app: ASGIApp, *, host: str) -> None:
        self._app = app
        self._names = {"localhost", "127.0.0.1", "::1", host.lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 400."""
        if scope["type"] == "http" and _read_host(scope) not in self._names:
            await PlainTextResponse(_REFUSAL, 400)(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def _read_host(scope: Scope) -> str | None:
    """Return the name that the request was sent to, None unless it is certain."""
    given = [value for name, value in scope["headers"] if name == b"host"]
    match = _HOST.fullmatch(given[0]) if len(given) == 1 else None
    return (match[1] or match[2]).decode().lower() if match else None
