"""Rehearse what operators fear, on a real network of processes on this machine.

    make rehearse                          4 authorities and a follower, about a minute
    make rehearse ARGS="--seconds 10"      longer phases

Every authority coordinates jobs of its own all the time. One is killed (SIGKILL) and started again;
two are stopped, so that nothing can become final; they come back. At the end all ledgers are
verified from genesis and compared, and every receipt that was acknowledged must be in them once.
Times are printed, never judged.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

from ledger.block import parse_genesis
from ledger.errors import LedgerError
from ledger.store.database import open_reader
from ledger.store.fsck import verify_chain
from node.datadir import DataDirectory, load_key
from node.local.network import NodeEntry
from scripts.bench_figures.connection import Connection
from scripts.bench_figures.load import Party
from scripts.bench_figures.node_process import ROOT
from scripts.local_network import LocalNetwork, require

HEAL_TIMEOUT_S = 120.0
PAUSE_S = 0.05
"""Between two jobs of one coordinator: a steady load, not the most it can do."""
MAX_COMPLAINTS = 40
"""Warnings and errors that a node may log while two others are gone."""


@dataclass
class Load:
    """Jobs that go through one authority, one after another, for as long as it answers."""

    node: NodeEntry
    completed: dict[str, float] = field(default_factory=dict)
    """Acknowledged receipts, with when (monotonic seconds)."""
    refused: int = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Run jobs until told to stop."""
        while not stop.is_set():
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, LedgerError):
                await self._run_jobs(stop)
            self.refused += not stop.is_set()
            await asyncio.sleep(PAUSE_S)

    async def _run_jobs(self, stop: asyncio.Event) -> None:
        port = int(self.node.url.rsplit(":", 1)[1])
        connection = await Connection.open(port, {"X-Api-Key": self.node.admin_key})
        try:
            key, _ = load_key(DataDirectory(Path(self.node.data)).miner_key)
            party = Party(connection, miner_id="load", key=key)
            await party.register()
            while not stop.is_set():
                receipt_id, _ = await party.run_job()
                self.completed[receipt_id] = time.monotonic()
                await asyncio.sleep(PAUSE_S)
        finally:
            await connection.close()


