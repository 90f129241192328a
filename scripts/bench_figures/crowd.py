"""Thousands of clients that follow events, others that work, and a follower that syncs, at once.

Half of the crowd opens the explorer's home page, half follows a job that nobody runs. Nobody is to
wait for them: the streams that a node holds are bounded, and all others are told to poll or when to
come again.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import msgspec
import uvloop

from ledger.errors import StoreError
from miner.wire import Health, Job
from node.clock import read_clock_ms
from node.datadir import DataDirectory
from node.local.children import child, read_address
from scripts.bench_figures.connection import Connection
from scripts.bench_figures.crowd_clients import CrowdOrder, CrowdReport
from scripts.bench_figures.load import MODEL, LoadOrder, LoadReport, run_load
from scripts.bench_figures.measure import MIB, Plan, Row, percentile, read_memory
from scripts.bench_figures.node_process import (
    ROOT,
    RunningNode,
    make_api_key,
    make_data_directory,
    run_node,
)
from scripts.generate import INTERVAL_MS, generate

BUSY = 256
GATHERING_S = 3.0
"""Until the work begins, all of a large crowd have come."""
SYNC_TIMEOUT_S = 300.0
KEYS = 8
"""Whose jobs the crowd follows."""


def measure_crowd(plan: Plan) -> Iterator[Row]:
    """The work of a node with and without a crowd, and what became of the crowd."""
    created_ms = read_clock_ms() - plan.synced * INTERVAL_MS
    data = make_data_directory(plan.folder / "crowd", created_ms=created_ms)
    generate(data, receipts=plan.synced)
    admin, clients = (
        make_api_key(data, "admin"),
        [make_api_key(data, "client") for _ in range(KEYS)],
    )
    with run_node(data, "--max-pending-per-key", "1000000") as node:
        order = LoadOrder(
            port=node.port, key=admin, data=str(data.root), connections=BUSY, seconds=plan.load_s
        )
        alone, quiet_ms = run_load(order), uvloop.run(_probe(node.port, plan.visits))
        before = read_memory(node.pid, "VmRSS")
        crowd = _Crowd(node, plan, clients, job=uvloop.run(_submit(node.port, clients[0])))
        time.sleep(min(GATHERING_S, plan.crowd_s))
        follower = _Follower(node, data, plan.folder / "crowd-follower")
        among = run_load(order)
        probed_ms = uvloop.run(_probe(node.port, plan.visits))
        synced_s = follower.wait()
        after = read_memory(node.pid, "VmHWM")
        reports = crowd.wait()
    yield from _list_rows(plan, alone, among, reports)
    yield Row(
        figure="GET /health on a new connection, in a crowd",
        value=median(probed_ms),
        unit="ms",
        p99=percentile(probed_ms, 0.99),
        reference="quiet",
        reference_value=median(quiet_ms),
    )
    yield Row(
        figure="receipts synced by a follower, in a crowd", value=plan.synced / synced_s, unit="/s"
    )
    yield Row(
        figure="most memory of a node in a crowd",
        value=after / MIB,
        unit="MiB",
        reference="before",
        reference_value=before / MIB,
    )


def _list_rows(
    plan: Plan, alone: LoadReport, among: LoadReport, reports: list[CrowdReport]
) -> Iterator[Row]:
    yield Row(
        figure=f"job life cycles, {BUSY} at a time, in a crowd",
        value=len(among.cycle_ms) / among.seconds,
        unit="/s",
        reference="without it",
        reference_value=len(alone.cycle_ms) / alone.seconds,
    )
    yield Row(
        figure="complete, in a crowd",
        value=median(among.complete_ms),
        unit="ms",
        p99=percentile(among.complete_ms, 0.99),
        reference="without it",
        reference_value=median(alone.complete_ms),
    )
    heads_ms = [ms for report in reports for ms in report.head_ms]
    yield Row(
        figure=f"event streams open in a crowd of {plan.crowd:,}",
        value=sum(report.streams for report in reports),
        unit="",
        reference="answers 204, 503, none",
        reference_value=sum(r.to_poll + r.come_later + r.unheard for r in reports),
    )
    yield Row(
        figure="until a stream begins",
        value=median(heads_ms),
        unit="ms",
        p99=percentile(heads_ms, 0.99),
    )


class _Crowd:
    """Two processes of clients."""

    def __init__(self, node: RunningNode, plan: Plan, keys: list[str], *, job: str) -> None:
        half = plan.crowd // 2
        seconds = GATHERING_S + plan.load_s + plan.crowd_s
        # Who follows the job would be refused at once if all came with one key.
        orders = [
            CrowdOrder(
                port=node.port, clients=half, seconds=seconds, first=0, path="/_f/home/stream"
            ),
            CrowdOrder(
                port=node.port,
                clients=half,
                seconds=seconds,
                first=half,
                path=f"/v1/jobs/{job}/events",
                keys=keys,
            ),
        ]
        self._reports: list[CrowdReport] = []
        self._threads = [
            threading.Thread(target=self._run, args=(order,), daemon=True) for order in orders
        ]
        for thread in self._threads:
            thread.start()

    def _run(self, order: CrowdOrder) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "scripts.bench_figures.crowd_clients"],
            cwd=ROOT,
            input=msgspec.json.encode(order),
            stdout=subprocess.PIPE,
            check=True,
        )
        self._reports.append(msgspec.json.decode(done.stdout, type=CrowdReport))

    def wait(self) -> list[CrowdReport]:
        """Return what they saw.

        Raises:
            StoreError: somebody got an answer that is none of the documented ones.
        """
        for thread in self._threads:
            thread.join()
        if len(self._reports) < len(self._threads):
            raise StoreError("a process of the crowd failed")
        for report in self._reports:
            if report.other:
                raise StoreError(f"the crowd got unexpected answers: {report.other}")
        return self._reports


class _Follower:
    """A follower that starts from genesis, and how long it takes."""

    def __init__(self, node: RunningNode, data: DataDirectory, root: Path) -> None:
        self._took_s = 0.0
        self._command = [
            "run",
            *("--data", str(root), "--port", "0", "--log-file", str(root.with_suffix(".log"))),
            *("--follow", f"http://127.0.0.1:{node.port}", "--genesis", str(data.genesis)),
        ]
        self._height = uvloop.run(_read_height(node.port))
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        began = time.perf_counter()
        with child(self._command, {}) as process:
            port = int(read_address(process).rsplit(":", 1)[1])
            while uvloop.run(_read_height(port)) < self._height:
                if time.perf_counter() - began > SYNC_TIMEOUT_S:
                    return
                time.sleep(0.1)
            self._took_s = time.perf_counter() - began

    def wait(self) -> float:
        """Return the seconds from its start until it had all blocks that there were then.

        Raises:
            StoreError: it did not get there.
        """
        self._thread.join()
        if not self._took_s:
            raise StoreError("a follower does not catch up in a crowd")
        return self._took_s


async def _submit(port: int, key: str) -> str:
    connection = await Connection.open(port, {"X-Api-Key": key})
    order = msgspec.json.encode({"prompt": "wait", "model": f"{MODEL}-of-nobody"})
    answer = await connection.expect(201, "POST", "/v1/jobs", order)
    await connection.close()
    return msgspec.json.decode(answer.body, type=Job).job_id


async def _read_height(port: int) -> int:
    connection = await Connection.open(port, {})
    answer = await connection.expect(200, "GET", "/health")
    await connection.close()
    return msgspec.json.decode(answer.body, type=_Height).height


class _Height(Health, frozen=True, kw_only=True):
    height: int


async def _probe(port: int, count: int) -> list[float]:
    """Return how long a request on a connection of its own takes, in ms."""
    times_ms = []
    for _ in range(count):
        began = time.perf_counter()
        await _read_height(port)
        times_ms.append((time.perf_counter() - began) * 1000)
    return times_ms
