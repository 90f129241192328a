"""Pages that stay current: by one event stream, or by polling where streams run out.

Both send the same fragment: `<hx-partial>` elements that replace parts of fixed height, so nothing
on the page moves. A page gives a `Look` at what it shows; whenever its mark is another one than the
browser has, the fragment is sent. Looks are taken when the head changes, and once in a while.

A browser opens at most six connections to a server over HTTP/1.1, and each open page holds one.
From the fifth stream of one client address on the answer is 204, and the page asks for the
fragment every few seconds instead (`HX-Trigger: poll` starts that, in the page's own markup).
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from explorer_ui.site import SECURITY_HEADERS, Site
from explorer_ui.sources import ClosingError, HeadWatch
from explorer_ui.streaming import HeldStream, Places
from ledger.views import HeadView

MAX_STREAMS = 256
MAX_STREAMS_PER_CLIENT = 4
HEARTBEAT_S = 5.0
"""A page that hears nothing for three of them says so (`SILENCE_MS` of static/explorer.js)."""
MIN_GAP_S = 0.5
"""Between two messages of a stream: many blocks in a burst become one change of the page."""
POLL = {"HX-Trigger": "poll"}
BEAT = "event: beat\ndata: nothing new\n\n"
"""An event, since no script is told of a comment."""
END = "event: end\ndata: over\n\n"
"""Tells the page that nothing will follow, so that it does not come back."""

HTML_TYPE = "text/html; charset=utf-8"


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What a live page shows at one moment."""

    head: HeadView
    state: object
    """Whatever else the page shows that changes without the head; its `repr` tells states apart."""
    template: str
    """Of the fragment."""
    build: Callable[[], object]
    """Makes the context of the page."""
    is_over: bool = False
    """Whether it will never change again."""

    @property
    def mark(self) -> str:
        """Names this state: a stream that is opened with it stays silent until it changes."""
        text = repr((self.template, self.head, self.state))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class Live:
    """Serves fragments and streams, and counts the streams of all pages together."""

    def __init__(
        self,
        *,
        site: Site,
        head_changed: HeadWatch,
        heartbeat_s: float = HEARTBEAT_S,
        min_gap_s: float = MIN_GAP_S,
    ) -> None:
        self._site = site
        self._head_changed = head_changed
        self._heartbeat_s = heartbeat_s
        self._min_gap_s = min_gap_s
        self._places = Places(total=MAX_STREAMS, per_client=MAX_STREAMS_PER_CLIENT)
        self._rendered: tuple[tuple[str, str], str] = (("", ""), "")

    def fragment(self, request: Request, look: Look) -> Response:
        """Answer what a page polls when it has no stream."""
        poll = {} if look.is_over else POLL
        tag = self._site.tag(request, look.head, look.state)
        if (unchanged := self._site.unchanged(request, tag)) is not None:
            unchanged.headers.update(poll)
            return unchanged
        html = self._render(request, look).encode()
        return self._site.answer(request, html, HTML_TYPE, tag, headers=poll)

    def stream(
        self, request: Request, take_look: Callable[[], Look], *, tick_s: float | None = None
    ) -> Response:
        """Answer a stream, or 204 where this client or this node holds enough of them.

        Args:
            request: `seen` is the mark of what the page shows.
            take_look: called for each look; no thread, so it has to be short.
            tick_s: how often to look if no block comes; by default with each heartbeat.
        """
        give_back = self._places.take(request)
        if give_back is None:
            if "last-event-id" in request.headers:
                # A page whose stream broke asks again and again: an error makes it slow down.
                return Response(status_code=503, headers=SECURITY_HEADERS | {"Retry-After": "10"})
            return Response(status_code=204, headers=SECURITY_HEADERS | POLL)
        return HeldStream(
            self._messages(request, take_look, tick_s or self._heartbeat_s),
            headers=SECURITY_HEADERS | {"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
            media_type="text/event-stream",
            give_back=give_back,
        )

    async def _messages(
        self, request: Request, take_look: Callable[[], Look], tick_s: float
    ) -> AsyncIterator[str]:
        seen, silent_s = request.query_params.get("seen", ""), 0.0
        yield f"id: {take_look().head.height}\n\n"
        while True:
            look = take_look()
            if look.mark != seen:
                seen, silent_s = look.mark, 0.0
                yield _message(look.head.height, self._render(request, look))
            if look.is_over:
                yield END
                return
            try:
                await asyncio.sleep(self._min_gap_s)
                async with asyncio.timeout(tick_s):
                    await self._head_changed.wait(look.head.height)
            except TimeoutError:
                silent_s += tick_s
                if silent_s >= self._heartbeat_s:
                    silent_s = 0.0
                    yield BEAT
            except ClosingError:
                return

    def _render(self, request: Request, look: Look) -> str:
        """Render the fragment once for all who watch; addresses in it depend on the prefix."""
        key = (look.mark, request.scope.get("root_path", ""))
        if self._rendered[0] != key:
            html = self._site.render(look.template, request, page=look.build(), head=look.head)
            self._rendered = (key, html)
        return self._rendered[1]


def _message(height: int, html: str) -> str:
    data = "".join(f"data: {line}\n" for line in html.split("\n"))
    return f"id: {height}\n{data}\n"
