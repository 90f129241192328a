"""HTTP for the requests of a job's life: those that come whole are answered without ASGI.

uvicorn's protocol makes an ASGI scope, an event and a checked head for every request. Here a
request is answered straight from what was parsed, if all of this holds; every other one goes
uvicorn's way, unchanged:

- the application names who answers it (`api.direct`), and admits it;
- head and body come in one piece, and the body's length is in the head and small;
- the connection has nothing else in hand, its client reads, and it is to be kept;
- the connection is not one too many.

To uvicorn's protocol such a request looks like one of its own (`cycle`): so pipelined requests,
the end of the node and of the connection, keep-alive and counts are uvicorn's business.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, cast

from starlette.types import Scope
from uvicorn.config import Config
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
from uvicorn.protocols.http.httptools_impl import HEADER_VALUE_RE, STATUS_LINE
from uvicorn.server import ServerState

from api.answers import Answer, Header, list_fixed_headers, list_own_headers
from api.direct import MAX_BODY_BYTES, Direct, Found, KnownHead
from api.head import Head
from api.requests import Request
from api.resource import Resource
from node.httphead import BoundedHeadProtocol

_LINE = re.compile(rb"(GET|POST) (/v1/[!-~]+) HTTP/1\.1")
"""The first line of what may be answered here."""
_UNUSUAL = frozenset({b"connection", b"expect", b"transfer-encoding", b"upgrade"})
"""Headers of requests that are not answered here."""
_KEPT: Header = (b"connection", b"keep-alive")
_CLOSE: Header = (b"connection", b"close")

logger = logging.getLogger(__name__)


class _Nobody:
    """Stands where uvicorn wakes who waits for more of a request: it is whole."""

    def set(self) -> None:
        """Do nothing."""


class _Exchange:
    """A request that is being answered, with what uvicorn's protocol asks of its own."""

    message_event = _Nobody()
    more_body = False
    body = b""

    def __init__(self) -> None:
        self.keep_alive = True
        self.disconnected = False
        self.response_complete = False


