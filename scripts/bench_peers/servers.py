"""Databases and the chain that peers need: on the loopback, with data of their own, stopped after.

Ports are ephemeral. Everything lies in a folder that the caller removes, but PostgreSQL's data.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from scripts.bench_figures.node_process import ROOT
from scripts.bench_figures.usage import read_tree_cpu_s

VENV: Final = ROOT / "build" / "queues"
PYTHON: Final = VENV / "bin" / "python"
ANVIL: Final = VENV / "node_modules" / "@foundry-rs" / "anvil-linux-amd64" / "bin" / "anvil"
POSTGRES: Final = Path("/usr/lib/postgresql")
POSTGRES_USER: Final = "postgres"
ON_DISK: Final = Path("/var/tmp")  # noqa: S108 - each folder in it has a name of its own
"""Where everybody may write, and not into memory."""
START_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 20.0
LOOK_S: Final = 0.05


class PeerError(Exception):
    """A peer is not installed, does not start, or ended too early."""


class Server:
    """A process and all that it starts."""

    def __init__(self, process: subprocess.Popen[Any]) -> None:
        self._process = process

    @property
    def cpu_s(self) -> float:
        """Processor time of all of them so far."""
        return read_tree_cpu_s(self._process.pid)

    @property
    def has_ended(self) -> bool:
        """Whether it runs no more."""
        return self._process.poll() is not None


@contextmanager
def run_server(
    command: Sequence[str | Path],
    log: Path,
    *,
    environment: Mapping[str, str] | None = None,
    user: str | None = None,
) -> Iterator[Server]:
    """Run a program, and end it with the context: SIGTERM, later SIGKILL."""
    with log.open("ab") as said:
        process = subprocess.Popen(
            list(map(str, command)),
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            start_new_session=True,
            user=user,
            group=user,
            extra_groups=None if user is None else (),
        )
    try:
        yield Server(process)
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def find_port() -> int:
    """A port of the loopback that is free now."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def wait_for_port(server: Server, port: int, log: Path) -> None:
    """Until somebody listens there.

    Raises:
        PeerError: the server ended, or does not listen in time.
    """
    wait_until(server, log, lambda: _answers(port))


def wait_until(server: Server, log: Path, is_so: Callable[[], bool]) -> None:
    """Until it is so.

    Raises:
        PeerError: the server ended, or it takes too long.
    """
    until_s = time.monotonic() + START_TIMEOUT_S
    while not is_so():
        if server.has_ended or time.monotonic() > until_s:
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
            raise PeerError(f"{log.stem} does not start: {lines[-1] if lines else 'no reason'}")
        time.sleep(LOOK_S)


def _answers(port: int) -> bool:
    with closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def run_redis(folder: Path, fsync: str) -> Iterator[tuple[Server, str]]:
    """Debian's Redis with its append-only file; yields it and its address.

    Args:
        folder: for its data.
        fsync: always, or everysec.

    Raises:
        PeerError: it is not installed, or does not start.
    """
    program, port = shutil.which("redis-server"), find_port()
    if program is None:
        raise PeerError("redis-server is missing: apt-get install redis-server")
    data, log = folder / f"redis-{fsync}", folder / f"redis-{fsync}.log"
    data.mkdir(parents=True)
    options = ["--bind", "127.0.0.1", "--port", str(port), "--dir", str(data), "--save", ""]
    durable = ["--appendonly", "yes", "--appendfsync", fsync]
    with run_server([program, *options, *durable], log) as server:
        wait_for_port(server, port, log)
        yield server, f"redis://127.0.0.1:{port}/0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Postgres:
    """A server of Debian's PostgreSQL that was made and does not run."""

    command: Sequence[str]
    ready: Sequence[str]
    """Ends with 0 once it answers."""
    address: str
    user: str | None
    """Who runs it: it refuses to be root's, and Debian's package brings a user for it."""
    data: Path
    """Its folder."""
    log: Path

    def remove(self) -> None:
        """Remove its data."""
        shutil.rmtree(self.data)


def create_postgres(folder: Path) -> Postgres:
    """Make a server with Debian's own settings, for a port of the loopback.

    Its log is in `folder`. Its data are not: root must hand them to a user who cannot reach what
    lies below root's home. Whoever calls this removes them.

    Raises:
        PeerError: it is not installed.
    """
    programs = sorted(POSTGRES.glob("*/bin"), key=lambda path: float(path.parent.name))
    if not programs:
        raise PeerError("PostgreSQL is missing: apt-get install postgresql")
    data = Path(tempfile.mkdtemp(prefix="aitbc-postgres-", dir=ON_DISK))
    log, port = folder / "postgres.log", find_port()
    user = POSTGRES_USER if os.geteuid() == 0 else None
    if user is not None:
        shutil.chown(data, user, user)
    options = ["-U", "bench", "--auth=trust", "-E", "UTF8"]
    create: list[str | Path] = [programs[-1] / "initdb", "-D", data, *options]
    with run_server(create, log, user=user) as server:
        wait_until_ended(server)
    address = f"postgresql://bench@127.0.0.1:{port}/postgres"
    listen = ["-h", "127.0.0.1", "-p", str(port), "-k", data]
    return Postgres(
        command=[str(part) for part in (programs[-1] / "postgres", "-D", data, *listen)],
        ready=[str(programs[-1] / "pg_isready"), "-q", "-d", address],
        address=address,
        user=user,
        data=data,
        log=log,
    )


@contextmanager
def run_postgres(folder: Path) -> Iterator[tuple[Server, str]]:
    """Debian's PostgreSQL with its own settings; yields it and its address.

    Raises:
        PeerError: it is not installed, or does not start.
    """
    made = create_postgres(folder)
    try:
        with run_server(made.command, made.log, user=made.user) as server:
            ready = partial(subprocess.run, made.ready, check=False)
            wait_until(server, made.log, lambda: not ready().returncode)
            yield server, made.address
    finally:
        made.remove()


def wait_until_ended(server: Server) -> None:
    """For a program that does one thing."""
    until_s = time.monotonic() + START_TIMEOUT_S
    while not server.has_ended and time.monotonic() < until_s:
        time.sleep(LOOK_S)


@contextmanager
def run_anvil(folder: Path, accounts: int) -> Iterator[tuple[Server, int]]:
    """The chain anvil, a block a second, with accounts of its own; yields it and its port.

    Raises:
        PeerError: it is not installed, or does not start.
    """
    if not ANVIL.exists():
        raise PeerError("anvil is missing: make bench-peers installs it")
    log, port = folder / "anvil.log", find_port()
    options = ["--port", str(port), "--block-time", "1", "--accounts", str(accounts)]
    roomy = ["--gas-limit", str(10**10), "--quiet"]
    with run_server([ANVIL, *options, *roomy], log) as server:
        wait_for_port(server, port, log)
        yield server, port
