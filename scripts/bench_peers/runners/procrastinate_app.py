"""procrastinate's application on PostgreSQL, and its worker."""

from __future__ import annotations

import asyncio

import procrastinate

from scripts.bench_peers.work import Order, answer, read_order

POOL = 16
"""Connections of each process."""


def build_app(order: Order) -> procrastinate.App:
    """The same for worker and driver."""
    connector = procrastinate.PsycopgConnector(conninfo=order.address, min_size=POOL, max_size=POOL)
    app = procrastinate.App(connector=connector)

    @app.task(name="answer_job")
    async def answer_job(prompt: str, model: str, max_tokens: int) -> dict[str, object]:
        return answer(prompt, model, max_tokens)

    return app


async def work(order: Order) -> None:
    """Work until SIGTERM."""
    app = build_app(order)
    async with app.open_async():
        await app.run_worker_async(concurrency=order.connections)


if __name__ == "__main__":
    asyncio.run(work(read_order()))
