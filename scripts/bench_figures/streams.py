"""How many clients one core carries that follow jobs whose texts grow once a second.

The node has a core to itself where there are two; the clients are two processes on the others. As
many streams are opened as the system's limit of open files leaves, or fewer: the number is doubled
while 99 of 100 events come in time, and then halved between the last good and the first bad one.
"""

from __future__ import annotations

import asyncio
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from types import TracebackType

import msgspec
import uvloop

from ledger.errors import StoreError
from miner.wire import Job
from node.clock import read_clock_ms
from node.datadir import DataDirectory
from scripts.bench_figures.connection import Connection
from scripts.bench_figures.load import MODEL, open_party
from scripts.bench_figures.measure import MIB, MICROS, Plan, Row, percentile, read_memory
from scripts.bench_figures.node_process import (
    ROOT,
    RunningNode,
    make_api_key,
    make_data_directory,
    run_node,
)
from scripts.bench_figures.stream_clients import StreamOrder, StreamReport

GOAL_CLIENTS = 19_000
GOAL_MS = 400
EVENTS_PER_S = 1.0
JOBS = 20
"""Told one after another within the second, so that each client hears once in it."""
PROCESSES = 2
KEYS = 8
"""Whose streams they are: one key has half of the places at most."""
SPARE_FILES = 800
"""Of the node's limit: its own, and what is kept for those who are refused."""
LATE_S = 2.0
"""Events that come later than this after the last one are lost."""
FIRST = 5_000
"""Followers of the first step."""
MAX_STEPS = 6
PRECISION = 16
"""The search ends when what lies between good and bad is such a part of the most."""
END_TIMEOUT_S = 30
LEASE_MS = 600_000
"""No heartbeat is sent here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What so many clients saw."""

    clients: int
    streams: int
    late_ms: Sequence[float]
    """Of every event; those that never came have none."""
    lost: int
    cpu_micros: float
    """Processor time of the node for one event of one client."""
    cores: float
    """How much of a core the node used."""
    memory: int

    @property
    def p99_ms(self) -> float:
        """What 99 of 100 events took at most; endless if too many never came."""
        late = [*self.late_ms, *[float("inf")] * self.lost]
        return percentile(late, 0.99) if late else float("inf")

    @property
    def is_good(self) -> bool:
        """Whether all were served, in time."""
        return self.streams == self.clients and self.p99_ms < GOAL_MS


def measure_streams(plan: Plan) -> Iterator[Row]:
    """Find the most clients whose events come in time."""
    data = make_data_directory(plan.folder / "streams", created_ms=read_clock_ms())
    admin = make_api_key(data, "admin")
    keys = [make_api_key(data, "client") for _ in range(KEYS)]
    most = min(plan.followers, resource.getrlimit(resource.RLIMIT_NOFILE)[1] - SPARE_FILES)
    options = ("--max-waiting", str(most), "--lease-ms", str(LEASE_MS), "--mode", "dev")
    with run_node(data, *options) as node:
        others = _give_core(node.pid)
        teller = _Teller(node.port, admin, data)
        uvloop.run(teller.begin())

        def take(clients: int) -> Step:
            step = _measure_step(node, teller, keys, clients, plan.load_s, others, plan.folder)
            print(f"  {step.streams:,} of {clients:,}: {step.p99_ms:,.0f} ms", file=sys.stderr)
            return step

        best = find_most(take, most)
    yield from _list_rows(best, most)


