"""Hostile clients, many at once: what they cost a node in memory, and whether it still answers.

Every attack must be answered as documented; anything else ends the benchmark.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

import uvloop

from api.bodies import MAX_RESULT_BYTES
from api.requests import MAX_BODIES_BYTES, MAX_BODY_BYTES
from node.clock import read_clock_ms
from scripts.bench_figures.connection import Connection
from scripts.bench_figures.measure import MIB, Plan, Row, percentile, read_memory
from scripts.bench_figures.node_process import (
    make_api_key,
    make_data_directory,
    run_node,
)

HELD_S = 1.0
"""How long unfinished bodies are held."""
CHUNK = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
MAX_CHUNKS = 400
NESTED = 10_000
HOSTILE_JSON = (
    b'{"prompt":' + b"[" * NESTED + b"]" * NESTED + b"}",
    b'{"prompt":"p","params":{"max_tokens":36893488147419103232}}',
    b'{"prompt":"p","params":{"temperature":1e999}}',
    rb'{"prompt":"\ud800"}',
    rb'{"prompt":"\u0000"}',
    b'{"prompt":"\xff"}',
    b'{"prompt":"p","prompt":"q"}',
)
PEAK_RESET = "5"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The node under attack."""

    port: int
    key: str

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect."""
        return await asyncio.open_connection("127.0.0.1", self.port)

    def head(self, *lines: str) -> bytes:
        """Return the head of a submission."""
        host = f"Host: 127.0.0.1:{self.port}"
        fixed = ("POST /v1/jobs HTTP/1.1", host, "Content-Type: application/json")
        return "\r\n".join((*fixed, f"X-Api-Key: {self.key}", *lines, "", "")).encode()


Attack = Callable[[Target], Awaitable[None]]


async def _send_endlessly(target: Target) -> None:
    reader, writer = await target.open()
    writer.write(target.head("Transfer-Encoding: chunked"))
    status = asyncio.ensure_future(_read_status(reader))
    with suppress(ConnectionError):  # in the end the node hangs up
        for _ in range(MAX_CHUNKS):
            writer.write(CHUNK)
            await writer.drain()
    _expect(await status, {413})
    await _close(writer)


async def _hold_body(target: Target) -> None:
    """Send all but the last byte of a body; the node may refuse it for want of room."""
    reader, writer = await target.open()
    writer.write(target.head(f"Content-Length: {MAX_BODY_BYTES}") + b"x" * (MAX_BODY_BYTES - 1))
    with suppress(TimeoutError, ConnectionError):
        async with asyncio.timeout(HELD_S):
            _expect(await _read_status(reader), {503})
    await _close(writer)


async def _send_long_result(target: Target) -> None:
    body = json.dumps({"miner_id": "m", "result": "x" * (MAX_RESULT_BYTES + MIB)}).encode()
    await _post(target, "/v1/jobs/job_00000000000000000000000000/complete", body, {413, 503})


async def _send_hostile_json(target: Target) -> None:
    for body in HOSTILE_JSON:
        await _post(target, "/v1/jobs", body, {400})


ATTACKS: Mapping[str, tuple[Attack, float]] = {
    "endless chunked bodies": (_send_endlessly, 1),
    "hostile JSON": (_send_hostile_json, 1),
    "results of 5 MiB": (_send_long_result, 1),
    # Together more than the room for all bodies. Last, as the heap keeps what it had.
    "unfinished bodies of 1 MiB": (_hold_body, 1.2 * MAX_BODIES_BYTES / MAX_BODY_BYTES / 64),
}
"""What each does, and how many times as many attackers as the plan has."""


def measure_abuse(plan: Plan) -> Iterator[Row]:
    """The most memory that a node takes under each attack, and its answers meanwhile."""
    data = make_data_directory(plan.folder / "abuse", created_ms=read_clock_ms())
    key = make_api_key(data, "admin")
    times_ms: list[float] = []
    with run_node(data) as node:
        target = Target(port=node.port, key=key)
        quiet_ms = uvloop.run(_probe(node.port, 0, plan.visits))
        for name, (attack, times) in ATTACKS.items():
            count = round(plan.attackers * times)
            before = read_memory(node.pid, "VmRSS")
            Path(f"/proc/{node.pid}/clear_refs").write_text(PEAK_RESET)
            times_ms += uvloop.run(_attack(target, attack, count))
            yield Row(
                figure=f"most memory under {count} x {name}",
                value=read_memory(node.pid, "VmHWM") / MIB,
                unit="MiB",
                reference="before",
                reference_value=before / MIB,
            )
    yield Row(
        figure="GET /health while attacked",
        value=median(times_ms),
        unit="ms",
        p99=percentile(times_ms, 0.99),
        reference="quiet",
        reference_value=median(quiet_ms),
    )


async def _attack(target: Target, attack: Attack, count: int) -> list[float]:
    """Run the attackers, and return how long /health took meanwhile, in ms."""
    attackers = asyncio.gather(*(attack(target) for _ in range(count)))
    probe = asyncio.ensure_future(_probe_until(target.port, attackers))
    await attackers
    return await probe


async def _probe_until(port: int, end: asyncio.Future[list[None]]) -> list[float]:
    times_ms: list[float] = []
    while not times_ms or not end.done():
        times_ms += await _probe(port, 0.01, 1)
    return times_ms


async def _probe(port: int, pause_s: float, count: int) -> list[float]:
    times_ms = []
    for _ in range(count):
        began = perf_counter()
        connection = await Connection.open(port, {})
        await connection.expect(200, "GET", "/health")
        await connection.close()
        times_ms.append((perf_counter() - began) * 1000)
        await asyncio.sleep(pause_s)
    return times_ms


async def _post(target: Target, path: str, body: bytes, statuses: set[int]) -> None:
    reader, writer = await target.open()
    head = target.head(f"Content-Length: {len(body)}").replace(b"/v1/jobs", path.encode(), 1)
    writer.write(head + body)
    _expect(await _read_status(reader), statuses)
    await _close(writer)


async def _read_status(reader: asyncio.StreamReader) -> int:
    line = await reader.readline()
    return int(line.split()[1])


def _expect(status: int, statuses: set[int]) -> None:
    if status not in statuses:
        raise RuntimeError(f"an attack was answered {status}, expected one of {sorted(statuses)}")


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()
