"""Submits jobs to procrastinate and sees when they are done.

It keeps no results and tells nobody, so one query looks now and then at all jobs that are
under way.
"""

from __future__ import annotations

import asyncio
import contextlib

import psycopg

from scripts.bench_peers.runners.procrastinate_app import build_app
from scripts.bench_peers.work import (
    MAX_TOKENS,
    MODEL,
    POLL_S,
    PROMPT,
    Order,
    Report,
    drive,
    read_order,
    say_report,
)

DONE = "SELECT id FROM procrastinate_jobs WHERE id = ANY(%s) AND status = 'succeeded'"


async def run(order: Order) -> Report:
    """The jobs under way, and one who looks at them."""
    waiting: dict[int, asyncio.Event] = {}
    app = build_app(order)
    async with (
        app.open_async(),
        await psycopg.AsyncConnection.connect(order.address, autocommit=True) as connection,
    ):
        looking = asyncio.create_task(look(connection, waiting))
        task = app.tasks["answer_job"]

        async def cycle() -> None:
            job = await task.defer_async(prompt=PROMPT, model=MODEL, max_tokens=MAX_TOKENS)
            done = waiting[job] = asyncio.Event()
            await done.wait()

        try:
            return await drive([cycle] * order.connections, order.seconds)
        finally:
            looking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await looking


async def look(connection: psycopg.AsyncConnection, waiting: dict[int, asyncio.Event]) -> None:
    """Tell who waits."""
    while True:
        cursor = await connection.execute(DONE, (list(waiting),))
        for (job,) in await cursor.fetchall():
            waiting.pop(job).set()
        await asyncio.sleep(POLL_S)


if __name__ == "__main__":
    say_report(asyncio.run(run(read_order())))
