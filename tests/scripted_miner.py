"""A miner process whose inference is scripted: `python -m tests.scripted_miner URL KEY NAME WHAT`.

WHAT is `answers`, or `never-ends`: then inference goes on until the process dies, and heartbeats
keep the lease. Worker, client and signatures are the production ones.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable

from miner.client import CoordinatorClient
from miner.engine import Completion
from miner.worker import Worker
from tests.builders import build_key
from tests.scripted_engine import ScriptedEngine, until_stopped

MODEL = "scripted"


def begin_and_hang(should_stop: Callable[[], bool]) -> Completion:
    """Say that the job has begun, and never end."""
    sys.stdout.write("began\n")
    sys.stdout.flush()
    return until_stopped(should_stop)


async def mine(url: str, key: str, name: str, what: str) -> None:
    """Work until the process ends."""
    engine = ScriptedEngine(begin_and_hang) if what == "never-ends" else ScriptedEngine()
    client = CoordinatorClient(url=url, api_key=key)
    worker = Worker(
        client=client,
        miner_id=name,
        key=build_key(name),
        engines={MODEL: engine},
        clock_ms=lambda: 0,
    )
    await worker.run()


if __name__ == "__main__":
    asyncio.run(mine(*sys.argv[1:]))
