"""Durable life cycles of jobs through a real node, and how soon a receipt is final."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median

import msgspec
import uvloop

from node.clock import read_clock_ms
from node.datadir import DataDirectory
from scripts.bench_figures.connection import Connection
from scripts.bench_figures.load import LoadOrder, open_party, run_load
from scripts.bench_figures.measure import MICROS, Plan, Row, measure_rates, percentile
from scripts.bench_figures.node_process import (
    RunningNode,
    make_api_key,
    make_data_directory,
    run_node,
)
from scripts.bench_figures.references import Appender, Signatures
from scripts.local_network import LocalNetwork

CONNECTIONS = (1, 32, 256)
GOAL_CONNECTIONS = 32
GOAL_PER_CORE = 6_000
GOAL_CPU_MICROS = MICROS // GOAL_PER_CORE
THREADS = {
    "main": "event loop",
    "writer node.db": "writer of node.db",
    "sealer": "sealer",
    "writer ledger.d": "writer of ledger.db",
}
"""By the names under which the system knows them."""
NETWORK_SIZES = (4, 7)
WARM_UP_S = 0.5
FINAL_TIMEOUT_S = 30
POLL_S = 0.001
REFERENCE_SLICE_S = 0.3


class _Health(msgspec.Struct):
    pending_transactions: int


@dataclass(kw_only=True)
class _Turns:
    """What the turns of one number of connections gave."""

    rates: list[float] = field(default_factory=list)
    cpu_micros: list[float] = field(default_factory=list)
    thread_micros: dict[str, list[float]] = field(
        default_factory=lambda: {name: [] for name in THREADS}
    )
    cycle_ms: list[float] = field(default_factory=list)
    complete_ms: list[float] = field(default_factory=list)


def measure_jobs(plan: Plan) -> Iterator[Row]:
    """Submit, claim, complete with a signature: three requests, each durable when answered.

    The server's processor time includes sealing the receipts into final blocks.
    """
    data = make_data_directory(plan.folder / "jobs", created_ms=read_clock_ms())
    key = make_api_key(data, "admin")
    turns = {connections: _Turns() for connections in CONNECTIONS}
    appends, signings, signature_micros = [], [], []
    # One key stands for all clients here.
    with run_node(data, "--max-pending-per-key", str(2 * max(CONNECTIONS))) as node:
        _take_turn(_Turns(), node, data, key, connections=max(CONNECTIONS), seconds=WARM_UP_S)
        for _ in range(plan.rounds):
            append, signing, micros = _measure_references(data.root)
            appends.append(append)
            signings.append(signing)
            signature_micros.append(micros)
            for connections, turn in turns.items():
                _take_turn(turn, node, data, key, connections=connections, seconds=plan.load_s)
    yield from _list_rows(turns, median(appends), median(signings))
    yield from _list_cpu_rows(turns[GOAL_CONNECTIONS], median(signature_micros))


def _list_rows(turns: dict[int, _Turns], append: float, signing: float) -> Iterator[Row]:
    for connections, turn in turns.items():
        cpu_micros = median(turn.cpu_micros)
        yield Row(
            figure=f"job life cycles, {connections} at a time",
            value=median(turn.rates),
            unit="/s",
            reference="fdatasync of 4 kB",
            reference_value=append,
            goal=f">= {GOAL_PER_CORE:,}/s a core",
            cpu_micros=cpu_micros,
        )
        yield Row(
            figure=f"life cycle, {connections} at a time",
            value=median(turn.cycle_ms),
            unit="ms",
            p99=percentile(turn.cycle_ms, 0.99),
            reference="fdatasync of 4 kB",
            reference_value=1000 / append,
        )
        yield Row(
            figure=f"complete, {connections} at a time",
            value=median(turn.complete_ms),
            unit="ms",
            p99=percentile(turn.complete_ms, 0.99),
            reference="fdatasync of 4 kB",
            reference_value=1000 / append,
            goal="p50 <= 2 ms" if connections == GOAL_CONNECTIONS else "",
        )
    yield Row(
        figure="job life cycles per server core",
        value=MICROS / min(median(turn.cpu_micros) for turn in turns.values()),
        unit="/s",
        reference="libsodium sign and verify",
        reference_value=signing,
        goal=f">= {GOAL_PER_CORE:,}/s",
        cpu_micros=min(median(turn.cpu_micros) for turn in turns.values()),
    )


def _list_cpu_rows(turn: _Turns, signature_micros: float) -> Iterator[Row]:
    """Where the processor time of a life cycle goes."""
    yield Row(
        figure=f"CPU of a life cycle, {GOAL_CONNECTIONS} at a time",
        value=median(turn.cpu_micros),
        unit="µs",
        reference="libsodium: sign once, verify once",
        reference_value=signature_micros,
        goal=f"<= {GOAL_CPU_MICROS} µs",
    )
    for name, micros in turn.thread_micros.items():
        yield Row(
            figure=f"  of it {THREADS[name]}",
            value=median(micros),
            unit="µs",
            reference="the whole of it",
            reference_value=median(turn.cpu_micros),
        )


def _measure_references(folder: Path) -> tuple[float, float, float]:
    """Return durable appends per second, signatures with their verification, and the CPU of one."""
    with Appender(folder / "appended") as appender:
        works = {"append": appender.append, "sign": Signatures().sign_and_verify}
        rates = measure_rates(works, rounds=1, slice_s=REFERENCE_SLICE_S)
    return rates["append"].per_second, rates["sign"].per_second, rates["sign"].cpu_micros


def _take_turn(
    turn: _Turns,
    node: RunningNode,
    data: DataDirectory,
    key: str,
    *,
    connections: int,
    seconds: float,
) -> None:
    cpu_s, threads_s = node.cpu_s, node.threads_s
    order = LoadOrder(
        port=node.port, key=key, data=str(data.root), connections=connections, seconds=seconds
    )
    report = run_load(order)
    uvloop.run(_wait_until_sealed(node.port))
    count = len(report.complete_ms)
    turn.rates.append(count / report.seconds)
    turn.cpu_micros.append((node.cpu_s - cpu_s) * MICROS / count)
    for name, now_s in node.threads_s.items():
        if name in turn.thread_micros:
            micros = (now_s - threads_s.get(name, 0)) * MICROS / count
            turn.thread_micros[name].append(micros)
    turn.cycle_ms += report.cycle_ms
    turn.complete_ms += report.complete_ms


async def _wait_until_sealed(port: int) -> None:
    connection = await Connection.open(port, {})

    async def is_sealed() -> bool:
        answer = await connection.expect(200, "GET", "/health")
        return not msgspec.json.decode(answer.body, type=_Health).pending_transactions

    await _wait_until(is_sealed)
    await connection.close()


async def _wait_until(is_so: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(FINAL_TIMEOUT_S):
        while True:
            if await is_so():
                return
            await asyncio.sleep(POLL_S)


def measure_finality(plan: Plan) -> Iterator[Row]:
    """One job after another: from the acknowledged completion until the receipt is final."""
    data = make_data_directory(plan.folder / "finality", created_ms=read_clock_ms())
    key = make_api_key(data, "admin")
    with run_node(data) as node:
        waits_ms = uvloop.run(_time_finals(node.port, key, data, plan.finals))
    append, _, _ = _measure_references(data.root)
    yield Row(
        figure="completed until final, 1 authority",
        value=median(waits_ms),
        unit="ms",
        p99=percentile(waits_ms, 0.99),
        reference="fdatasync of 4 kB",
        reference_value=1000 / append,
    )
    alone_ms = median(waits_ms)
    for authorities in NETWORK_SIZES:
        yield _measure_network_finality(plan, authorities, alone_ms)


def _measure_network_finality(plan: Plan, authorities: int, alone_ms: float) -> Row:
    """The same with several authorities as processes, through the first of them."""
    network = LocalNetwork(
        plan.folder / f"network-{authorities}", authorities=authorities, followers=0
    )
    with network.run():
        node = network.nodes["authority-1"]
        port = int(node.url.rsplit(":", 1)[1])
        data = DataDirectory(Path(node.data))
        waits_ms = uvloop.run(_time_finals(port, node.admin_key, data, plan.finals))
    return Row(
        figure=f"completed until final, {authorities} authorities",
        value=median(waits_ms),
        unit="ms",
        p99=percentile(waits_ms, 0.99),
        reference="1 authority",
        reference_value=alone_ms,
    )


async def _time_finals(port: int, key: str, data: DataDirectory, count: int) -> list[float]:
    party = await open_party(port, key, data, 0)
    waits_ms = []
    for _ in range(count):
        receipt_id, _ = await party.run_job()
        began = time.perf_counter()
        await _wait_until(partial(party.is_final, receipt_id))
        waits_ms.append((time.perf_counter() - began) * 1000)
    await party.close()
    return waits_ms
