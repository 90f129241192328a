"""The home page and how it stays current: one event stream, or polling where streams run out.

Both send the same fragment: `<hx-partial>` elements that replace the status line, the figures and
two whole table bodies of fixed height, so nothing on the page moves.

A browser opens at most six connections to a server over HTTP/1.1, and each open page holds one.
From the fifth stream of one client address on the answer is 204, and the page asks for the
fragment every few seconds instead (`HX-Trigger: poll` starts that, in the page's own markup).
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from explorer_ui.site import SECURITY_HEADERS, Frame, Site
from explorer_ui.sources import ClosingError, HeadWatch, Views
from explorer_ui.streaming import HeldStream
from ledger.views import BlockView, HeadView, ReceiptFilter, ReceiptView, StatsView

LATEST_ROWS = 10
MAX_STREAMS = 256
MAX_STREAMS_PER_CLIENT = 4
HEARTBEAT_S = 15.0
MIN_GAP_S = 0.5
"""Between two messages of a stream: many blocks in a burst become one change of the page."""
POLL = {"HX-Trigger": "poll"}


@dataclass(frozen=True, slots=True, kw_only=True)
class HomePage:
    """What the home page shows at one moment."""

    head: HeadView
    stats: StatsView
    blocks: list[BlockView]
    receipts: list[ReceiptView]
    mark: str
    """Names this state: a stream that is opened with it stays silent until something changes."""
    blank_blocks: int
    """Empty rows that keep the table at its full height."""
    blank_receipts: int


class Home:
    """Serves `/`, its fragment and its stream."""

    def __init__(
        self,
        *,
        site: Site,
        views: Views,
        head_changed: HeadWatch,
        clock_ms: Callable[[], int],
        heartbeat_s: float = HEARTBEAT_S,
        min_gap_s: float = MIN_GAP_S,
    ) -> None:
        self._site = site
        self._views = views
        self._head_changed = head_changed
        self._clock_ms = clock_ms
        self._heartbeat_s = heartbeat_s
        self._min_gap_s = min_gap_s
        self._streams: Counter[str] = Counter()
        self._rendered: tuple[tuple[str, str], str] = (("", ""), "")

    async def page(self, request: Request) -> Response:
        """Answer `/`."""
        head, stats = self._read()
        tag = self._site.tag(request, head, stats)
        if (unchanged := self._site.unchanged(request, tag)) is not None:
            return unchanged
        frame = Frame(title="Home", json_path="/explorer/stats", live=True)
        page = self._build(head, stats)
        return self._site.page("home.html", request, frame=frame, page=page, head=head, tag=tag)

    async def fragment(self, request: Request) -> Response:
        """Answer `/_f/home`, which the page polls when it has no stream."""
        head, stats = self._read()
        tag = self._site.tag(request, head, stats)
        if (unchanged := self._site.unchanged(request, tag)) is not None:
            unchanged.headers.update(POLL)
            return unchanged
        html = self._render(request, head, stats).encode()
        return self._site.answer(request, html, "text/html; charset=utf-8", tag, headers=POLL)

    async def stream(self, request: Request) -> Response:
        """Answer `/_f/home/stream`, or 204 where this client or this node holds enough streams."""
        client = request.client.host if request.client else ""
        if self._streams[client] >= MAX_STREAMS_PER_CLIENT or self._streams.total() >= MAX_STREAMS:
            if "last-event-id" in request.headers:
                # A page whose stream broke asks again and again: an error makes it slow down.
                return Response(status_code=503, headers=SECURITY_HEADERS | {"Retry-After": "10"})
            return Response(status_code=204, headers=SECURITY_HEADERS | POLL)
        self._streams[client] += 1
        return HeldStream(
            self._messages(request),
            headers=SECURITY_HEADERS | {"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
            media_type="text/event-stream",
            release=lambda: self._release(client),
        )

    def _release(self, client: str) -> None:
        self._streams[client] -= 1
        if not self._streams[client]:
            del self._streams[client]

    async def _messages(self, request: Request) -> AsyncIterator[str]:
        seen = request.query_params.get("seen", "")
        yield f"id: {self._views.head().height}\n\n"
        while True:
            head, stats = self._read()
            if (mark := _mark(head, stats)) != seen:
                seen = mark
                yield _message(head.height, self._render(request, head, stats))
            try:
                await asyncio.sleep(self._min_gap_s)
                async with asyncio.timeout(self._heartbeat_s):
                    await self._head_changed.wait(head.height)
            except TimeoutError:
                yield ": nothing new\n\n"
            except ClosingError:
                return

    def _read(self) -> tuple[HeadView, StatsView]:
        return self._views.head(), self._views.stats(self._clock_ms())

    def _build(self, head: HeadView, stats: StatsView) -> HomePage:
        blocks = self._views.blocks(limit=LATEST_ROWS)
        receipts = self._views.receipts(ReceiptFilter(), limit=LATEST_ROWS)
        return HomePage(
            head=head,
            stats=stats,
            blocks=blocks,
            receipts=receipts,
            mark=_mark(head, stats),
            blank_blocks=LATEST_ROWS - len(blocks),
            blank_receipts=LATEST_ROWS - len(receipts),
        )

    def _render(self, request: Request, head: HeadView, stats: StatsView) -> str:
        """Render the fragment once for all who watch; addresses in it depend on the prefix."""
        key = (_mark(head, stats), request.scope.get("root_path", ""))
        if self._rendered[0] != key:
            page = self._build(head, stats)
            html = self._site.render("fragments/home.html", request, page=page, head=head)
            self._rendered = (key, html)
        return self._rendered[1]


def _mark(head: HeadView, stats: StatsView) -> str:
    return hashlib.sha256(repr((head, stats)).encode()).hexdigest()[:16]


def _message(height: int, html: str) -> str:
    data = "".join(f"data: {line}\n" for line in html.split("\n"))
    return f"id: {height}\n{data}\n"
