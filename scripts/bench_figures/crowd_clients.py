"""A crowd of clients that follow events, in a process of its own.

    python -m scripts.bench_figures.crowd_clients < order.json > report.json

Each opens one connection and asks for a stream. Who is told 503 asks again when it was told to, and
twice as late each time; who is told 204 stays on its connection, as a browser does. Clients have
addresses of their own on the loopback, four to each.
"""

from __future__ import annotations

import asyncio
import random
import resource
import sys
from collections import Counter
from collections.abc import Sequence
from time import perf_counter

import msgspec
import uvloop

ARRIVAL_S = 2.0
"""All come within this time."""
PER_ADDRESS = 4
MAX_PAUSE_S = 30.0
HEAD_TIMEOUT_S = 60.0
OK, NO_CONTENT, UNAVAILABLE = 200, 204, 503


class CrowdOrder(msgspec.Struct, frozen=True, kw_only=True):
    """Whom to ask for what."""

    port: int
    clients: int
    seconds: float
    first: int
    """Number of the first client, of all processes."""
    path: str
    keys: Sequence[str] = ()
    """API keys, in turn; none asks without."""


class CrowdReport(msgspec.Struct, kw_only=True):
    """What they saw."""

    streams: int = 0
    """Open at the end."""
    messages: int = 0
    to_poll: int = 0
    """Answers 204."""
    come_later: int = 0
    """Answers 503 with Retry-After."""
    unheard: int = 0
    """Connections that were closed without an answer."""
    other: dict[str, int] = {}
    """Answers that no client should get."""
    head_ms: list[float] = []
    """From asking to the head of a good answer."""


class _Client:
    def __init__(self, order: CrowdOrder, number: int, report: CrowdReport) -> None:
        self._order = order
        self._report = report
        place = (order.first + number) // PER_ADDRESS
        self._address = f"127.1.{place // 250}.{place % 250 + 1}"
        self._random = random.Random(order.first + number)  # noqa: S311 - no secret
        key = f"X-Api-Key: {order.keys[number % len(order.keys)]}\r\n" if order.keys else ""
        self._request = (
            f"GET {order.path} HTTP/1.1\r\nHost: 127.0.0.1:{order.port}\r\n"
            f"Accept: text/event-stream\r\n{key}\r\n"
        ).encode()

    async def run(self) -> None:
        """Ask until there is a stream, and read it for ever."""
        await asyncio.sleep(self._random.uniform(0, ARRIVAL_S))
        refusals = 0
        while True:
            try:
                async with asyncio.timeout(HEAD_TIMEOUT_S):
                    reader, writer = await asyncio.open_connection(
                        "127.0.0.1", self._order.port, local_addr=(self._address, 0)
                    )
                try:
                    pause_s = await self._ask(reader, writer)
                finally:
                    writer.transport.abort()
            except (OSError, EOFError, TimeoutError):
                self._report.unheard += 1
                pause_s = 2.0
            pause_s *= 2**refusals * self._random.uniform(1, 1.5)
            refusals += 1
            await asyncio.sleep(min(pause_s, MAX_PAUSE_S))

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> float:
        """Ask once; returns after how long to ask again, once there is nothing more to read."""
        began = perf_counter()
        writer.write(self._request)
        async with asyncio.timeout(HEAD_TIMEOUT_S):
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
        status = int(head[9:12])
        if status == OK:
            self._report.head_ms.append((perf_counter() - began) * 1000)
            self._report.streams += 1
            try:
                while data := await reader.read(65_536):
                    self._report.messages += data.count(b"\n\n")
            finally:
                self._report.streams -= 1
            return 1.0
        if status == UNAVAILABLE and b"\r\nretry-after: " in head:
            self._report.come_later += 1
            return float(head.partition(b"\r\nretry-after: ")[2].partition(b"\r\n")[0])
        if status == NO_CONTENT:
            self._report.to_poll += 1
        else:
            self._report.other[str(status)] = self._report.other.get(str(status), 0) + 1
        await reader.read()  # until somebody else needs the place
        return MAX_PAUSE_S


async def _run(order: CrowdOrder) -> CrowdReport:
    report = CrowdReport()
    clients = [_Client(order, number, report) for number in range(order.clients)]
    tasks = [asyncio.create_task(client.run()) for client in clients]
    await asyncio.sleep(order.seconds)
    seen = msgspec.structs.replace(report)
    for task in tasks:
        task.cancel()
    failures = Counter(
        repr(result)
        for result in await asyncio.gather(*tasks, return_exceptions=True)
        if isinstance(result, Exception)
    )
    seen.other = seen.other | failures
    return seen


def main() -> None:
    """Read an order, carry it out, write the report."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=CrowdOrder)
    sys.stdout.buffer.write(msgspec.json.encode(uvloop.run(_run(order))))


if __name__ == "__main__":
    main()