class DirectProtocol(BoundedHeadProtocol):
    """The protocol of a node's server."""

    _held: Found | None = None
    """Who will answer the request whose body is being read, if all of it comes now."""
    _held_body = b""
    _seen: tuple[bytes, bytes, int] = b"", b"", 0
    """Of a piece that begins with a head: first line, header lines, and how much is behind them."""

    def __init__(
        self, config: Config, server_state: ServerState, app_state: dict[str, Any], **options: Any
    ) -> None:
        super().__init__(config, server_state, app_state, **options)
        direct = None if self.root_path else getattr(config.app, "direct", None)
        self._direct = cast(Direct | None, direct)
        self._proxies = (
            self.app.trusted_hosts if isinstance(self.app, ProxyHeadersMiddleware) else None
        )

    def data_received(self, data: bytes) -> None:
        """Answer a request at once whose head is known; have everything else parsed."""
        is_at_start = self._unclaimed == 0 and not self._in_message and not self._is_refused
        if self._direct is None or not is_at_start or not self._is_free():
            super().data_received(data)
            return
        line, _, rest = data.partition(b"\r\n")
        lines, _, body = rest.partition(b"\r\n\r\n")
        if not self._recognise(self._direct, line, lines, body):
            self._seen = line, lines, len(body)
            super().data_received(data)
            self._seen = b"", b"", 0

    def _recognise(self, direct: Direct, line: bytes, lines: bytes, body: bytes) -> bool:
        """Begin to answer a request whose head was read before, if this is one, whole and alone."""
        match = _LINE.fullmatch(line)
        known = direct.recall(match[1], lines) if match else None
        if match is None or known is None or known.body_bytes != len(body):
            return False
        found = direct.find(match[1], match[2])
        if found is None:
            return False
        self._unset_keepalive_if_required()
        self._stop_deadline()
        self._begin(found, match[1], known, body)
        return True

    # --- what the parser found ------------------------------------------------------------------

    def on_headers_complete(self) -> None:
        """Hold a request back that may be answered here."""
        found = self._find()
        if found is None:
            super().on_headers_complete()
        else:
            self._unclaimed, self._in_message = 0, True
            self._held, self._held_body = found, b""

    def on_body(self, body: bytes) -> None:
        """Keep the body of a request that is held back."""
        if self._held is None:
            super().on_body(body)
        else:
            self._unclaimed = 0
            self._held_body += body

    def on_message_complete(self) -> None:
        """Answer the request that was held back."""
        if self._held is None or self._direct is None:
            super().on_message_complete()
            return
        self._unclaimed, self._in_message = 0, False
        found, self._held = self._held, None
        method, body = self.parser.get_method(), self._held_body
        known = KnownHead(Head(self.headers), self.headers, len(body))
        # What the parser has read must be just what would be recognised.
        line, lines, body_bytes = self._seen
        if line == b"%s %s HTTP/1.1" % (method, self.url) and body_bytes == len(body):
            self._direct.remember(method, lines, known)
        self._begin(found, method, known, body)

    def _watch(self) -> None:
        """Let a request go uvicorn's way whose body did not come in the same piece."""
        if self._held is not None:
            self._held = None
            super().on_headers_complete()
            super().on_body(self._held_body)
        super()._watch()

    # --- what is answered here ------------------------------------------------------------------

    def _find(self) -> Found | None:
        """Return who answers the request whose head is here, None if it goes uvicorn's way."""
        if self._direct is None:
            return None
        method = self.parser.get_method()
        found = self._direct.find(method, self.url)
        if found is None or not self._is_free() or not self._is_plain():
            return None
        scope = {"method": method.decode(), "headers": self.headers}
        return found if self._direct.admits(scope) else None

    def _is_free(self) -> bool:
        return (
            not self._is_excess
            and (self.cycle is None or self.cycle.response_complete)
            and not self.transport.is_closing()
            and not self.flow.write_paused
        )

    def _is_plain(self) -> bool:
        """Tell whether nothing in the head asks for more than an answer to a short body."""
        for name, value in self.headers:
            if name == b"content-length":
                if not value.isdigit() or int(value[:20]) > MAX_BODY_BYTES:
                    return False
            elif name in _UNUSUAL and (name, value.lower()) != _KEPT:
                return False
        return self.parser.get_http_version() == "1.1" and self.parser.should_keep_alive()

    def _begin(self, found: Found, method: bytes, known: KnownHead, body: bytes) -> None:
        scope: Scope = {
            "type": "http",
            "method": method.decode(),
            "root_path": "",
            "path_params": found.path_params,
            "query_string": found.query,
            "headers": known.headers,
            "client": self.client if self._proxies is None else self._find_client(known.headers),
        }
        request = Request(scope, head=known.head, whole=body)
        self.cycle = exchange = cast(Any, _Exchange())
        task = self.loop.create_task(self._answer(exchange, found.resource, request))
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)

    def _find_client(self, headers: Sequence[Header]) -> tuple[str, int] | None:
        """Believe a trusted proxy whose request it is, as uvicorn's middleware does."""
        proxies = self._proxies
        if proxies is None or (self.client[0] if self.client else None) not in proxies:
            return self.client
        given = [value for name, value in headers if name == b"x-forwarded-for"]
        host, port = proxies.get_trusted_client_address(b", ".join(given).decode("latin-1"))
        return (host, port) if host else self.client

    async def _answer(self, exchange: _Exchange, resource: Resource, request: Request) -> None:
        try:
            await resource.answer_whole(
                request, lambda answer: self._send(exchange, answer, request.id)
            )
        except Exception:
            logger.exception("request %s failed", request.id)
        finally:
            if not exchange.response_complete:
                exchange.response_complete = True
                self.transport.close()

    def _send(self, exchange: _Exchange, answer: Answer, request_id: str) -> None:
        is_last = _CLOSE in answer.headers
        headers = self.server_state.default_headers + list_own_headers(
            answer, request_id, close=not exchange.keep_alive and not is_last
        )
        head = _encode_fixed_head(answer.status, answer.cache_control, answer.content_type)
        parts = [head, *map(_encode_header, headers), b"\r\n", answer.body]
        exchange.response_complete = True
        if not self.transport.is_closing():
            self.transport.write(b"".join(parts))
        if is_last or not exchange.keep_alive:
            self.transport.close()
        self.on_response_complete()


@lru_cache(maxsize=64)
def _encode_fixed_head(status: int, cache_control: bytes, content_type: bytes) -> bytes:
    headers = list_fixed_headers(status, cache_control, content_type)
    return STATUS_LINE[status] + b"".join(map(_encode_header, headers))


def _encode_header(header: Header) -> bytes:
    """Return the line of a header. Raises ValueError if the value is none."""
    name, value = header
    if HEADER_VALUE_RE.search(value):
        raise ValueError("a header's value holds control characters")
    return b"%s: %s\r\n" % (name, value)
