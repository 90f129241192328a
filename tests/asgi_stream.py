"""Requests spoken to an application as a server speaks to it: no socket, answers as they come."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from typing import Any


class OpenRequest:
    """A request that is open: its status, headers, and pieces of its body."""

    def __init__(
        self, app: Any, path: str, *, method: str = "GET", body: Any = None, **headers: str
    ) -> None:
        path, _, query = path.partition("?")
        content = b"" if body is None else json.dumps(body).encode()
        sent = {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
        if body is not None:
            sent |= {b"content-type": b"application/json", b"content-length": b"%d" % len(content)}
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": list(sent.items()),
            "client": ("192.0.2.1", 50_000),
            "server": ("node.test", 80),
        }
        self._content: bytes | None = content
        self._sent: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.gone = asyncio.Event()
        self.may_send = asyncio.Event()
        """Cleared by a test whose client does not read."""
        self.may_send.set()
        self.ended = False
        """Whether the body was complete."""
        self.status = 0
        self.headers: dict[str, str] = {}
        self.text = ""
        """What was read of the body and not taken as an event."""
        self.task = asyncio.create_task(app(scope, self._receive, self._send))

    async def _receive(self) -> dict[str, Any]:
        if self._content is not None:
            content, self._content = self._content, None
            return {"type": "http.request", "body": content, "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        await self.may_send.wait()
        await self._sent.put(message)

    async def start(self) -> OpenRequest:
        """Wait for the head of the answer."""
        message = await self._sent.get()
        self.status = message["status"]
        self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        return self

    async def read(self) -> bool:
        """Take one more piece of the body; False at its end."""
        if self.ended:
            return False
        message = await self._sent.get()
        self.text += message.get("body", b"").decode()
        self.ended = not message.get("more_body", False)
        return True

    async def read_all(self) -> str:
        """Read to the end of the body."""
        while await self.read():
            pass
        return self.text

    async def event(self) -> tuple[str, str, Any]:
        """The next event: its name, id and data. Comments are passed over."""
        while True:
            while "\n\n" not in self.text:
                assert await self.read(), "the stream ended"
            block, self.text = self.text.split("\n\n", 1)
            fields = dict(line.split(": ", 1) for line in block.split("\n") if ": " in line)
            if "event" in fields:
                return fields["event"], fields["id"], json.loads(fields["data"])

    async def events(self) -> list[tuple[str, str, Any]]:
        """All events up to the end of the stream."""
        await self.read_all()
        blocks = self.text.split("\n\n")
        self.text = "\n\n".join(block for block in blocks if "event: " in block) + "\n\n"
        return [await self.event() for _ in range(self.text.count("event: "))]

    async def hang_up(self) -> None:
        """Leave, and wait until the application has noticed."""
        self.gone.set()
        with suppress(asyncio.CancelledError):
            await self.task


class Opener:
    """Opens requests to one application, and leaves them all at the end."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._opened: list[OpenRequest] = []

    def begin(self, path: str, **request: Any) -> OpenRequest:
        """Send a request without waiting for an answer."""
        request = OpenRequest(self._app, path, **request)
        self._opened.append(request)
        return request

    async def __call__(self, path: str, **request: Any) -> OpenRequest:
        """Send a request and wait for the head of its answer."""
        return await self.begin(path, **request).start()

    async def get(self, path: str, **request: Any) -> OpenRequest:
        """Send a request and read the whole answer."""
        opened = await self(path, **request)
        await opened.read_all()
        return opened

    async def close(self) -> None:
        """Leave whatever is open."""
        for request in self._opened:
            request.may_send.set()
            await request.hang_up()
