"""Clients that follow jobs' events, in a process of its own, and how old each event is.

    python -m scripts.bench_figures.stream_clients

It reads its order from a line of standard input, says `open` once every client has its stream or
was refused, and writes its report when standard input ends. The text of a job says when it was
told, by the clock that all processes of a machine share. Reading is bare: who measures must cost
little beside what is measured.
"""

from __future__ import annotations

import asyncio
import re
import resource
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import msgspec
import uvloop

CONNECTING = 200
"""Connections that are opened at the same time."""
OPEN_TIMEOUT_S = 240.0


class StreamOrder(msgspec.Struct, frozen=True, kw_only=True):
    """Whom to follow."""

    port: int
    clients: int
    address: str
    """Of the loopback, where they come from."""
    paths: Sequence[str]
    """Of the events of jobs, in turn."""
    mark: str
    """What stands before the time in text that counts; who comes is given older text, too."""
    keys: Sequence[str]
    """API keys, in turn."""
    report: str
    """Where the report goes."""


class StreamReport(msgspec.Struct, kw_only=True):
    """What the clients saw."""

    streams: int = 0
    """Open at the end."""
    late_ms: list[float] = []
    """How old each event was when it came."""


class _Client(asyncio.Protocol):
    def __init__(self, order: StreamOrder, number: int, report: StreamReport) -> None:
        self._path = order.paths[number % len(order.paths)]
        self._key = order.keys[number % len(order.keys)]
        self._told = re.compile(rb"<%s ([0-9.]+)>" % order.mark.encode())
        self._report = report
        self._is_good = False
        self.answered = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are none of asyncio's classes.
        cast(asyncio.WriteTransport, transport).write(
            f"GET {self._path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n"
            f"X-Api-Key: {self._key}\r\n\r\n".encode()
        )

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        if not self.answered.done():
            self.answered.set_result(None)
            self._is_good = data.startswith(b"HTTP/1.1 200 ")
            self._report.streams += self._is_good
        for match in self._told.finditer(data):
            self._report.late_ms.append((now - float(match[1])) * 1000)

    def connection_lost(self, _error: Exception | None) -> None:
        self._report.streams -= self._is_good
        if not self.answered.done():
            self.answered.set_result(None)


async def _open(order: StreamOrder, report: StreamReport) -> None:
    loop, places = asyncio.get_running_loop(), asyncio.Semaphore(CONNECTING)

    async def connect(number: int) -> None:
        async with places:
            _, client = await loop.create_connection(
                lambda: _Client(order, number, report),
                "127.0.0.1",
                order.port,
                local_addr=(order.address, 0),
            )
            await client.answered

    async with asyncio.timeout(OPEN_TIMEOUT_S):
        await asyncio.gather(*map(connect, range(order.clients)))


async def _run(order: StreamOrder) -> StreamReport:
    report, ended, loop = StreamReport(), asyncio.Event(), asyncio.get_running_loop()

    def wait_for_end() -> None:
        sys.stdin.buffer.read()
        loop.call_soon_threadsafe(ended.set)

    await _open(order, report)
    print("open", flush=True)
    threading.Thread(target=wait_for_end, daemon=True).start()
    await ended.wait()
    return msgspec.structs.replace(report)


def main() -> None:
    """Read an order, carry it out, write the report."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    order = msgspec.json.decode(sys.stdin.buffer.readline(), type=StreamOrder)
    Path(order.report).write_bytes(msgspec.json.encode(uvloop.run(_run(order))))


if __name__ == "__main__":
    main()
