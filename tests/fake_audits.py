"""A scripted node that orders audits. It is strict: only what verifies is taken for completed."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ledger.keys import verify_signature
from ledger.payloads import AuditPayload
from ledger.transaction import build_signed_message
from tests.audit_stage import Files
from tests.builders import build_key
from tests.fake_coordinator import MINER_ID, FakeCoordinator

AUDIT_ID = "aud_00000000000000000000000009"


class FakeAudits(FakeCoordinator):
    """Offers one audit; once it is claimed and not given back, nothing."""

    def __init__(self, files: Files, **changes: Any) -> None:
        super().__init__()
        receipt = msgspec.to_builtins(files.case().receipt)
        job = files.job
        self.genesis = receipt["genesis"]
        self.order = {
            "audit_id": AUDIT_ID,
            "genesis": self.genesis,
            "auditor": build_key("auditor").account,
            "coordinator": receipt["coordinator"],
            "receipt": receipt,
            "prompt": job["prompt"],
            "params": job["params"],
            "result": job["result"],
            **job["disclosure"],
            "lease": {"attempt": 1, "expires_in_ms": 600_000},
        } | changes
        self.model = receipt["model"]
        self.audit: AuditPayload | None = None

    async def health(self, request: Request) -> Response:
        return JSONResponse({"genesis": self.genesis})

    async def available(self, request: Request) -> Response:
        assert request.query_params["miner_id"] == MINER_ID
        if self.offered:
            return JSONResponse({"audit_id": AUDIT_ID, "model": self.model})
        self.seen["idle"].set()
        await asyncio.sleep(0.01)  # a long poll that finds nothing
        return JSONResponse(None)

    async def claim(self, request: Request) -> Response:
        self.offered = False
        return JSONResponse(self.order)

    async def complete(self, request: Request) -> Response:
        body = self.bodies["complete"][-1]
        known = {"genesis": self.genesis, "receipt_id": self.order["receipt"]["receipt_id"]}
        known |= {name: self.order[name] for name in ("auditor", "coordinator")}
        given = {k: v for k, v in body.items() if k not in {"miner_id", "signature"}}
        payload = msgspec.convert({"v": 1, "type": "audit", **known, **given}, AuditPayload)
        signature = body["signature"]
        assert (signature["alg"], signature["key_id"]) == ("Ed25519", payload.auditor)
        verify_signature(payload.auditor, build_signed_message(payload), signature["sig"])
        self.audit = payload
        self.seen["completed"].set()
        return JSONResponse({"status": "pending"})

    async def release(self, request: Request) -> Response:
        self.seen["released"].set()
        return Response(status_code=204)

    @property
    def app(self) -> Starlette:
        posts = [f"/v1/audits/{AUDIT_ID}/{name}" for name in ("claim", "complete", "release")]
        return Starlette(
            routes=[
                *(Route(path, self.answer) for path in ("/health", "/v1/audits/available")),
                *(Route(path, self.answer, methods=["POST"]) for path in posts),
            ]
        )
