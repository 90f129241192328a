"""Bounds connections, and what one may send, and how slowly, before it has sent a request.

httptools keeps an unfinished header in memory and copies it with every piece that arrives, and
uvicorn waits for the rest for ever; a stranger needs no key for either. Bodies have their own
bounds (`api.requests`).

Where there are as many connections as are served, one that is idle between two requests gives its
place to a new one; if all are at work, the new one is told 503. uvicorn would refuse requests of
those that were there before, too.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 64 << 10
"""Of a request line with its headers, of the frame of one chunk, and of trailers."""
SLICE_BYTES = 16 << 10
"""What the parser gets at once. A pipelined head may be longer than the bound by up to this."""
REFUSED_SHARE = 2
"""One above the limit is told 503 for so many below it; those above are closed unheard."""
MAX_REFUSED = 512
"""However many are served, no more than so many are told at once."""
RETRY_AFTER_S = 2
MIN_IDLE_S = 5.0
"""Idle for less, a connection keeps its place: its client is about to send the next request."""
LINGER_S = 2.0
"""How long a refused client may go on sending until it reads why."""


def _build_refusal(status: bytes, text: bytes) -> bytes:
    return (
        b"HTTP/1.1 %s\r\ncontent-type: text/plain; charset=utf-8\r\n"
        b"content-length: %d\r\nconnection: close\r\n\r\n%s\n" % (status, len(text) + 1, text)
    )


_TOO_LONG = _build_refusal(
    b"431 Request Header Fields Too Large",
    b"The head of a request may have at most %d bytes." % MAX_HEAD_BYTES,
)
_TOO_MANY = _build_refusal(
    b"503 Service Unavailable\r\nretry-after: %d" % RETRY_AFTER_S,
    b"This node has as many connections as it serves at once; try again.",
)


class BoundedHeadProtocol(HttpToolsProtocol):
    """uvicorn's protocol with a bound on bytes that are no body, and a deadline for them."""

    head_timeout_s = 10.0
    """From connecting, or from the first byte of a later request, to the end of the head."""
    min_idle_s = MIN_IDLE_S
    _deadline: asyncio.TimerHandle | None = None
    _unclaimed = 0
    """Bytes since the last head, piece of a body or end of a request."""
    _in_message = False
    _is_refused = False
    _is_excess = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the deadline; close at once where even a refusal would cost too much."""
        super().connection_made(transport)
        # Whoever is served once is served on: the limit is for those who come.
        limit, self.limit_concurrency = self.limit_concurrency, None
        if limit is not None and len(self.connections) > limit:
            self._is_excess = not self._replace_idle()
            told = min(limit // REFUSED_SHARE, MAX_REFUSED)
            if self._is_excess and len(self.connections) > limit + told:
                transport.abort()
                return
        self._start_deadline(self.head_timeout_s)

    def _replace_idle(self) -> bool:
        """Close a connection that was answered and asks nothing; tell whether there is one."""
        for other in self.connections:
            if isinstance(other, BoundedHeadProtocol) and other.is_idle:
                other.transport.close()
                return True
        return False

    @property
    def is_idle(self) -> bool:
        """Whether its last request was answered a while ago, and no byte of another has come."""
        timer = self.timeout_keep_alive_task  # which would close it anyway, in the end
        if timer is None or self.transport.is_closing():
            return False
        left_s = timer.when() - self.loop.time()
        return left_s <= self.timeout_keep_alive - self.min_idle_s

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the deadline."""
        self._stop_deadline()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Hand on as much as the bound allows."""
        if self._is_refused:
            return
        if self._is_excess:
            self._refuse(_TOO_MANY)
            return
        start = 0
        while start < len(data) and not self.transport.is_closing():
            room = min(SLICE_BYTES, MAX_HEAD_BYTES - self._unclaimed)
            if room == 0:
                self._refuse(_TOO_LONG)
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

    def _refuse(self, refusal: bytes) -> None:
        """Answer that, unless another answer is on its way, and take no more."""
        self._is_refused = True
        self._stop_deadline()
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.abort()
            return
        # Closing on unread bytes resets the connection, and the client would never see the answer.
        self.transport.write(refusal)
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
