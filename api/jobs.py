"""Jobs as their clients see them: submit, read, wait, list, cancel."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import get_args

from api.access import may_read
from api.answers import Answer, Header, answer_json, link, tell_total
from api.bodies import parse_batch, parse_order
from api.conditional import NOT_MODIFIED, answer_if_changed
from api.errors import RequestError, refuse_field
from api.ports import JobWatch, Market
from api.render import Json, render_job
from api.requests import MAX_BODY_BYTES, Request
from api.resource import ApiSettings, Operation
from api.waiting import Places, wait_for_news
from ledger.errors import MarketError
from ledger.jobs import ENDED, Job, JobOrder, JobState, Queue, Submission, parse_job_id

DEFAULT_JOBS = 20
MAX_JOBS = 100
MAX_WAIT_S = 30
STATES: tuple[JobState, ...] = get_args(JobState)


class JobEndpoints:
    """The clients' paths under `/v1/jobs`."""

    def __init__(self, market: Market, settings: ApiSettings, places: Places) -> None:
        self._market = market
        self._settings = settings
        self._places = places
        self._answers = JobAnswers(market, settings)

    def paths(self) -> Mapping[str, Mapping[str, Operation]]:
        """Return the operations by path."""
        return {
            "/v1/jobs": {
                "POST": Operation(
                    handler=self.submit,
                    role="client",
                    key="always",
                    max_body_bytes=MAX_BODY_BYTES,
                    direct="without_query",
                ),
                "GET": Operation(handler=self.list_jobs),
            },
            "/v1/jobs/batch": {
                "POST": Operation(
                    handler=self.submit_batch,
                    role="client",
                    key="always",
                    max_body_bytes=MAX_BODY_BYTES,
                )
            },
            "/v1/jobs/{job_id}": {"GET": Operation(handler=self.show, direct="without_query")},
            "/v1/jobs/{job_id}/cancel": {
                "POST": Operation(handler=self.cancel, role="client", key="strict")
            },
        }

    async def submit(self, request: Request) -> Answer:
        """`POST /v1/jobs`."""
        order = parse_order(request.body, default_model=self._settings.default_model)
        made = await self._submit(request, (order,))
        place = f"{request.base}/v1/jobs/{made.jobs[0].job_id}".encode()
        headers = ((b"location", place), *_tell_replay(made))
        return self._answers.show(
            request, made.jobs[0], status=201, headers=headers, queue=made.queue
        )

    async def submit_batch(self, request: Request) -> Answer:
        """`POST /v1/jobs/batch`: all or none."""
        orders = parse_batch(request.body, default_model=self._settings.default_model)
        made = await self._submit(request, orders)
        shown = self._answers.render_all(request, made.jobs)
        return answer_json(shown, status=201, headers=_tell_replay(made))

    async def _submit(self, request: Request, orders: Sequence[JobOrder]) -> Submission:
        key = request.head.idempotency_key()
        return await self._market.submit_all(request.caller, orders, idempotency_key=key)

    async def list_jobs(self, request: Request) -> Answer:
        """`GET /v1/jobs`: the reference's maximum holds, so a larger limit is an error."""
        state = request.choice("status", STATES)
        limit = request.integer("limit")
        limit = DEFAULT_JOBS if limit is None else max(0, limit)
        if limit > MAX_JOBS:
            raise refuse_field("limit", f"expected at most {MAX_JOBS}, got {limit}")
        owner = self._owner(request)
        jobs = self._market.jobs(
            owner=owner,
            state=state,
            limit=limit,
            offset=max(0, request.integer("offset") or 0),
            before=_cursor(request, "before"),
            after=_cursor(request, "after"),
        )
        total = tell_total(self._market.count_jobs(owner=owner, state=state))
        links = link(_lead_on(request, jobs))
        return answer_json(self._answers.render_all(request, jobs), headers=(*links, *total))

    async def show(self, request: Request) -> Answer:
        """`GET /v1/jobs/{job_id}`; with `wait`, once there is news."""
        job_id = parse_job(request)
        wait_s = request.clamped("wait", default=0, maximum=MAX_WAIT_S)
        if answer := self._look(request, job_id, waits=wait_s > 0):
            return answer
        held = self._places.hold(request.caller, request.payer)
        with held, self._market.watch(job_id, text=False) as watch:
            return await self._wait(request, job_id, watch, wait_s)

    def _look(self, request: Request, job_id: str, *, waits: bool) -> Answer | None:
        """Return the answer for now; None for one who rather waits, and for whom none is held."""
        job = self._market.job(job_id)
        answer = answer_if_changed(request, self._answers.show(request, job))
        is_news = (
            answer.status != NOT_MODIFIED if request.head.is_conditional else job.state in ENDED
        )
        return answer if is_news or not waits else None

    async def _wait(self, request: Request, job_id: str, watch: JobWatch, wait_s: float) -> Answer:
        now = asyncio.get_running_loop().time
        deadline = now() + wait_s
        goes_on = True
        while not (answer := self._look(request, job_id, waits=goes_on and now() < deadline)):
            goes_on = await wait_for_news(watch, request, deadline - now())
        return answer

    async def cancel(self, request: Request) -> Answer:
        """`POST /v1/jobs/{job_id}/cancel`."""
        job = await self._market.cancel(request.caller, parse_job(request))
        return self._answers.show(request, job)

    def _owner(self, request: Request) -> str | None:
        if request.choice("owner", ("me",)) is None:
            return None
        if not request.caller.key:
            raise RequestError("AUTH_MISSING_KEY", "owner=me: send the API key that is meant")
        return request.caller.key


