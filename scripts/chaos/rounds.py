"""The course of a run: rounds of faults under load, then peace, then the verdict."""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Awaitable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field

import httpx2
import msgspec

from node.p2p.documents import Status
from scripts.bench_figures.connection import Connection
from scripts.chaos.faults import Drawer, Fault
from scripts.chaos.history import History, Verdict, judge
from scripts.chaos.load import Onlooker, Party, watch_heights
from scripts.chaos.nodes import Node, Processes, require

PARTIES = 2
"""Of each authority."""
PAUSE_S = 0.1
LASTS_S = (0.5, 6.0)
"""How long faults last."""
PEACE_S = (0.2, 1.0)
"""Between rounds, once all is healed."""
HEAL_TIMEOUT_S = 300.0
DRAIN_TIMEOUT_S = 120.0
POLL_S = 0.05
STATUS_TIMEOUT_S = 3.0
AT_ONCE = ((1, 65), (2, 25), (3, 10))
"""Faults at once, with how often."""


class _Health(msgspec.Struct):
    pending_transactions: int


@dataclass
class Outcome:
    """What was done, and what it cost."""

    counts: Counter[str] = field(default_factory=Counter)
    heal_s: list[float] = field(default_factory=list)
    """From the end of the faults of a round until every node has a newer block."""
    rounds: int = 0
    history: History = field(default_factory=History)
    verdict: Verdict = field(default_factory=Verdict)
    complaints: int = 0
    tracebacks: int = 0
    """Of nodes whose disk was never full."""