@dataclass
class Finality:
    """When each height became final, as one node saw it."""

    url: str
    seen: dict[int, float] = field(default_factory=dict)
    """Monotonic seconds by height."""

    async def watch(self) -> None:
        """Wait for one block after another, for ever."""
        height = 1
        async with httpx2.AsyncClient(timeout=60, trust_env=False) as client:
            while True:
                query = {"from": str(height), "wait_ms": "10000", "limit": "1"}
                answer = await client.get(f"{self.url}/p2p/blocks", params=query)
                if answer.content:
                    self.seen[height] = time.monotonic()
                    height += 1

    @property
    def height(self) -> int:
        """The newest height seen."""
        return max(self.seen, default=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A stretch of the rehearsal."""

    name: str
    began: float
    ended: float


class Rehearsal:
    """The course of events, and what was seen of it."""

    def __init__(self, network: LocalNetwork, *, phase_s: float) -> None:
        self._network = network
        self._phase_s = phase_s
        self._authorities = [n for n in network.nodes.values() if n.role == "authority"]
        self._loads = {node.name: Load(node) for node in self._authorities}
        self._finality = Finality(self._authorities[0].url)
        self.phases: list[Phase] = []
        self.facts: dict[str, str] = {}
        self._stalled: set[str] = set()
        """Receipts that had to wait for the two that were stopped."""
        self._healed_from = 0.0

    async def run(self) -> None:
        """Run all phases.

        Raises:
            RehearsalError: a promise was broken.
        """
        stop = asyncio.Event()
        watching = asyncio.create_task(self._finality.watch())
        async with asyncio.TaskGroup() as tasks:
            for load in self._loads.values():
                tasks.create_task(load.run(stop))
            await self._phase("all well", self._nothing)
            await self._phase("one killed", self._kill_one)
            await self._phase("it is back", self._bring_one_back)
            await self._phase("two stopped", self._stop_two)
            await self._phase("they are back", self._bring_two_back)
            stop.set()
        await self._wait_until_all_is_final()
        watching.cancel()

    async def _phase(self, name: str, act: Callable[[], Awaitable[None]]) -> None:
        print(f"  {name}", file=sys.stderr)
        began = time.monotonic()
        await act()
        await asyncio.sleep(max(began + self._phase_s - time.monotonic(), 0))
        self.phases.append(Phase(name=name, began=began, ended=time.monotonic()))

    async def _nothing(self) -> None:
        return

    async def _kill_one(self) -> None:
        self._network.end(self._authorities[1].name, signal.SIGKILL)
        height = self._finality.height
        await asyncio.sleep(self._phase_s)
        require(self._finality.height > height, "nothing became final while one of four was dead")

    async def _bring_one_back(self) -> None:
        node = self._authorities[1]
        began = time.monotonic()
        self._network.start(node.name)
        await self._wait_for_height(node, self._finality.height)
        self.facts["the killed one caught up in"] = (
            f"{time.monotonic() - began:.2f} s, start and all"
        )

    async def _stop_two(self) -> None:
        for node in self._authorities[2:4]:
            self._network.end(node.name, signal.SIGTERM)
        await asyncio.sleep(1)  # what had its votes already may still become final
        height, before = self._finality.height, self._complaints()
        accepted = sum(len(load.completed) for load in self._loads.values())
        await asyncio.sleep(self._phase_s)
        require(self._finality.height == height, "a block became final without a quorum")
        accepted = sum(len(load.completed) for load in self._loads.values()) - accepted
        require(accepted, "writes are not accepted while nothing can become final")
        complaints = self._complaints() - before
        require(complaints <= MAX_COMPLAINTS, f"{complaints} complaints in the logs")
        self.facts["accepted as pending meanwhile"] = f"{accepted} receipts"
        self.facts["warnings and errors logged meanwhile"] = str(complaints)

    async def _bring_two_back(self) -> None:
        self._stalled = self._pending_at(time.monotonic())
        self._healed_from = time.monotonic()
        for node in self._authorities[2:4]:
            self._network.start(node.name)

    def _complaints(self) -> int:
        return sum(self._network.count_complaints(node.name) for node in self._authorities[:2])

    def _pending_at(self, moment: float) -> set[str]:
        """Receipts that were acknowledged before a moment and not seen final by then."""
        last = max((at for at in self._finality.seen.values() if at < moment), default=0.0)
        return {r for load in self._loads.values() for r, at in load.completed.items() if at > last}

    async def _wait_for_height(self, node: NodeEntry, height: int) -> None:
        async with httpx2.AsyncClient(timeout=10, trust_env=False) as client:
            deadline = time.monotonic() + HEAL_TIMEOUT_S
            while (await client.get(f"{node.url}/health")).json()["height"] < height:
                require(time.monotonic() < deadline, f"{node.name} does not reach {height}")
                await asyncio.sleep(PAUSE_S)

    async def _wait_until_all_is_final(self) -> None:
        receipts = {r: load.node for load in self._loads.values() for r in load.completed}
        deadline = time.monotonic() + HEAL_TIMEOUT_S
        async with httpx2.AsyncClient(timeout=10, trust_env=False) as client:
            for receipt_id, node in receipts.items():
                while True:
                    answer = await client.get(f"{node.url}/v1/receipts/{receipt_id}")
                    if answer.json().get("status") == "final":
                        break
                    require(time.monotonic() < deadline, f"{receipt_id} does not become final")
                    await asyncio.sleep(PAUSE_S)
            status = (await client.get(f"{self._authorities[0].url}/health")).json()
        for node in self._network.nodes.values():
            await self._wait_for_height(node, status["height"])

    # --- afterwards -----------------------------------------------------------------------------

    def judge(self) -> dict[str, str]:
        """Verify and compare the ledgers of the stopped network; returns the figures.

        Raises:
            RehearsalError: they differ, or a receipt is missing.
            StoreError: one of them is damaged.
        """
        nodes = list(self._network.nodes.values())
        heads = {node.name: self._verify(node) for node in nodes}
        require(len(set(heads.values())) == 1, f"the ledgers differ: {heads}")
        height, size, head = heads[nodes[0].name]
        heights = self._read_heights(nodes[0])
        acknowledged = {r: at for load in self._loads.values() for r, at in load.completed.items()}
        lost = acknowledged.keys() - heights.keys()
        require(not lost, f"acknowledged and not in the chain: {sorted(lost)}")
        figures = {
            "ledgers verified and identical": f"{len(nodes)}: block {height}, {size} transactions, "
            f"head {head[:16]}…",
            "acknowledged receipts": f"{len(acknowledged)}, each in the chain once",
            "requests that failed": str(sum(load.refused for load in self._loads.values())),
            **self.facts,
        }
        waits = {r: self._finality.seen[heights[r]] - at for r, at in acknowledged.items()}
        for phase in self.phases:
            inside = [
                waits[r] * 1000
                for r, at in acknowledged.items()
                if phase.began <= at < phase.ended
                and not (phase.name == "two stopped" and r in self._stalled)
            ]
            figures[f"complete to final, {phase.name}"] = _describe(inside)
        healed = [
            (self._finality.seen[heights[r]] - self._healed_from) * 1000 for r in self._stalled
        ]
        figures["start of the two to final"] = _describe(healed)
        return figures

    def _verify(self, node: NodeEntry) -> tuple[int, int, str]:
        data = Path(node.data)
        genesis = parse_genesis((data / "genesis.json").read_bytes())
        tip = verify_chain(data / "ledger.db", genesis, lambda _height, _last: None)
        return tip.height, tip.tree_size, tip.hash.hex()

    def _read_heights(self, node: NodeEntry) -> dict[str, int]:
        with contextlib.closing(open_reader(Path(node.data) / "ledger.db")) as reader:
            rows = reader.execute(
                "SELECT receipt_id, height FROM receipts JOIN transactions USING (leaf)"
            )
            return {str(receipt_id): int(height) for receipt_id, height in rows}


def _describe(times_ms: list[float]) -> str:
    if not times_ms:
        return "none"
    ordered = sorted(times_ms)
    p50, p99 = (ordered[min(int(len(ordered) * q), len(ordered) - 1)] for q in (0.5, 0.99))
    return f"p50 {p50:,.0f} ms, p99 {p99:,.0f} ms, most {ordered[-1]:,.0f} ms ({len(ordered)})"


def rehearse(root: Path, *, phase_s: float) -> dict[str, str]:
    """Run the whole rehearsal in an empty directory; returns its figures.

    Raises:
        LedgerError: a promise was broken.
    """
    network = LocalNetwork(root, authorities=4, followers=1)
    with network.run():
        rehearsal = Rehearsal(network, phase_s=phase_s)
        asyncio.run(rehearsal.run())
    return rehearsal.judge()


def main(arguments: list[str] | None = None) -> int:
    """Run the command. Returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=15.0, help="length of a phase")
    options = parser.parse_args(arguments)
    build = ROOT / "build"
    build.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="rehearsal-", dir=build) as folder:
        try:
            figures = rehearse(Path(folder) / "network", phase_s=options.seconds)
        except LedgerError as error:
            print(f"BROKEN: {error}", file=sys.stderr)
            return 1
    width = max(map(len, figures))
    for name, value in figures.items():
        print(f"{name:<{width}}  {value}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
