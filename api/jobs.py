"""Jobs and miners: the endpoints that change the market, and the private reads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import get_args

from api.access import may_read
from api.answers import Answer, Header, answer_json, link
from api.bodies import (
    MAX_REPORT_BODY_BYTES,
    ClaimBody,
    FailureBody,
    MinerBody,
    decode_body,
    parse_order,
    parse_registration,
    parse_report,
)
from api.errors import RequestError, refuse_field
from api.ports import Market
from api.render import render_claim, render_job, render_lease, render_miner, render_receipt
from api.requests import MAX_BODY_BYTES, Request
from api.resource import ApiSettings, Handler, Operation
from ledger.errors import MarketError
from ledger.jobs import Job, JobState, parse_job_id

DEFAULT_JOBS = 20
MAX_JOBS = 100
MAX_WAIT_S = 30
STATES: tuple[JobState, ...] = get_args(JobState)

_MINER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:@-]{0,127}")


class JobEndpoints:
    """Everything under `/v1/jobs` and `/v1/miners`."""

    def __init__(self, market: Market, settings: ApiSettings) -> None:
        self._market = market
        self._settings = settings

    def paths(self) -> Mapping[str, Mapping[str, Operation]]:
        """Return the operations by path; a path without a variable stands before one with it."""

        def miner_work(handler: Handler, *, max_body_bytes: int = MAX_BODY_BYTES) -> Operation:
            return Operation(
                handler=handler, role="miner", key="strict", max_body_bytes=max_body_bytes
            )

        return {
            "/v1/jobs": {
                "POST": Operation(
                    handler=self.submit, role="client", key="always", max_body_bytes=MAX_BODY_BYTES
                ),
                "GET": Operation(handler=self.list_jobs),
            },
            "/v1/jobs/available": {
                "GET": Operation(handler=self.find_available, role="miner", key="strict")
            },
            "/v1/jobs/{job_id}": {"GET": Operation(handler=self.show)},
            "/v1/jobs/{job_id}/cancel": {
                "POST": Operation(handler=self.cancel, role="client", key="strict")
            },
            "/v1/jobs/{job_id}/claim": {"POST": miner_work(self.claim)},
            "/v1/jobs/{job_id}/complete": {
                "POST": miner_work(self.complete, max_body_bytes=MAX_REPORT_BODY_BYTES)
            },
            "/v1/jobs/{job_id}/heartbeat": {"POST": miner_work(self.heartbeat)},
            "/v1/jobs/{job_id}/release": {"POST": miner_work(self.release)},
            "/v1/jobs/{job_id}/fail": {"POST": miner_work(self.fail)},
            "/v1/miners/register": {"POST": miner_work(self.register)},
            "/v1/miners/{miner_id}/heartbeat": {
                "POST": Operation(handler=self.miner_heartbeat, role="miner", key="strict")
            },
        }

    # --- clients --------------------------------------------------------------------------------

    async def submit(self, request: Request) -> Answer:
        """`POST /v1/jobs`."""
        order = parse_order(request.body, default_model=self._settings.default_model)
        job = await self._market.submit(request.caller, order)
        place = f"{request.base}/v1/jobs/{job.job_id}".encode()
        return self._answer_job(request, job, status=201, headers=((b"location", place),))

    async def list_jobs(self, request: Request) -> Answer:
        """`GET /v1/jobs`: the reference's maximum holds, so a larger limit is an error."""
        state = request.choice("status", STATES)
        limit = request.integer("limit")
        limit = DEFAULT_JOBS if limit is None else max(0, limit)
        if limit > MAX_JOBS:
            raise refuse_field("limit", f"expected at most {MAX_JOBS}, got {limit}")
        offset = max(0, request.integer("offset") or 0)
        jobs = self._market.jobs(
            owner=self._owner(request), state=state, limit=limit, offset=offset
        )
        shown = [render_job(job, readable=self._may_read(request, job)) for job in jobs]
        more = {}
        if jobs:  # a page may end early, so only an empty one is surely the last
            more["next"] = request.address("/v1/jobs", limit=limit, offset=offset + len(jobs))
        return answer_json(shown, headers=link(more))

    async def show(self, request: Request) -> Answer:
        """`GET /v1/jobs/{job_id}`."""
        return self._answer_job(request, self._market.job(_job_id(request)))

    async def cancel(self, request: Request) -> Answer:
        """`POST /v1/jobs/{job_id}/cancel`."""
        job = await self._market.cancel(request.caller, _job_id(request))
        return self._answer_job(request, job)

    # --- miners ---------------------------------------------------------------------------------

    async def find_available(self, request: Request) -> Answer:
        """`GET /v1/jobs/available`: a Job, or `null`."""
        miner_id = request.text("miner_id")
        if not miner_id:
            raise refuse_field("miner_id", "this parameter is required")
        wait_s = request.clamped("wait", default=0, maximum=MAX_WAIT_S)
        job = await self._market.available(
            request.caller, _known_form(miner_id), wait_ms=wait_s * 1000
        )
        return answer_json(None) if job is None else self._answer_job(request, job)

    async def claim(self, request: Request) -> Answer:
        """`POST /v1/jobs/{job_id}/claim`."""
        body = decode_body(request.body, ClaimBody)
        claim = await self._market.claim(
            request.caller, _job_id(request), body.miner_id, heartbeat=bool(body.heartbeat)
        )
        return answer_json(render_claim(claim))

    async def complete(self, request: Request) -> Answer:
        """`POST /v1/jobs/{job_id}/complete`."""
        report = parse_report(request.body)
        receipt = await self._market.complete(request.caller, _job_id(request), report)
        return answer_json(render_receipt(receipt))

    async def heartbeat(self, request: Request) -> Answer:
        """`POST /v1/jobs/{job_id}/heartbeat`."""
        body = decode_body(request.body, MinerBody)
        lease = await self._market.heartbeat(request.caller, _job_id(request), body.miner_id)
        return answer_json(render_lease(lease))

    async def release(self, request: Request) -> Answer:
        """`POST /v1/jobs/{job_id}/release`."""
        body = decode_body(request.body, MinerBody)
        job = await self._market.release(request.caller, _job_id(request), body.miner_id)
        return self._answer_job(request, job)

    async def fail(self, request: Request) -> Answer:
        """`POST /v1/jobs/{job_id}/fail`."""
        body = decode_body(request.body, FailureBody)
        job = await self._market.fail(
            request.caller,
            _job_id(request),
            body.miner_id,
            reason=body.reason or "",
            retryable=body.retryable is not False,
        )
        return self._answer_job(request, job)

    async def register(self, request: Request) -> Answer:
        """`POST /v1/miners/register`."""
        registration = parse_registration(request.body)
        miner = await self._market.register_miner(request.caller, registration)
        return answer_json(render_miner(miner), status=201)

    async def miner_heartbeat(self, request: Request) -> Answer:
        """`POST /v1/miners/{miner_id}/heartbeat`."""
        miner = await self._market.miner_heartbeat(request.caller, _known_form(request.path_id))
        return answer_json(render_miner(miner))

    # --- helpers --------------------------------------------------------------------------------

    def _may_read(self, request: Request, job: Job) -> bool:
        return may_read(request.caller, job, mode=self._settings.mode)

    def _owner(self, request: Request) -> str | None:
        if request.choice("owner", ("me",)) is None:
            return None
        if not request.caller.key:
            raise RequestError("AUTH_MISSING_KEY", "owner=me: send the API key that is meant")
        return request.caller.key

    def _answer_job(
        self, request: Request, job: Job, *, status: int = 200, headers: tuple[Header, ...] = ()
    ) -> Answer:
        queue = self._market.queue(job) if job.state == "pending" else None
        shown = render_job(job, readable=self._may_read(request, job), queue=queue)
        return answer_json(shown, status=status, headers=headers)


def _job_id(request: Request) -> str:
    job_id = request.path_id
    if parse_job_id(job_id) is None:
        raise MarketError("JOB_NOT_FOUND", "no job with this id on this node")
    return job_id


def _known_form(miner_id: str) -> str:
    if not _MINER_ID.fullmatch(miner_id):
        raise MarketError("MINER_NOT_FOUND", "no miner with this id on this node")
    return miner_id
