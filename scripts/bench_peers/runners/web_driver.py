"""Submits, claims and completes jobs at `web_app`, with the client that a node's load uses."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec
import uvloop
from nacl.signing import SigningKey

from scripts.bench_figures.connection import Connection
from scripts.bench_peers.work import (
    MAX_TOKENS,
    MODEL,
    PROMPT,
    Order,
    Report,
    answer,
    drive,
    read_order,
    say_report,
)

KEY = SigningKey(bytes(range(32)))


class _Job(msgspec.Struct):
    job_id: str


async def run(order: Order) -> Report:
    """Life cycles of jobs."""
    port = int(order.address)
    connections = [await Connection.open(port, {}) for _ in range(order.connections)]
    try:
        return await drive([_cycle(connection) for connection in connections], order.seconds)
    finally:
        for connection in connections:
            await connection.close()


def _cycle(connection: Connection) -> Callable[[], Awaitable[None]]:
    async def post(status: int, path: str, body: object) -> bytes:
        data = msgspec.json.encode(body)
        return (await connection.expect(status, "POST", path, data)).body

    async def cycle() -> None:
        order = {"prompt": PROMPT, "model": MODEL, "params": {"max_tokens": MAX_TOKENS}}
        job = msgspec.json.decode(await post(201, "/v1/jobs", order), type=_Job)
        await post(200, f"/v1/jobs/{job.job_id}/claim", {"miner_id": "miner-0"})
        await post(200, f"/v1/jobs/{job.job_id}/complete", _complete(job.job_id))

    return cycle


def _complete(job_id: str) -> dict[str, object]:
    done = answer(PROMPT, MODEL, MAX_TOKENS)
    receipt = {"job_id": job_id, "model": MODEL, "price_micros": 1_000, "result_hash": "00" * 32}
    message = msgspec.json.encode(receipt, order="sorted")
    return {
        "receipt": receipt,
        "signature": KEY.sign(message).signature.hex(),
        "provider": KEY.verify_key.encode().hex(),
        "result": done["text"],
        "token_ids": done["token_ids"],
    }


if __name__ == "__main__":
    say_report(uvloop.run(run(read_order())))
