"""Serves the application under a path of a proxy's, such as `/aitbc` of `https://node.example`."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send


class Prefixed:
    """ASGI middleware that lets every request look as if it was asked for below a prefix.

    A proxy may take the prefix off or leave it on; so the node's own pages, whose links have it,
    also work at its own address.
    """

    def __init__(self, app: ASGIApp, *, prefix: str) -> None:
        self._app = app
        self._prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with the prefix in front of its path."""
        if scope["type"] == "http":
            path: str = scope["path"]
            is_below = path == self._prefix or path.startswith(self._prefix + "/")
            full = path if is_below else self._prefix + path
            scope = {**scope, "root_path": self._prefix, "path": full}
        await self._app(scope, receive, send)