def find_most(take: Callable[[int], Step], most: int) -> Step:
    """Double the number until it is too large, halve what lies between; return the last good one.

    Raises:
        StoreError: not even the first number is good.
    """
    good: Step | None = None
    bad, clients = most + 1, min(FIRST, most)
    for _ in range(MAX_STEPS):
        step = take(clients)
        if step.is_good:
            good = step
        else:
            bad = clients
        low = good.clients if good else 0
        if bad - low <= max(most // PRECISION, 1):
            break
        clients = min(2 * low, most) if bad > most else (low + bad) // 2
    if good is None:
        raise StoreError("no number of followers gets its events in time")
    return good


def _list_rows(best: Step, most: int) -> Iterator[Row]:
    bound = " (all that was asked for)" if best.clients == most else ""
    yield Row(
        figure=f"followers of jobs on one core, an event a second each{bound}",
        value=best.clients,
        unit="",
        goal=f">= {GOAL_CLIENTS:,}",
        cpu_micros=best.cpu_micros,
    )
    yield Row(
        figure=f"an event of {best.clients:,} followers, until it is there",
        value=median(best.late_ms),
        unit="ms",
        p99=best.p99_ms,
        goal=f"p99 < {GOAL_MS} ms",
    )
    yield Row(figure="  processor time of the node meanwhile", value=100 * best.cores, unit="%")
    yield Row(figure="  memory of the node meanwhile", value=best.memory / MIB, unit="MiB")


def _give_core(pid: int) -> set[int]:
    """Let a process have a core to itself; returns the others, all if there is one alone."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) == 1:
        return set(cores)
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), cores[:1])
    return set(cores[1:])


class _Known(msgspec.Struct):
    received: int


class _Teller:
    """The miner of jobs that run and run."""

    def __init__(self, port: int, key: str, data: DataDirectory) -> None:
        self._port = port
        self._key = key
        self._data = data
        self.paths: list[str] = []

    async def begin(self) -> None:
        """Submit the jobs and claim them."""
        await (await open_party(self._port, self._key, self._data, 0)).close()
        connection = await Connection.open(self._port, {"X-Api-Key": self._key})
        for _ in range(JOBS):
            answer = await connection.expect(201, "POST", "/v1/jobs", _ORDER)
            path = f"/v1/jobs/{msgspec.json.decode(answer.body, type=Job).job_id}"
            claim = msgspec.json.encode({"miner_id": "miner-0", "heartbeat": True})
            await connection.expect(200, "POST", f"{path}/claim", claim)
            self.paths.append(path)
        await connection.close()

    async def tell(self, count: int, mark: str) -> None:
        """Tell each job the time, once a second, so often."""
        await asyncio.gather(*(self._tell(j, count, mark) for j in range(JOBS)))

    async def _tell(self, job: int, count: int, mark: str) -> None:
        now = asyncio.get_running_loop().time
        began, path = now(), f"{self.paths[job]}/text"
        connection = await Connection.open(self._port, {"X-Api-Key": self._key})
        answer = await connection.expect(200, "POST", path, _write_text(0, ""))
        offset = msgspec.json.decode(answer.body, type=_Known).received
        for number in range(1, count + 1):
            await asyncio.sleep(began + (number + job / JOBS) / EVENTS_PER_S - now())
            text = f"<{mark} {time.monotonic():.6f}> the next words. "
            await connection.expect(200, "POST", path, _write_text(offset, text))
            offset += len(text)
        await connection.close()


_ORDER = msgspec.json.encode({"prompt": "Tell.", "model": MODEL, "params": {"max_tokens": 64}})


def _write_text(offset: int, text: str) -> bytes:
    return msgspec.json.encode({"miner_id": "miner-0", "offset": offset, "text": text})


def _measure_step(
    node: RunningNode,
    teller: _Teller,
    keys: Sequence[str],
    clients: int,
    seconds: float,
    cores: set[int],
    folder: Path,
) -> Step:
    shares = [clients // PROCESSES + (number < clients % PROCESSES) for number in range(PROCESSES)]
    orders = [
        StreamOrder(
            port=node.port,
            clients=share,
            address=f"127.2.0.{number + 1}",
            paths=[f"{path}/events" for path in teller.paths],
            keys=keys,
            mark=str(clients),
            report=str(folder / f"followers-{number}.json"),
        )
        for number, share in enumerate(shares)
    ]
    with ExitStack() as stack:
        crowd = [stack.enter_context(_Followers(order, cores)) for order in orders]
        for followers in crowd:
            followers.wait_until_open()
        memory = read_memory(node.pid, "VmRSS")
        cpu_s, began = node.cpu_s, time.perf_counter()
        told = max(round(seconds * EVENTS_PER_S), 1)
        uvloop.run(teller.tell(told, str(clients)))
        spent_s, took_s = node.cpu_s - cpu_s, time.perf_counter() - began
        time.sleep(LATE_S)
        reports = [followers.end() for followers in crowd]
    late_ms = [late for report in reports for late in report.late_ms]
    return Step(
        clients=clients,
        streams=sum(report.streams for report in reports),
        late_ms=late_ms,
        lost=max(told * clients - len(late_ms), 0),
        cpu_micros=spent_s * MICROS / (told * clients),
        cores=spent_s / took_s,
        memory=memory,
    )


class _Followers:
    """One process of them."""

    def __init__(self, order: StreamOrder, cores: set[int]) -> None:
        self._report = Path(order.report)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "scripts.bench_figures.stream_clients"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        os.sched_setaffinity(self._process.pid, cores)
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(order) + b"\n")
        self._process.stdin.flush()

    def __enter__(self) -> _Followers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._process:  # which closes the pipes, and waits
            self._process.kill()

    def wait_until_open(self) -> None:
        """Wait until every client has been answered.

        Raises:
            StoreError: it failed.
        """
        assert self._process.stdout is not None
        if self._process.stdout.readline() != b"open\n":
            raise StoreError("a process of followers failed")

    def end(self) -> StreamReport:
        """Return what they saw.

        Raises:
            StoreError: it failed.
        """
        assert self._process.stdin is not None
        self._process.stdin.close()
        if self._process.wait(END_TIMEOUT_S):
            raise StoreError("a process of followers failed")
        return msgspec.json.decode(self._report.read_bytes(), type=StreamReport)
