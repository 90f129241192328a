"""Bounds what a connection may send, and how slowly, before it has sent a request.

httptools keeps an unfinished header in memory and copies it with every piece that arrives, and
uvicorn waits for the rest for ever; a stranger needs no key for either. Bodies have their own
bounds (`api.requests`).
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 64 << 10
"""Of a request line with its headers, of the frame of one chunk, and of trailers."""
SLICE_BYTES = 16 << 10
"""What the parser gets at once. A pipelined head may be longer than the bound by up to this."""
MAX_REFUSED_CONNECTIONS = 64
"""How many above the limit are told 503; those above are closed unheard."""
LINGER_S = 2.0
"""How long a refused client may go on sending until it reads why."""
_REFUSAL_TEXT = b"The head of a request may have at most %d bytes.\n" % MAX_HEAD_BYTES
_REFUSAL = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"content-type: text/plain; charset=utf-8\r\n"
    b"content-length: %d\r\n"
    b"connection: close\r\n\r\n%s" % (len(_REFUSAL_TEXT), _REFUSAL_TEXT)
)


class BoundedHeadProtocol(HttpToolsProtocol):
    """uvicorn's protocol with a bound on bytes that are no body, and a deadline for them."""

    head_timeout_s = 10.0
    """From connecting, or from the first byte of a later request, to the end of the head."""
    _deadline: asyncio.TimerHandle | None = None
    _unclaimed = 0
    """Bytes since the last head, piece of a body or end of a request."""
    _in_message = False
    _is_refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the deadline; close at once where even a refusal would cost too much."""
        super().connection_made(transport)
        limit = self.limit_concurrency
        if limit is not None and len(self.connections) > limit + MAX_REFUSED_CONNECTIONS:
            transport.abort()
        else:
            self._start_deadline(self.head_timeout_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the deadline."""
        self._stop_deadline()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Hand on as much as the bound allows."""
        if self._is_refused:
            return
        start = 0
        while start < len(data) and not self.transport.is_closing():
            room = min(SLICE_BYTES, MAX_HEAD_BYTES - self._unclaimed)
            if room == 0:
                self._refuse()
                return
            piece = data[start : start + room]
            start += room
            self._unclaimed += len(piece)
            super().data_received(piece)
        self._watch()

    def _watch(self) -> None:
        """Run the deadline where the client owes us something and no request keeps the time."""
        answered = self.cycle is None or self.cycle.response_complete
        if not answered or (self._unclaimed == 0 and not self._in_message):
            self._stop_deadline()
        elif self._deadline is None:
            self._start_deadline(self.head_timeout_s)

    def _refuse(self) -> None:
        """Answer 431, unless another answer is on its way, and take no more."""
        self._is_refused = True
        self._stop_deadline()
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.abort()
            return
        # Closing on unread bytes resets the connection, and the client would never see the answer.
        self.transport.write(_REFUSAL)
        self.transport.write_eof()
        self._start_deadline(LINGER_S)

    def _start_deadline(self, seconds: float) -> None:
        self._deadline = self.loop.call_later(seconds, self.transport.abort)

    def _stop_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    # --- what the parser found ------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Count from here if the request before ended in the same piece."""
        self._unclaimed = max(self._unclaimed, 1)
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Count anew."""
        self._unclaimed = 0
        self._in_message = True
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Count anew."""
        self._unclaimed = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Count anew."""
        self._unclaimed = 0
        self._in_message = False
        super().on_message_complete()
