"""Submits jobs to arq and waits for their results."""

from __future__ import annotations

import asyncio

from arq import create_pool
from arq.connections import RedisSettings

from scripts.bench_peers.work import (
    MAX_TOKENS,
    MODEL,
    POLL_S,
    PROMPT,
    TEXT,
    Order,
    Report,
    drive,
    read_order,
    say_report,
)


async def run(order: Order) -> Report:
    """All life cycles share one pool of connections, as an application's do."""
    pool = await create_pool(RedisSettings.from_dsn(order.address))

    async def cycle() -> None:
        job = await pool.enqueue_job("answer_job", PROMPT, MODEL, MAX_TOKENS)
        assert job is not None
        result = await job.result(timeout=60, poll_delay=POLL_S)
        assert result["text"] == TEXT

    try:
        return await drive([cycle] * order.connections, order.seconds)
    finally:
        await pool.aclose()


if __name__ == "__main__":
    say_report(asyncio.run(run(read_order())))
