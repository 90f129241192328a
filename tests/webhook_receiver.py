"""A receiver of webhooks on an ephemeral loopback port, which answers as a test wants."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

WAIT_S = 60


@dataclass(frozen=True)
class Heard:
    """One request as it arrived."""

    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def event(self) -> dict:
        return json.loads(self.body)


def verify(secret: str, heard: Heard) -> bool:
    """Check a signature from the words of the specification, sharing nothing with the node."""
    key = base64.b64decode(secret.split("_", 1)[1], validate=True)
    signed = b".".join([heard.id.encode(), heard.headers["webhook-timestamp"].encode(), heard.body])
    (version, signature) = heard.headers["webhook-signature"].split(",")
    expected = hmac.digest(key, signed, hashlib.sha256)
    return version == "v1" and base64.b64decode(signature, validate=True) == expected


class Receiver:
    """Notes what it hears; `answer(handler)` replies to each request."""

    def __init__(self) -> None:
        self.heard: list[Heard] = []
        self.answer: Callable[[BaseHTTPRequestHandler], None] = reply(204)
        self.released = threading.Event()
        """For answers that wait: set at the end at the latest."""
        self._news = threading.Condition()
        self.url = ""

    @property
    def ids(self) -> list[str]:
        return [heard.id for heard in self.heard]

    def note(self, heard: Heard) -> None:
        with self._news:
            self.heard.append(heard)
            self._news.notify_all()

    def wait_for(self, holds: Callable[[], bool]) -> None:
        with self._news:
            assert self._news.wait_for(holds, WAIT_S), f"heard {self.ids}"


def reply(status: int, body: bytes = b"", **headers: str):
    """An answer with a status, a body and headers."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("content-length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return answer


class _Server(ThreadingHTTPServer):
    block_on_close = True
    daemon_threads = True

    def handle_error(self, request, client_address):
        """A sender that hangs up is what some tests want."""


@contextmanager
def receiver(tls: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    """Listen until the end of the context."""
    found = Receiver()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = WAIT_S

        def do_POST(self):
            length = int(self.headers["content-length"])
            body = self.rfile.read(length)
            if len(body) < length:
                return  # the sender was killed in the middle
            found.note(Heard({k.lower(): v for k, v in self.headers.items()}, body))
            found.answer(self)

        def log_message(self, *_):
            pass

    server = _Server(("127.0.0.1", 0), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
    found.url = f"http{'s' if tls else ''}://127.0.0.1:{server.server_address[1]}/hook"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield found
    finally:
        found.released.set()
        server.shutdown()
        thread.join(WAIT_S)
        server.socket.close()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]
