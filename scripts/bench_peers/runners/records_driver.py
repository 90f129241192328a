"""Hands signed receipts to a node: each request adds one record to the ledger.

The jobs are submitted, claimed and signed before, as a chain's transactions are signed before they
are sent. A record is durable when its request is answered; the processor time counts until all are
in certified blocks.
"""

from __future__ import annotations

import asyncio
import time

import msgspec
import uvloop

from scripts.bench_figures.connection import Connection
from scripts.bench_figures.load import Party, Prepared
from scripts.bench_peers.runners.node_driver import open_parties
from scripts.bench_peers.work import Order, Report, read_order, say_begin, say_report

LOOK_S = 0.01
SEALED_TIMEOUT_S = 60


class _Health(msgspec.Struct):
    pending_transactions: int


async def run(order: Order) -> Report:
    """Prepare, then complete everything."""
    parties = await open_parties(order)
    prepared = await asyncio.gather(*(_prepare(party, order) for party in parties))
    await _wait_until_sealed(order)
    began_s, began_cpu_s = say_begin(), time.process_time()
    await asyncio.gather(*map(_complete, parties, prepared))
    seconds, cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
    await _wait_until_sealed(order)
    for party in parties:
        await party.close()
    return Report(count=sum(map(len, prepared)), seconds=seconds, cpu_s=cpu_s)


async def _prepare(party: Party, order: Order) -> list[Prepared]:
    return [await party.prepare() for _ in range(order.records // order.connections)]


async def _complete(party: Party, prepared: list[Prepared]) -> None:
    for one in prepared:
        await party.complete(one)


async def _wait_until_sealed(order: Order) -> None:
    connection = await Connection.open(int(order.address), {})
    async with asyncio.timeout(SEALED_TIMEOUT_S):
        while True:
            answer = await connection.expect(200, "GET", "/health")
            if not msgspec.json.decode(answer.body, type=_Health).pending_transactions:
                break
            await asyncio.sleep(LOOK_S)
    await connection.close()


if __name__ == "__main__":
    say_report(uvloop.run(run(read_order())))
