"""A PostgreSQL server that dies, hangs, loses its connections, and comes back."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from scripts.bench_figures.node_process import ROOT
from scripts.bench_peers.servers import create_postgres
from scripts.chaos.nodes import require

START_TIMEOUT_S = 60.0
LOOK_S = 0.05


class Database:
    """Debian's PostgreSQL as it is set up by default: what it has acknowledged is on its disk."""

    def __init__(self, folder: Path) -> None:
        """Raises PeerError: it is not installed."""
        self._made = create_postgres(folder)
        self._process: subprocess.Popen[Any] | None = None
        self._serves = threading.Event()

    @property
    def url(self) -> str:
        """Where the nodes find it."""
        return self._made.address

    def wait(self) -> None:
        """Wait until somebody would answer."""
        require(self._serves.wait(START_TIMEOUT_S), "PostgreSQL is away for too long")

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Run it until the context ends, and remove its data."""
        try:
            self.start()
            yield
        finally:
            self.resume()
            self.crash()
            self._made.remove()

    def start(self) -> None:
        """Start it, and wait until it answers. After a crash it first reads its log."""
        with self._made.log.open("ab") as said:
            self._process = subprocess.Popen(
                self._made.command,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,
                user=self._made.user,
                group=self._made.user,
                extra_groups=None if self._made.user is None else (),
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while subprocess.run(self._made.ready, check=False).returncode:
            waits = self._process.poll() is None and time.monotonic() < deadline
            require(waits, f"PostgreSQL does not start, see {self._made.log}")
            time.sleep(LOOK_S)
        self._serves.set()

    def crash(self) -> None:
        """End it as `pg_ctl -m immediate` does: at once, without a checkpoint."""
        self._serves.clear()
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGQUIT)
            process.wait(START_TIMEOUT_S)

    def pause(self) -> None:
        """Let it hang, all of its processes."""
        self._serves.clear()
        self._signal_all(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self._signal_all(signal.SIGCONT)
        if self._process is not None:
            self._serves.set()

    def cut(self) -> None:
        """End every connection."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(_CUT)

    def kill_backend(self, rng: random.Random) -> None:
        """Kill the process of one connection; the server then restarts all of them by itself."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            rows = connection.execute(_LIST).fetchall()
        if rows:
            with contextlib.suppress(ProcessLookupError):
                os.kill(rng.choice(rows)[0], signal.SIGKILL)

    def _signal_all(self, number: signal.Signals) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        # Each of its processes is a group of its own.
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        for pid in [self._process.pid, *map(int, children.read_text().split())]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


_OTHERS = b"FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
_CUT = b"SELECT pg_terminate_backend(pid) " + _OTHERS
_LIST = b"SELECT pid " + _OTHERS


@dataclass
class Crash:
    """The server is ended at once, and started again."""

    database: Database
    name: str = "database crashes"

    @property
    def targets(self) -> frozenset[str]:
        """The server."""
        return frozenset({"database"})

    async def begin(self) -> None:
        """End it."""
        await asyncio.to_thread(self.database.crash)

    async def heal(self) -> None:
        """Start it."""
        await asyncio.to_thread(self.database.start)


@dataclass
class Freeze(Crash):
    """The server hangs."""

    name: str = "database pauses"

    async def begin(self) -> None:
        """Let it hang."""
        self.database.pause()

    async def heal(self) -> None:
        """Let it go on."""
        self.database.resume()


@dataclass
class CutOff(Crash):
    """All connections are ended, and may be made anew at once."""

    name: str = "database connections cut"

    async def begin(self) -> None:
        """End them."""
        await asyncio.to_thread(self.database.cut)

    async def heal(self) -> None:
        """Nothing is to be done."""


@dataclass
class KillBackend(CutOff):
    """One process of the server is killed."""

    name: str = "database processes killed"
    rng: random.Random = field(kw_only=True)

    async def begin(self) -> None:
        """Kill it."""
        await asyncio.to_thread(self.database.kill_backend, self.rng)
