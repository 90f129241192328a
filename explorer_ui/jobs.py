"""Jobs of this node: which wait, run and ended, and how far one of them is. Never a text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

from starlette.requests import Request
from starlette.responses import Response

from explorer_ui.errors import NotFoundError, PageError, parse_position
from explorer_ui.explain import Explanation, explain
from explorer_ui.live import Live, Look
from explorer_ui.paging import PAGE_ROWS
from explorer_ui.site import Frame, Site
from explorer_ui.sources import Market, Views
from ledger.encoding import encode
from ledger.jobs import ENDED, JobState, Queue
from ledger.views import HeadView, JobView, ReceiptView

TICK_S = 1.0
"""How often a live page of a job looks at it."""
STATES: tuple[JobState, ...] = ("pending", "running", "completed", "failed", "cancelled")

assert set(STATES) == set(get_args(JobState))


@dataclass(frozen=True, slots=True, kw_only=True)
class JobsPage:
    """One page of jobs in one state, or in any."""

    jobs: list[JobView]
    state: JobState | None
    counts: dict[JobState, int]
    """In the order of the tabs."""
    newest: bool
    newer: int | None
    """`after` of the page above."""
    older: int | None
    """`before` of the page below."""
    has_market: bool
    """Whether this node takes jobs."""

    @property
    def total(self) -> int:
        """How many jobs there are in all."""
        return sum(self.counts.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPage:
    """One job, as everybody may see it."""

    job: JobView
    queue: Queue | None
    """Where it stands, while it waits."""
    receipt: ReceiptView | None
    mark: str
    """Names this state, for the stream."""
    is_over: bool
    """Whether nothing of it will change any more."""


class Jobs:
    """Serves `/jobs` and `/jobs/…`."""

    def __init__(
        self,
        *,
        site: Site,
        views: Views,
        market: Market | None,
        live: Live,
        clock_ms: Callable[[], int],
    ) -> None:
        self._site = site
        self._views = views
        self._market = market
        self._live = live
        self._clock_ms = clock_ms

    async def list(self, request: Request) -> Response:
        """Answer `/jobs`, newest first; `status` narrows it."""
        state = _parse_state(request)
        head, counts = self._views.head(), self._count()
        tag = self._site.tag(request, head, counts)
        if (unchanged := self._site.unchanged(request, tag)) is not None:
            return unchanged
        page = self._read_page(request, state, counts)
        frame = Frame(
            title="Jobs",
            section="jobs",
            json_path="/jobs.json" if self._market is not None else None,
            data_query={"status": state},
        )
        return self._site.page("jobs.html", request, frame=frame, page=page, head=head, tag=tag)

    async def data(self, request: Request) -> Response:
        """Answer `/jobs.json`: what the page shows, which is what everybody may see."""
        state = _parse_state(request)
        head, counts = self._views.head(), self._count()
        tag = self._site.tag(request, head, counts)
        if (unchanged := self._site.unchanged(request, tag)) is not None:
            return unchanged
        page = self._read_page(request, state, counts)
        body = encode(
            {"jobs": page.jobs, "counts": counts, "newer": page.newer, "older": page.older}
        )
        return self._site.answer(request, body, "application/json", tag)

    def _count(self) -> dict[JobState, int]:
        return {state: self._views.count_jobs(state) for state in STATES}

    def _read_page(
        self, request: Request, state: JobState | None, counts: dict[JobState, int]
    ) -> JobsPage:
        before, after = parse_position(request, "before"), parse_position(request, "after")
        jobs: list[JobView] = []
        if after is not None:
            jobs = self._views.jobs(state, limit=PAGE_ROWS + 1, after=after)
            is_top = len(jobs) <= PAGE_ROWS
            jobs, has_older = jobs[-PAGE_ROWS:], True
        if after is None or is_top:
            before = before if after is None else None
            jobs = self._views.jobs(state, limit=PAGE_ROWS + 1, before=before)
            is_top, has_older = before is None, len(jobs) > PAGE_ROWS
            jobs = jobs[:PAGE_ROWS]
        return JobsPage(
            jobs=jobs,
            state=state,
            counts=counts,
            newest=is_top,
            newer=jobs[0].cursor if jobs and not is_top else None,
            older=jobs[-1].cursor if jobs and has_older else None,
            has_market=self._market is not None,
        )

    async def job(self, request: Request) -> Response:
        """Answer `/jobs/{id}`; live until its receipt is final."""
        look = self._look(request)
        tag = self._site.tag(request, look.head, look.state)
        if (unchanged := self._site.unchanged(request, tag)) is not None:
            return unchanged
        key = request.path_params["key"]
        frame = Frame(
            title=f"Job {key[:12]}…",
            section="jobs",
            crumbs=(("Jobs", "/jobs"),),
            json_path=f"/v1/jobs/{key}",
            live=not look.is_over,
        )
        page = look.build()
        return self._site.page("job.html", request, frame=frame, page=page, head=look.head, tag=tag)

    async def fragment(self, request: Request) -> Response:
        """Answer `/_f/jobs/{id}`."""
        return self._live.fragment(request, self._look(request))

    async def stream(self, request: Request) -> Response:
        """Answer `/_f/jobs/{id}/stream`."""
        self._look(request)
        return self._live.stream(request, lambda: self._look(request), tick_s=TICK_S)

    def _look(self, request: Request) -> Look:
        head, key = self._views.head(), request.path_params["key"]
        job = self._views.job(key)
        if job is None:
            raise NotFoundError(_explain_missing(key, head, has_market=self._market is not None))
        receipt = self._views.receipt(job.receipt_id) if job.receipt_id else None
        is_final = receipt is not None and receipt.transaction.finality == "final"
        is_over = job.state in ENDED and (is_final or job.receipt_id is None)
        waits = job.state == "pending"
        queue = self._views.queue(key, now_ms=self._clock_ms()) if waits else None

        def build() -> JobPage:
            return JobPage(
                job=job,
                queue=queue,
                receipt=receipt,
                mark=look.mark,
                is_over=is_over,
            )

        look = Look(
            head=head,
            state=(job, queue, is_final),
            template="fragments/job.html",
            build=build,
            is_over=is_over,
        )
        return look


def _parse_state(request: Request) -> JobState | None:
    text = request.query_params.get("status", "")
    if text in STATES:
        return text
    if not text:
        return None
    raise PageError(
        Explanation(
            finding="A job is pending, running, completed, failed or cancelled.",
            advice="Choose one of the tabs of this page.",
        )
    )


def _explain_missing(key: str, head: HeadView, *, has_market: bool) -> Explanation:
    if not has_market:
        return Explanation(
            finding="This node takes no jobs: it follows the chain, and shows what became final.",
            advice="A job is known to the authority that it was submitted to. Once it is completed "
            "its receipt is here too: search for the job.",
        )
    if key.startswith("job_"):
        return Explanation(
            finding="This looks like a job, but this node knows none with exactly this id.",
            advice="A job is known to the node that it was submitted to; its receipt to all.",
        )
    return explain(key, head)