class JobAnswers:
    """Answers with a Job, as far as its reader may see it."""

    def __init__(self, market: Market, settings: ApiSettings) -> None:
        self._market = market
        self._settings = settings

    def may_read(self, request: Request, job: Job) -> bool:
        """Tell whether the caller may see the job's texts."""
        return may_read(request.caller, job, mode=self._settings.mode)

    def render_all(self, request: Request, jobs: Sequence[Job]) -> list[Json]:
        """Return several Jobs, without their places in the queue."""
        return [render_job(job, readable=self.may_read(request, job)) for job in jobs]

    def show(
        self,
        request: Request,
        job: Job,
        *,
        status: int = 200,
        headers: tuple[Header, ...] = (),
        queue: Queue | None = None,
    ) -> Answer:
        """Return one Job, with its place in the queue while it waits, if need be looked up."""
        if queue is None and job.state == "pending":
            queue = self._market.queue(job)
        readable = self.may_read(request, job)
        shown = render_job(job, readable=readable, queue=queue, token_ids=True)
        return answer_json(shown, status=status, headers=headers)


def _tell_replay(made: Submission) -> tuple[Header, ...]:
    return ((b"idempotency-replayed", b"true"),) if made.is_replay else ()


def _cursor(request: Request, name: str) -> str | None:
    job_id = request.text(name)
    if job_id is not None and parse_job_id(job_id) is None:
        raise refuse_field(name, "expected a job_id")
    return job_id


def _lead_on(request: Request, jobs: Sequence[Job]) -> dict[str, str]:
    # A page may end early, so only an empty one is surely the last.
    if not jobs:
        return {}
    older = request.address("/v1/jobs", before=jobs[-1].job_id, after=None, offset=None)
    newer = request.address("/v1/jobs", after=jobs[0].job_id, before=None, offset=None)
    return {"next": older, "prev": newer}


def parse_job(request: Request) -> str:
    """Return the job id in the path.

    Raises:
        MarketError: JOB_NOT_FOUND, it is none.
    """
    job_id = request.path_id
    if parse_job_id(job_id) is None:
        raise MarketError("JOB_NOT_FOUND", "no job with this id on this node")
    return job_id
