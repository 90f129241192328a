"""What auditors do: look for an audit, claim it, deliver what they found, or give it back."""

from __future__ import annotations

from collections.abc import Mapping

from api.answers import Answer, answer_json
from api.bodies import AuditReportBody, MinerBody, ReleaseBody, decode_body
from api.errors import refuse_field
from api.jobs import MAX_WAIT_S
from api.miners import parse_miner_id
from api.ports import Market
from api.render_audits import render_audit, render_audit_claim, render_offer
from api.requests import MAX_BODY_BYTES, Request
from api.resource import Handler, Operation
from ledger.draws import MEASURED, AuditReport, parse_audit_id
from ledger.errors import MarketError
from ledger.transaction import Signature


class AuditorEndpoints:
    """`/v1/audits`."""

    def __init__(self, market: Market) -> None:
        self._market = market

    def paths(self) -> Mapping[str, Mapping[str, Operation]]:
        """Return the operations by path."""

        def work(handler: Handler) -> Mapping[str, Operation]:
            operation = Operation(
                handler=handler, role="miner", key="strict", max_body_bytes=MAX_BODY_BYTES
            )
            return {"POST": operation}

        look = Operation(handler=self.find_available, role="miner", key="strict")
        return {
            "/v1/audits/available": {"GET": look},
            "/v1/audits/{audit_id}/claim": work(self.claim),
            "/v1/audits/{audit_id}/complete": work(self.complete),
            "/v1/audits/{audit_id}/release": work(self.release),
        }

    async def find_available(self, request: Request) -> Answer:
        """`GET /v1/audits/available`: an audit to do, or `null`."""
        miner_id = request.text("miner_id")
        if not miner_id:
            raise refuse_field("miner_id", "this parameter is required")
        wait_s = request.clamped("wait", default=0, maximum=MAX_WAIT_S)
        audit = await self._market.find_audit(
            request.caller, parse_miner_id(miner_id), wait_ms=wait_s * 1000
        )
        return answer_json(None if audit is None else render_offer(audit))

    async def claim(self, request: Request) -> Answer:
        """`POST /v1/audits/{audit_id}/claim`."""
        body = decode_body(request.body, MinerBody)
        claim = await self._market.claim_audit(request.caller, _parse(request), body.miner_id)
        return answer_json(render_audit_claim(claim))

    async def complete(self, request: Request) -> Answer:
        """`POST /v1/audits/{audit_id}/complete`."""
        body = decode_body(request.body, AuditReportBody)
        report = AuditReport(
            miner_id=body.miner_id,
            **{name: getattr(body, name) for name in MEASURED},
            signature=Signature(
                key_id=body.signature.key_id, role="auditor", sig=body.signature.sig
            ),
        )
        audit = await self._market.complete_audit(request.caller, _parse(request), report)
        return answer_json(render_audit(audit))

    async def release(self, request: Request) -> Answer:
        """`POST /v1/audits/{audit_id}/release`."""
        body = decode_body(request.body, ReleaseBody)
        await self._market.release_audit(request.caller, _parse(request), body.miner_id)
        return Answer(status=204)


def _parse(request: Request) -> str:
    audit_id = request.path_id
    if parse_audit_id(audit_id) is None:
        raise MarketError("AUDIT_NOT_FOUND", "no audit with this id on this node")
    return audit_id
