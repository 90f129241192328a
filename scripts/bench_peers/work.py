"""What every peer is asked, and what its driver reports: the standard library only."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Final

PROMPT: Final = "Why is the sky blue? Answer in two sentences."
TEXT: Final = (
    "Air scatters blue light more than red light. So blue reaches us from everywhere. " * 2
)
"""Prompt and answer are those of the load that `make bench` puts on a node."""
MODEL: Final = "bench-model"
MAX_TOKENS: Final = 64
WARM_UP_S: Final = 1.0
POLL_S: Final = 0.025
"""How often a client looks for results where nothing tells it: 32 of them see 1,280 a second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a driver shall do."""

    address: str
    """Of the server, as the peer's library takes it."""
    connections: int
    """Life cycles at a time."""
    seconds: float
    """No life cycle begins later, the warm-up not counted."""
    key: str = ""
    """For a node: an API key."""
    records: int = 0
    """Where records are counted: so many, of all connections together."""
    data: str = ""
    """For a node: its data directory, which holds a miner's signing key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a driver did."""

    count: int
    """Life cycles, from submitting until the answer was back."""
    seconds: float
    """From the first to the last of them."""
    cpu_s: float
    """Processor time of the driver meanwhile."""


def answer(prompt: str, model: str, max_tokens: int) -> dict[str, object]:
    """The work of every job: none, so that what surrounds it is measured."""
    if not prompt or not model or max_tokens < 1:
        raise ValueError("a job without a prompt or a model")
    return {"text": TEXT, "token_ids": list(range(48)), "finish_reason": "stop"}


def read_order() -> Order:
    """From the arguments of a driver or a worker."""
    return Order(**json.loads(sys.argv[1]))


def say_begin() -> float:
    """Tell who measures that the warm-up is over; returns the clock."""
    print("begin", flush=True)
    return time.perf_counter()


def say_report(report: Report) -> None:
    """The last line of a driver."""
    print(json.dumps(asdict(report)), flush=True)


async def drive(cycles: Sequence[Callable[[], Awaitable[None]]], seconds: float) -> Report:
    """Let each of these go on, one life cycle after another, until the time is over."""

    async def go_on(cycle: Callable[[], Awaitable[None]], until_s: float) -> int:
        count = 0
        while time.perf_counter() < until_s:
            await cycle()
            count += 1
        return count

    async def go_on_together(length_s: float) -> int:
        until_s = time.perf_counter() + length_s
        return sum(await asyncio.gather(*(go_on(cycle, until_s) for cycle in cycles)))

    await go_on_together(WARM_UP_S)
    began_s, began_cpu_s = say_begin(), time.process_time()
    count = await go_on_together(seconds)
    return Report(
        count=count,
        seconds=time.perf_counter() - began_s,
        cpu_s=time.process_time() - began_cpu_s,
    )
