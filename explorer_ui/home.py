"""The home page: where the chain stands, its figures, the latest blocks and receipts; live."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from explorer_ui.charts import Glance, read_glances
from explorer_ui.live import Live, Look
from explorer_ui.site import Frame, Site
from explorer_ui.sources import Views
from ledger.views import BlockView, HeadView, ReceiptFilter, ReceiptView, StatsView

LATEST_ROWS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class HomePage:
    """What the home page shows at one moment."""

    head: HeadView
    stats: StatsView
    blocks: list[BlockView]
    receipts: list[ReceiptView]
    charts: list[Glance]
    """None while this node fetches its history."""
    mark: str
    """Names this state, for the stream."""
    blank_blocks: int
    """Empty rows that keep the table at its full height."""
    blank_receipts: int


class Home:
    """Serves `/`, its fragment and its stream."""

    def __init__(
        self, *, site: Site, views: Views, live: Live, clock_ms: Callable[[], int]
    ) -> None:
        self._site = site
        self._views = views
        self._live = live
        self._clock_ms = clock_ms

    async def page(self, request: Request) -> Response:
        """Answer `/`."""
        look = self._look()
        tag = self._site.tag(request, look.head, look.state)
        if (unchanged := self._site.unchanged(request, tag)) is not None:
            return unchanged
        frame = Frame(title="Home", json_path="/explorer/stats", live=True)
        return self._site.page(
            "home.html", request, frame=frame, page=look.build(), head=look.head, tag=tag
        )

    async def fragment(self, request: Request) -> Response:
        """Answer `/_f/home`."""
        return self._live.fragment(request, self._look())

    async def stream(self, request: Request) -> Response:
        """Answer `/_f/home/stream`."""
        return self._live.stream(request, self._look)

    def _look(self) -> Look:
        head, stats = self._views.head(), self._views.stats(self._clock_ms())

        def build() -> HomePage:
            blocks = self._views.blocks(limit=LATEST_ROWS)
            receipts = self._views.receipts(ReceiptFilter(), limit=LATEST_ROWS)
            return HomePage(
                head=head,
                stats=stats,
                blocks=blocks,
                receipts=receipts,
                charts=read_glances(self._views, head),
                mark=look.mark,
                blank_blocks=LATEST_ROWS - len(blocks),
                blank_receipts=LATEST_ROWS - len(receipts),
            )

        look = Look(head=head, state=stats, template="fragments/home.html", build=build)
        return look
