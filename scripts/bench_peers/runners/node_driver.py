"""Submits, claims and completes jobs at a node: the load of `make bench`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import uvloop

from node.datadir import DataDirectory
from scripts.bench_figures.load import Party, open_party
from scripts.bench_peers.work import Order, Report, drive, read_order, say_report


async def open_parties(order: Order) -> list[Party]:
    """A client and its registered miner for each connection."""
    data = DataDirectory(Path(order.data))
    port = int(order.address)
    return [await open_party(port, order.key, data, i) for i in range(order.connections)]


async def run(order: Order) -> Report:
    """Life cycles of jobs."""
    parties = await open_parties(order)
    try:
        return await drive([_cycle(party) for party in parties], order.seconds)
    finally:
        for party in parties:
            await party.close()


def _cycle(party: Party) -> Callable[[], Awaitable[None]]:
    async def cycle() -> None:
        await party.run_job()

    return cycle


if __name__ == "__main__":
    say_report(uvloop.run(run(read_order())))