class Run(ABC):
    """One run over processes that are made and do not run."""

    def __init__(self, nodes: Processes, drawer: Drawer, rng: random.Random) -> None:
        self._rng = rng
        self._nodes = nodes
        self._drawer = drawer
        self.outcome = Outcome()

    def run(self, seconds: float) -> Outcome:
        """Run it all.

        Raises:
            ChaosError: the network did not heal, or a node ended by itself.
        """
        with self._nodes.running():
            try:
                asyncio.run(self._run(seconds))
            except ExceptionGroup as group:  # of the tasks, the first that failed says why
                raise group.exceptions[0] from group
        self.outcome.verdict = judge(self.outcome.history, list(self._nodes.all.values()))
        for node in self._nodes.all.values():
            self.outcome.complaints += node.count_complaints()
            if not self._may_fail(node):
                self.outcome.tracebacks += node.count_tracebacks()
        return self.outcome

    # --- what differs ---------------------------------------------------------------------------

    @property
    @abstractmethod
    def _coordinators(self) -> list[Node]:
        """Those that take jobs."""

    @abstractmethod
    def _may_fail(self, node: Node) -> bool:
        """Tell whether a node may say in its log why it stopped."""

    @abstractmethod
    def _open(self) -> AbstractAsyncContextManager[None]:
        """Start what stands between and below the nodes."""

    @abstractmethod
    def _list_parties(self, history: History) -> list[Party]:
        """Return the clients with their miners, those of one node one after another."""

    @abstractmethod
    async def _begin(self) -> None:
        """Do what comes before the rounds."""

    # --- the course -----------------------------------------------------------------------------

    async def _run(self, seconds: float) -> None:
        async with self._open():
            await asyncio.gather(*(self._nodes.start(node) for node in self._nodes.all.values()))
            await self._run_under_load(seconds)
            await asyncio.gather(*(self._nodes.stop(node) for node in self._nodes.all.values()))

    async def _run_under_load(self, seconds: float) -> None:
        history = self.outcome.history
        parties = self._list_parties(history)
        over, seen = asyncio.Event(), asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            guard = tasks.create_task(self._guard())
            working = [tasks.create_task(party.run(over)) for party in parties]
            for seed, node in enumerate(self._nodes.all.values()):
                onlooker = Onlooker(node, history, seed, pause_s=PAUSE_S)
                tasks.create_task(onlooker.run(seen))
            for node in self._coordinators:
                tasks.create_task(watch_heights(node, history, seen))
            await self._wait_healed()
            await self._begin()
            ends_at = time.monotonic() + seconds
            while time.monotonic() < ends_at:
                await self._round()
            over.set()
            await asyncio.gather(*working)
            await self._settle(parties[::PARTIES])
            seen.set()
            guard.cancel()

    async def _round(self) -> None:
        (count,) = self._rng.choices(
            [count for count, _ in AT_ONCE], [weight for _, weight in AT_ONCE]
        )
        await self._suffer(self._drawer.draw(count))

    async def _suffer(self, faults: Sequence[Fault]) -> None:
        print(f"  {' + '.join(_describe(fault) for fault in faults)}", end="", file=sys.stderr)
        for fault in faults:
            await fault.begin()
            self.outcome.counts[fault.name] += 1
        await asyncio.sleep(self._rng.uniform(*LASTS_S))
        await self._heal(*(fault.heal() for fault in faults))
        await asyncio.sleep(self._rng.uniform(*PEACE_S))

    async def _heal(self, *mending: Awaitable[None]) -> None:
        began = time.monotonic()
        await asyncio.gather(*mending)
        await self._wait_healed()
        self.outcome.heal_s.append(time.monotonic() - began)
        self.outcome.rounds += 1
        print(f": healed in {self.outcome.heal_s[-1]:.2f} s", file=sys.stderr)

    async def _wait_healed(self) -> None:
        """Wait until every node has a block that is newer than any at this moment."""
        nodes = list(self._nodes.all.values())
        heights = await asyncio.gather(*(read_height(node) for node in nodes))
        await self._wait_for_height(max(heights) + 1)

    async def _wait_for_height(self, height: int) -> None:
        deadline = time.monotonic() + HEAL_TIMEOUT_S
        for node in self._nodes.all.values():
            while (found := await read_height(node)) < height:
                require(
                    time.monotonic() < deadline,
                    f"stuck: {node.name} is at {found} and does not reach {height}",
                )
                await asyncio.sleep(POLL_S)

    async def _settle(self, parties: list[Party]) -> None:
        """Let every job end, and every receipt become final everywhere."""
        with contextlib.suppress(TimeoutError):  # the verdict names the jobs that have not ended
            async with asyncio.timeout(DRAIN_TIMEOUT_S):
                await asyncio.gather(*(party.drain() for party in parties))
        deadline = time.monotonic() + HEAL_TIMEOUT_S
        for node in self._coordinators:
            while (waiting := await _count_waiting(node)) != 0:
                require(time.monotonic() < deadline, f"{node.name}: {waiting} are never final")
                await asyncio.sleep(POLL_S)
        heights = [await read_height(node) for node in self._coordinators]
        await self._wait_for_height(max(heights))

    async def _guard(self) -> None:
        """See that no node ends by itself."""
        while True:
            for node in self._nodes.all.values():
                self._nodes.note_ended(node)
            await asyncio.sleep(POLL_S)


def _describe(fault: Fault) -> str:
    return f"{fault.name} {', '.join(sorted(fault.targets))}"


async def read_height(node: Node) -> int:
    """Return a node's height, -1 if it does not answer."""
    body = await _get(node, "/p2p/status")
    return msgspec.json.decode(body, type=Status).height if body else -1


async def _count_waiting(node: Node) -> int:
    """Return how many transactions wait for a block on a node, -1 if it does not answer."""
    body = await _get(node, "/health")
    return msgspec.json.decode(body, type=_Health).pending_transactions if body else -1


async def _get(node: Node, path: str) -> bytes:
    """Return what a node answers, nothing if it does not."""
    try:
        async with asyncio.timeout(STATUS_TIMEOUT_S):
            connection = await Connection.open(node.port, {})
            try:
                answer = await connection.request("GET", path)
            finally:
                await connection.close()
    except (OSError, EOFError, ValueError, TimeoutError):
        return b""
    return answer.body if answer.status == httpx2.codes.OK else b""
