"""A real server whose endpoints tell by which way a request came to them; raw sockets to it."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from starlette.routing import Route

from api.answers import Answer
from api.requests import BodyRoom
from api.resource import ApiSettings, Boundary, Operation, Resource
from ledger.jobs import Caller
from node.application import DirectApplication
from tests.api_server import serve

MAX_BODY_BYTES = 64 << 10
HOST = b"Host: localhost\r\n"
_LENGTH = re.compile(rb"content-length: ([0-9]+)\r\n")


class OneKey:
    """Knows the API key `good`, until it is revoked."""

    is_revoked = False

    def authenticate(self, secret):
        good = secret == "good" and not self.is_revoked
        return Caller(key="k", client="c", role="client") if good else None


class Stage:
    """What the endpoints under /v1/jobs do, and what was told of their requests."""

    def __init__(self, *, body_timeout_ms: int = 30_000, own_host: str | None = None) -> None:
        self.keys = OneKey()
        self.outcomes: list[Any] = []
        self.told = threading.Event()
        self.entered = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._may_go_on: asyncio.Event | None = None
        settings = ApiSettings(
            mode="dev", version="0", default_model="m", body_timeout_ms=body_timeout_ms
        )
        room = BodyRoom()
        post = {"direct": "without_query", "max_body_bytes": MAX_BODY_BYTES}
        operations = {
            "/v1/jobs": {"POST": Operation(handler=self.echo, **post)},
            "/v1/jobs/batch": {"POST": Operation(handler=self.echo)},
            "/v1/jobs/available": {"GET": Operation(handler=self.echo, direct="always")},
            "/v1/jobs/{job_id}": {"GET": Operation(handler=self.echo, direct="without_query")},
            "/v1/jobs/{job_id}/slow": {"POST": Operation(handler=self.wait, **post)},
            "/v1/jobs/{job_id}/wrong": {"POST": Operation(handler=self.fail, **post)},
            "/v1/jobs/{job_id}/split": {"POST": Operation(handler=self.split, **post)},
        }
        self.routes = [
            Route(
                path,
                Resource(
                    of_path,
                    keys=self.keys,
                    settings=settings,
                    make_request_id=lambda: "made",
                    room=room,
                    path=path,
                    boundary=Boundary(observe=self._note),
                ),
            )
            for path, of_path in operations.items()
        ]
        self.app = DirectApplication(
            own_host=own_host, direct_routes=self.routes, routes=self.routes
        )

    def _note(self, outcome) -> None:
        self.outcomes.append(outcome)
        self.told.set()

    async def echo(self, request) -> Answer:
        way = "routes" if "app" in request.scope else "direct"
        job_id = request.scope["path_params"].get("job_id", "-")
        wanted = request.text("wanted") or "-"
        client = request.scope["client"][0]
        told = f"{way} {request.method} {job_id} {wanted} {client} {request.body.decode()}"
        return Answer(body=told.encode(), content_type=b"text/plain")

    async def wait(self, request) -> Answer:
        """Answers once it is let go."""
        self._loop = asyncio.get_running_loop()
        self._may_go_on = asyncio.Event()
        self.entered.set()
        await self._may_go_on.wait()
        return await self.echo(request)

    def let_go(self) -> None:
        assert self._loop is not None
        assert self._may_go_on is not None
        self._loop.call_soon_threadsafe(self._may_go_on.set)

    async def fail(self, _request) -> Answer:
        raise ValueError("a fault of ours")

    async def split(self, _request) -> Answer:
        return Answer(headers=((b"x-split", b"a\r\nset-cookie: b"),))


@contextmanager
def staged(stage: Stage, **options: Any) -> Iterator[int]:
    """Serve it; yields the port."""
    with serve(stage.app, **options) as port:
        yield port


def build(path: str, body: bytes | None = None, *, more: bytes = b"", method: str = "") -> bytes:
    """One request."""
    method = method or ("GET" if body is None else "POST")
    head = f"{method} {path} HTTP/1.1\r\n".encode() + HOST + more
    if body is None:
        return head + b"\r\n"
    typed = b"Content-Type: application/json\r\nContent-Length: %d\r\n" % len(body)
    return head + typed + b"\r\n" + body


class Wire:
    """A raw connection that reads one answer after another."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=20)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._seen = b""

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def read(self) -> tuple[int, bytes, bytes]:
        """Return status, head and body of the next answer."""
        head = self._until(b"\r\n\r\n")
        length = _LENGTH.search(head)
        size = int(length[1]) if length else 0
        while len(self._seen) < size:
            self._more()
        body, self._seen = self._seen[:size], self._seen[size:]
        return int(head[9:12]), head, body

    def ask(self, request: bytes) -> bytes:
        """Send a request; returns the body of its answer, which must be 200."""
        self.send(request)
        status, _, body = self.read()
        assert status == 200, body
        return body

    def is_closed(self) -> bool:
        return self._seen == b"" and self.socket.recv(1) == b""

    def _until(self, end: bytes) -> bytes:
        while end not in self._seen:
            self._more()
        head, _, self._seen = self._seen.partition(end)
        return head + end

    def _more(self) -> None:
        chunk = self.socket.recv(65_536)
        assert chunk, self._seen
        self._seen += chunk
