"""Miners, and what they do with jobs: register, look, claim, keep, tell, deliver."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from api.answers import Answer, answer_json, link, tell_total
from api.bodies import (
    MAX_REPORT_BODY_BYTES,
    ClaimBody,
    FailureBody,
    HeartbeatBody,
    MinerBody,
    MinerName,
    TextBody,
    decode_body,
    parse_registration,
    parse_report,
)
from api.errors import refuse_field
from api.jobs import MAX_WAIT_S, JobAnswers, parse_job
from api.ports import Market
from api.render import (
    render_claim,
    render_lease,
    render_miner,
    render_receipt,
    render_standing,
)
from api.render_audits import render_audit_totals
from api.requests import MAX_BODY_BYTES, Request
from api.resource import ApiSettings, Handler, Operation
from ledger.errors import MarketError
from ledger.views import MAX_PAGE

DEFAULT_MINERS = 20


class MinerEndpoints:
    """`/v1/miners`, and the miners' paths under `/v1/jobs`."""

    def __init__(self, market: Market, settings: ApiSettings) -> None:
        self._market = market
        self._answers = JobAnswers(market, settings)

    def paths(self) -> Mapping[str, Mapping[str, Operation]]:
        """Return the operations by path."""

        def work(handler: Handler, *, max_body_bytes: int = MAX_BODY_BYTES) -> Operation:
            return Operation(
                handler=handler,
                role="miner",
                key="strict",
                max_body_bytes=max_body_bytes,
                direct="without_query",
            )

        def ask(handler: Handler) -> Operation:
            return Operation(handler=handler, role="miner", key="strict")

        return {
            "/v1/jobs/available": {
                "GET": Operation(
                    handler=self.find_available, role="miner", key="strict", direct="always"
                )
            },
            "/v1/jobs/{job_id}/claim": {"POST": work(self.claim)},
            "/v1/jobs/{job_id}/complete": {
                "POST": work(self.complete, max_body_bytes=MAX_REPORT_BODY_BYTES)
            },
            "/v1/jobs/{job_id}/heartbeat": {"POST": work(self.heartbeat)},
            "/v1/jobs/{job_id}/text": {"POST": work(self.tell)},
            "/v1/jobs/{job_id}/release": {"POST": work(self.release)},
            "/v1/jobs/{job_id}/fail": {"POST": work(self.fail)},
            "/v1/miners/register": {"POST": work(self.register)},
            "/v1/miners": {"GET": Operation(handler=self.list_miners)},
            "/v1/miners/{miner_id}": {
                "GET": Operation(handler=self.show_miner),
                "DELETE": ask(self.deregister),
            },
            "/v1/miners/{miner_id}/heartbeat": {"POST": ask(self.miner_heartbeat)},
            "/v1/miners/{miner_id}/drain": {"POST": ask(self.drain)},
        }

    async def find_available(self, request: Request) -> Answer:
        """`GET /v1/jobs/available`: a Job, or `null`."""
        miner_id = request.text("miner_id")
        if not miner_id:
            raise refuse_field("miner_id", "this parameter is required")
        wait_s = request.clamped("wait", default=0, maximum=MAX_WAIT_S)
        job = await self._market.available(
            request.caller,
            parse_miner_id(miner_id),
            wait_ms=wait_s * 1000,
            models=request.texts("model"),
        )
        return answer_json(None) if job is None else self._answers.show(request, job)

    async def claim(self, request: Request) -> Answer:
        """`POST /v1/jobs/{job_id}/claim`."""
        body = decode_body(request.body, ClaimBody)
        claim = await self._market.claim(
            request.caller, parse_job(request), body.miner_id, heartbeat=bool(body.heartbeat)
        )
        return answer_json(render_claim(claim))

    async def complete(self, request: Request) -> Answer:
        """`POST /v1/jobs/{job_id}/complete`."""
        report = parse_report(request.body)
        receipt = await self._market.complete(request.caller, parse_job(request), report)
        return answer_json(render_receipt(receipt))

    async def heartbeat(self, request: Request) -> Answer:
        """`POST /v1/jobs/{job_id}/heartbeat`."""
        body = decode_body(request.body, HeartbeatBody)
        request.drop_body()  # the answer may take half a minute
        lease = await self._market.heartbeat(
            request.caller,
            parse_job(request),
            body.miner_id,
            wait_ms=min(body.wait or 0, MAX_WAIT_S) * 1000,
        )
        return answer_json(render_lease(lease))

    async def tell(self, request: Request) -> Answer:
        """`POST /v1/jobs/{job_id}/text`."""
        body = decode_body(request.body, TextBody)
        known = await self._market.tell(
            request.caller, parse_job(request), body.miner_id, offset=body.offset, text=body.text
        )
        return answer_json({"received": known})

    async def release(self, request: Request) -> Answer:
        """`POST /v1/jobs/{job_id}/release`."""
        body = decode_body(request.body, MinerBody)
        job = await self._market.release(request.caller, parse_job(request), body.miner_id)
        return self._answers.show(request, job)

    async def fail(self, request: Request) -> Answer:
        """`POST /v1/jobs/{job_id}/fail`."""
        body = decode_body(request.body, FailureBody)
        job = await self._market.fail(
            request.caller,
            parse_job(request),
            body.miner_id,
            reason=body.reason or "",
            retryable=body.retryable is not False,
        )
        return self._answers.show(request, job)

    async def register(self, request: Request) -> Answer:
        """`POST /v1/miners/register`."""
        registration = parse_registration(request.body)
        miner = await self._market.register_miner(request.caller, registration)
        return answer_json(render_miner(miner), status=201)

    async def miner_heartbeat(self, request: Request) -> Answer:
        """`POST /v1/miners/{miner_id}/heartbeat`."""
        miner = await self._market.miner_heartbeat(request.caller, parse_miner_id(request.path_id))
        return answer_json(render_miner(miner))

    async def list_miners(self, request: Request) -> Answer:
        """`GET /v1/miners`: in the order of their names."""
        limit = request.clamped("limit", default=DEFAULT_MINERS, maximum=MAX_PAGE)
        miners = self._market.miners(after=request.text("after") or "", limit=limit)
        more = {}
        if limit and len(miners) == limit:
            more["next"] = request.address("/v1/miners", after=miners[-1].miner.miner_id)
        headers = (*link(more), *tell_total(self._market.count_miners()))
        return answer_json([render_standing(miner) for miner in miners], headers=headers)

    async def show_miner(self, request: Request) -> Answer:
        """`GET /v1/miners/{miner_id}`."""
        standing = self._market.miner(parse_miner_id(request.path_id))
        provider = standing.miner.account or standing.miner.miner_id
        totals = render_audit_totals(self._market.audit_totals(provider))
        return answer_json({**render_standing(standing), "audited": totals})

    async def drain(self, request: Request) -> Answer:
        """`POST /v1/miners/{miner_id}/drain`."""
        miner = await self._market.drain(request.caller, parse_miner_id(request.path_id))
        return answer_json(render_standing(miner))

    async def deregister(self, request: Request) -> Answer:
        """`DELETE /v1/miners/{miner_id}`."""
        await self._market.deregister(request.caller, parse_miner_id(request.path_id))
        return Answer(status=204)


def parse_miner_id(miner_id: str) -> str:
    """Return a miner id that may be one.

    Raises:
        MarketError: MINER_NOT_FOUND, it is none.
    """
    try:
        return msgspec.convert(miner_id, MinerName)
    except msgspec.ValidationError:
        raise MarketError("MINER_NOT_FOUND", "no miner with this id on this node") from None
