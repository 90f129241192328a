"""A scripted node for the miner's tests: real HTTP on loopback, one job, answers as told.

It is strict: only the answer to a claim shows the job's prompt and params.

It remembers every call. It checks registrations and receipts as docs/protocol.md says and refuses
what does not verify, so a test that ends in `completed` has shown a valid signature.
"""

from __future__ import annotations

import asyncio
import socket
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ledger.encoding import encode_base64url
from ledger.hashing import build_receipt_id, hash_text, hash_tokens
from ledger.jobs import build_registration_message
from ledger.keys import verify_signature
from ledger.transaction import MICROS, ReceiptPayload, build_signed_message
from tests.builders import build_job_id, build_key, build_salt

GENESIS = "ab" * 32
API_KEY = "aitbc_test_key"
MINER_ID = "miner-1"
MODEL = "tiny:1b"
PROMPT_SALT, RESULT_SALT = build_salt("prompt"), build_salt("result")
STARTED_MS = 1_700_000_000_000
TOKEN_PRICE = 10


class CutOff(Response):
    """Begins an answer and drops the connection."""

    async def __call__(self, scope, receive, send) -> None:
        length = (b"content-length", b"100")
        await send({"type": "http.response.start", "status": 200, "headers": [length]})
        await send({"type": "http.response.body", "body": b""})


def refuse(status: int, code: str, **headers: str) -> Callable[[], Response]:
    body = {"detail": f"told to say {code}", "error_code": code, "request_id": "r"}
    return lambda: JSONResponse(body, status, headers)


