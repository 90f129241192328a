"""What has not ended: jobs that wait and run on this node, receipts without a block; live."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from explorer_ui.lines import build_line
from explorer_ui.live import Live, Look
from explorer_ui.site import Frame, Site
from explorer_ui.sources import Market, Views
from ledger.encoding import encode
from ledger.views import JobView, ReceiptFilter, ReceiptView

TICK_S = 2.0
"""How often the live page looks: jobs come and go without a block."""
ROWS = 10
JSON_TYPE = "application/json"


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingPage:
    """What waits at one moment."""

    pending: int
    """Jobs that wait for a miner."""
    running: int
    jobs: list[JobView]
    """The newest that run, then the newest that wait; ten at most."""
    receipts: list[ReceiptView]
    """The newest that have no block; ten at most."""
    waiting: int
    """Transactions that have no block, counted up to 10,000."""
    mark: str
    """Names this state, for the stream."""
    has_market: bool
    """Whether this node takes jobs."""

    @property
    def blank_jobs(self) -> int:
        """Empty rows that keep the table at its full height."""
        return ROWS - len(self.jobs)

    @property
    def blank_receipts(self) -> int:
        """The same of the other table."""
        return ROWS - len(self.receipts)


class Pending:
    """Serves `/pending`, its twin, its fragment and its stream."""

    def __init__(self, *, site: Site, views: Views, market: Market | None, live: Live) -> None:
        self._site = site
        self._views = views
        self._market = market
        self._live = live

    async def page(self, request: Request) -> Response:
        """Answer `/pending`."""
        look = self._look()
        tag = self._site.tag(request, look.head, look.state)
        if (unchanged := self._site.unchanged(request, tag)) is not None:
            return unchanged
        frame = Frame(
            title="Pending",
            section="jobs",
            crumbs=(("Jobs", "/jobs"),),
            json_path="/pending.json",
            live=True,
        )
        return self._site.page(
            "pending.html", request, frame=frame, page=look.build(), head=look.head, tag=tag
        )

    async def data(self, request: Request) -> Response:
        """Answer `/pending.json`."""
        look = self._look()
        tag = self._site.tag(request, look.head, look.state)
        if (unchanged := self._site.unchanged(request, tag)) is not None:
            return unchanged
        page = self._read(look.mark)
        body = encode(
            {
                "pending": page.pending,
                "running": page.running,
                "waiting_transactions": page.waiting,
                "jobs": page.jobs,
                "receipts": [build_line(receipt) for receipt in page.receipts],
            }
        )
        return self._site.answer(request, body, JSON_TYPE, tag)

    async def fragment(self, request: Request) -> Response:
        """Answer `/_f/pending`."""
        return self._live.fragment(request, self._look())

    async def stream(self, request: Request) -> Response:
        """Answer `/_f/pending/stream`."""
        return self._live.stream(request, self._look, tick_s=TICK_S)

    def _look(self) -> Look:
        state = [(job.job_id, job.state, job.attempt) for job in self._read_jobs()]
        counts = [self._views.count_jobs(name) for name in ("pending", "running")]
        look = Look(
            head=self._views.head(),
            state=(state, counts),
            template="fragments/pending.html",
            build=lambda: self._read(look.mark),
        )
        return look

    def _read_jobs(self) -> list[JobView]:
        running = self._views.jobs("running", limit=ROWS)
        return [*running, *self._views.jobs("pending", limit=ROWS)][:ROWS]

    def _read(self, mark: str) -> PendingPage:
        receipts = self._views.receipts(ReceiptFilter(), limit=ROWS)
        return PendingPage(
            pending=self._views.count_jobs("pending"),
            running=self._views.count_jobs("running"),
            jobs=self._read_jobs(),
            receipts=[row for row in receipts if row.transaction.finality == "pending"],
            waiting=self._views.head().pending_transactions,
            mark=mark,
            has_market=self._market is not None,
        )
