"""Keep a node and a follower busy for long, and show what becomes of what they hold.

    make soak-node                        30 minutes
    make soak-node ARGS="--minutes 2"

Clients and miners run jobs, visitors read pages, others follow events and leave, and rude ones hang
up in the middle of a request. Memory, open files, threads and the sizes of the databases are
sampled and printed, with the growth per hour over the second half; they are never judged.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import uvloop

from node.clock import read_clock_ms
from node.datadir import DataDirectory
from node.local.children import child, read_address
from scripts.bench_figures.connection import Connection
from scripts.bench_figures.load import open_party
from scripts.bench_figures.measure import MIB, describe_machine, read_cpu_s, read_memory
from scripts.bench_figures.node_process import ROOT, make_api_key, make_data_directory, run_node

PAGES = ("/", "/blocks", "/receipts", "/jobs", "/miners", "/explorer/stats", "/metrics")
STREAM = "/_f/home/stream"
STREAM_S = 20.0
"""How long somebody follows events."""
SAMPLES = 30
"""Lines of the table, over the whole run."""
HALF_REQUESTS = (
    b"GET / HT",
    b"POST /v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n\r\n{",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What a process and its directory hold at one moment."""

    at_s: float
    memory: int
    files: int
    threads: int
    databases: dict[str, int]
    """Bytes by name, each with its WAL."""


@dataclass
class Watched:
    """A process, and its samples."""

    name: str
    pid: int
    data: DataDirectory
    samples: list[Sample] = field(default_factory=list)

    def look(self, at_s: float) -> None:
        """Take a sample."""
        process = Path(f"/proc/{self.pid}")
        self.samples.append(
            Sample(
                at_s=at_s,
                memory=read_memory(self.pid, "VmRSS"),
                files=sum(1 for _ in (process / "fd").iterdir()),
                threads=sum(1 for _ in (process / "task").iterdir()),
                databases={
                    path.name: measure_database(path)
                    for path in sorted(self.data.root.glob("*.db"))
                },
            )
        )


@dataclass
class Tally:
    """What was done."""

    jobs: int = 0
    pages: int = 0
    streams: int = 0
    rude: int = 0


def measure_database(path: Path) -> int:
    """Return the bytes of a database file and its WAL."""
    wal = path.with_name(path.name + "-wal")
    return path.stat().st_size + (wal.stat().st_size if wal.exists() else 0)


class Load:
    """Those who keep a node busy."""

    def __init__(
        self, port: int, key: str, data: DataDirectory, options: argparse.Namespace
    ) -> None:
        self.tally = Tally()
        self._port = port
        self._key = key
        self._data = data
        self._clients: int = options.clients
        self._pause_s: float = options.pause
        self._random = random.Random(1)  # noqa: S311 - no secret

    async def run(self) -> None:
        """Go on until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for number in range(self._clients):
                tasks.create_task(self._work(number))
            for busy in (self._visit, self._follow, self._follow, self._hang_up):
                tasks.create_task(_repeat(busy))

    async def _work(self, number: int) -> None:
        party = await open_party(self._port, self._key, self._data, number)
        try:
            while True:
                await party.run_job()
                self.tally.jobs += 1
                await asyncio.sleep(self._pause_s)
        finally:
            await party.close()

    async def _visit(self) -> None:
        connection = await Connection.open(self._port, {"X-Api-Key": self._key})
        try:
            for page in PAGES:
                await connection.expect(200, "GET", page)
                self.tally.pages += 1
                await asyncio.sleep(self._pause_s)
        finally:
            await connection.close()

    async def _follow(self) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            writer.write(f"GET {STREAM} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
            async with asyncio.timeout(self._random.uniform(0, STREAM_S)):
                while await reader.read(65_536):
                    pass
        except TimeoutError:
            self.tally.streams += 1
        finally:
            writer.transport.abort()

    async def _hang_up(self) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            writer.write(self._random.choice(HALF_REQUESTS))
            await asyncio.sleep(self._pause_s)
            self.tally.rude += 1
        finally:
            writer.transport.abort()


async def _repeat(work: Callable[[], Awaitable[None]]) -> None:
    while True:
        await work()


async def _run(watched: Sequence[Watched], seconds: float, busy: Load) -> None:
    began = time.monotonic()

    async def watch() -> None:
        for _ in range(SAMPLES):
            await asyncio.sleep(seconds / SAMPLES)
            for process in watched:
                process.look(time.monotonic() - began)

    load = asyncio.ensure_future(busy.run())
    looks = asyncio.ensure_future(watch())
    await asyncio.wait({load, looks}, return_when=asyncio.FIRST_COMPLETED)
    if load.done():
        looks.cancel()
        load.result()
    load.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await load


def describe(process: Watched) -> Iterator[str]:
    """Yield the table of one process, and its growth."""
    names = list(process.samples[-1].databases)
    yield f"{process.name}: minute, MiB, files, threads, MiB of {', '.join(names)}"
    for sample in process.samples:
        sizes = "  ".join(f"{sample.databases.get(name, 0) / MIB:8.1f}" for name in names)
        yield (
            f"{sample.at_s / 60:6.1f}  {sample.memory / MIB:7.1f}  {sample.files:4}"
            f"  {sample.threads:4}  {sizes}"
        )
    late = process.samples[len(process.samples) // 2 :]
    for what, values in (
        ("MiB of memory", [s.memory / MIB for s in late]),
        ("files", [float(s.files) for s in late]),
        ("threads", [float(s.threads) for s in late]),
    ):
        slope = compute_slope([s.at_s for s in late], values) * 3600
        yield f"{process.name}: {slope:+.1f} {what} an hour over the second half"


def compute_slope(times: Sequence[float], values: Sequence[float]) -> float:
    """Return the slope of the straight line that fits best."""
    mid_time, mid_value = sum(times) / len(times), sum(values) / len(values)
    spread = sum((t - mid_time) ** 2 for t in times)
    covered = zip(times, values, strict=True)
    return sum((t - mid_time) * (v - mid_value) for t, v in covered) / spread if spread else 0.0


def main(arguments: list[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--clients", type=int, default=4, help="who run jobs, each one at a time")
    parser.add_argument("--pause", type=float, default=0.02, help="seconds between two requests")
    options = parser.parse_args(arguments)
    print(describe_machine())
    build = ROOT / "build"
    build.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="soak-", dir=build) as folder:
        print("\n".join(run(Path(folder), options)))
    return 0


def run(folder: Path, options: argparse.Namespace) -> list[str]:
    """Load a node and a follower; return what they held, in lines."""
    data = make_data_directory(folder / "data", created_ms=read_clock_ms())
    key = make_api_key(data, "admin")
    follower = DataDirectory(folder / "follower")
    with run_node(data) as node:
        command = ["run", "--data", str(follower.root), "--port", "0"]
        command += ["--follow", f"http://127.0.0.1:{node.port}", "--genesis", str(data.genesis)]
        with child([*command, "--log-file", str(folder / "follower.log")], {}) as process:
            read_address(process)
            watched = [Watched("node", node.pid, data), Watched("follower", process.pid, follower)]
            load = Load(node.port, key, data, options)
            uvloop.run(_run(watched, options.minutes * 60, load))
            cpu_s, tally = read_cpu_s(node.pid), load.tally
    lines = [line for found in watched for line in describe(found)]
    lines.append(
        f"{tally.jobs:,} jobs, {tally.pages:,} pages, {tally.streams:,} streams, "
        f"{tally.rude:,} half requests; {cpu_s:,.0f} s of processor time of the node"
    )
    return lines


if __name__ == "__main__":
    raise SystemExit(main())