class FakeCoordinator:
    """State, script and log of the node."""

    def __init__(self, *, heartbeat_interval_ms: int = 5, **job: Any) -> None:
        self.url = ""
        self.calls: list[str] = []
        self.bodies: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.script: dict[str, list[Callable[[], Response]]] = defaultdict(list)
        """By action: answers given instead of the real one, first to last."""
        self.hooks: dict[str, Callable[[], None]] = {}
        self.seen: dict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self.job: dict[str, Any] = {
            "job_id": build_job_id(1),
            "status": "pending",
            "prompt": "Why?",
            "model": MODEL,
            "params": {"max_tokens": 8, "temperature": 0.7, "top_p": 0.9},
        } | job
        self.offered = True
        self.heartbeat_interval_ms = heartbeat_interval_ms
        self.terms: dict[str, Any] = {}
        self.order: dict[str, Any] = {}
        self.receipt: ReceiptPayload | None = None
        self.text = ""
        """What was told of the answer."""

    async def answer(self, request: Request) -> Response:
        action = request.url.path.rsplit("/", 1)[-1]
        self.calls.append(action)
        if request.method == "POST":
            self.bodies[action].append(await request.json() if await request.body() else {})
        self.seen[action].set()
        if action != "health" and request.headers.get("x-api-key") != API_KEY:
            return refuse(401, "AUTH_INVALID_KEY")()
        if action in self.hooks:
            self.hooks[action]()
        if self.script[action]:
            return self.script[action].pop(0)()
        name = "text_told" if action == "text" else action
        handler: Callable[[Request], Awaitable[Response]] = getattr(self, name)
        return await handler(request)

    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok", "version": "1", "genesis": GENESIS})

    @property
    def redacted(self) -> dict[str, Any]:
        return {key: value for key, value in self.job.items() if key not in ("prompt", "params")}

    async def register(self, request: Request) -> Response:
        body = self.bodies["register"][-1]
        message = build_registration_message(
            genesis_hash=bytes.fromhex(GENESIS),
            miner_id=body["miner_id"],
            account=body["public_key"],
        )
        verify_signature(body["public_key"], message, body["proof"]["sig"])
        return JSONResponse(body, 201)

    async def available(self, request: Request) -> Response:
        assert request.query_params["miner_id"] == MINER_ID
        if self.offered:
            return JSONResponse(self.redacted)
        self.seen["idle"].set()
        await asyncio.sleep(0.01)  # a long poll that finds nothing
        return JSONResponse(None)

    async def claim(self, request: Request) -> Response:
        self.offered = False
        return self.answer_claim()

    def answer_claim(self, **changes: str) -> Response:
        job = self.job | changes
        self.terms = {
            "v": 1,
            "type": "receipt",
            "genesis": GENESIS,
            "receipt_id": build_receipt_id(
                genesis=GENESIS,
                coordinator=build_key("coordinator").account,
                job_id=job["job_id"],
            ),
            "job_id": job["job_id"],
            "attempt": 1,
            "client": "client-1",
            "provider": self.bodies["register"][-1]["public_key"],
            "coordinator": build_key("coordinator").account,
            "model": job["model"],
            "prompt_digest": hash_text(PROMPT_SALT, job["prompt"]).hex(),
            "max_tokens": 8,
            "temperature_micros": 700_000,
            "top_p_micros": 900_000,
            "seed": 5,
            "started_at_ms": STARTED_MS,
        }
        order = {
            "prompt_salt": encode_base64url(PROMPT_SALT),
            "result_salt": encode_base64url(RESULT_SALT),
            "unit_prices_micros": {"tokens": TOKEN_PRICE, "gpu_seconds": 1000},
            "receipt": self.terms,
        }
        order |= self.order
        return JSONResponse(job | {"lease": self.lease(), "work_order": order})

    def lease(self) -> dict[str, Any]:
        interval = self.heartbeat_interval_ms
        return {"attempt": 1, "expires_in_ms": 3 * interval, "heartbeat_interval_ms": interval}

    async def heartbeat(self, request: Request) -> Response:
        return JSONResponse(self.lease())

    async def text_told(self, request: Request) -> Response:
        body = self.bodies["text"][-1]
        if body["offset"] <= len(self.text):
            self.text = self.text[: body["offset"]] + body["text"]
        return JSONResponse({"received": len(self.text)})

    async def complete(self, request: Request) -> Response:
        body = self.bodies["complete"][-1]
        tokens = body["prompt_tokens"] + body["completion_tokens"]
        assert body["units"] == tokens
        measured = {
            "model_digest": body["model_digest"],
            "result_digest": hash_text(RESULT_SALT, body["result"]).hex(),
            "tokens_digest": hash_tokens(RESULT_SALT, body["output_token_ids"]).hex(),
            "sampler": body["sampler"],
            "prompt_tokens": body["prompt_tokens"],
            "completion_tokens": body["completion_tokens"],
            "unit_type": body["unit_type"],
            "units_micros": tokens * MICROS,
            "price_micros": tokens * TOKEN_PRICE,
            "completed_at_ms": body["completed_at_ms"],
            "metered_by": "provider",
        }
        payload = msgspec.convert(self.terms | measured, ReceiptPayload)
        signature = body["signature"]
        assert (signature["alg"], signature["key_id"]) == ("Ed25519", payload.provider)
        verify_signature(payload.provider, build_signed_message(payload), signature["sig"])
        self.receipt = payload
        self.seen["completed"].set()
        return JSONResponse({"receipt_id": payload.receipt_id})

    async def fail(self, request: Request) -> Response:
        self.seen["failed"].set()
        return JSONResponse(self.redacted)

    async def release(self, request: Request) -> Response:
        self.seen["released"].set()
        return JSONResponse(self.redacted)

    async def drain(self, request: Request) -> Response:
        return JSONResponse({"miner_id": MINER_ID, "draining": True})

    @property
    def app(self) -> Starlette:
        job = f"/v1/jobs/{self.job['job_id']}"
        actions = ("claim", "heartbeat", "text", "complete", "fail", "release")
        posts = [f"{job}/{name}" for name in actions]
        gets = ["/health", "/v1/jobs/available"]
        return Starlette(
            routes=[
                *(Route(path, self.answer) for path in gets),
                *(Route(path, self.answer, methods=["POST"]) for path in posts),
                Route("/v1/miners/register", self.answer, methods=["POST"]),
                Route(f"/v1/miners/{MINER_ID}/drain", self.answer, methods=["POST"]),
            ]
        )

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[FakeCoordinator]:
        """Serve on an ephemeral loopback port."""
        listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        config = uvicorn.Config(
            self.app, log_level="critical", lifespan="off", timeout_graceful_shutdown=1
        )
        config.load()
        server = uvicorn.Server(config)
        server.lifespan = config.lifespan_class(config)
        # Not `serve`, whose loop looks every 100 ms whether to end.
        await server.startup(sockets=[listener])
        try:
            yield self
        finally:
            await server.shutdown(sockets=[listener])
            listener.close()
