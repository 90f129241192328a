"""Who is measured: how each is started, and one turn of it."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from node.clock import read_clock_ms
from scripts.bench_figures.node_process import (
    ROOT,
    make_api_key,
    make_data_directory,
    run_node,
)
from scripts.bench_peers.servers import (
    PYTHON,
    PeerError,
    find_port,
    run_anvil,
    run_postgres,
    run_redis,
    run_server,
    wait_for_port,
)
from scripts.bench_peers.work import Order, Report

TURN_TIMEOUT_S: Final = 300
RECORDS: Final = 1_600
"""Of one turn."""
RUNNERS: Final = "scripts.bench_peers.runners"


class Burdened(Protocol):
    """Somebody whose processor time counts."""

    @property
    def cpu_s(self) -> float:
        """So far."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What one turn gave."""

    per_second: float
    server_micros: float
    """Processor time of one operation: of servers, databases and workers."""
    driver_micros: float
    """The same of the client, and of the miner where it is the client too."""


Take = Callable[[int, float], Turn]
"""A turn of so many connections and seconds."""


def drive(
    python: str | Path,
    module: str,
    order: Order,
    servers: Sequence[Burdened],
    *,
    environment: Mapping[str, str] | None = None,
) -> Turn:
    """Let a driver do its work, and note what the servers spent on it after its warm-up.

    Raises:
        PeerError: it failed.
    """
    process = subprocess.Popen(
        _build_command(python, module, order),
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        text=True,
    )
    watchdog = threading.Timer(TURN_TIMEOUT_S, process.kill)
    watchdog.start()
    try:
        with process:
            assert process.stdout
            begun = process.stdout.readline().strip()
            before_s = sum(server.cpu_s for server in servers)
            said = process.stdout.read()
    finally:
        watchdog.cancel()
    if begun != "begin" or process.returncode:
        raise PeerError(f"{module} failed: see what it said above")
    spent_s = sum(server.cpu_s for server in servers) - before_s
    report = Report(**json.loads(said))
    return Turn(
        per_second=report.count / report.seconds,
        server_micros=spent_s * 1e6 / report.count,
        driver_micros=report.cpu_s * 1e6 / report.count,
    )


def _build_command(python: str | Path, module: str, order: Order) -> list[str]:
    return [str(python), "-m", f"{RUNNERS}.{module}", json.dumps(dataclasses.asdict(order))]


@contextmanager
def open_node(folder: Path) -> Iterator[tuple[Take, Take]]:
    """A node; turns of whole life cycles, and turns of records alone."""
    data = make_data_directory(folder / "node", created_ms=read_clock_ms())
    key = make_api_key(data, "admin")
    with run_node(data, "--max-pending-per-key", "4096") as node:

        def take_with(module: str) -> Take:
            def take(connections: int, seconds: float) -> Turn:
                order = Order(
                    address=str(node.port),
                    connections=connections,
                    seconds=seconds,
                    records=RECORDS,
                    key=key,
                    data=str(data.root),
                )
                return drive(sys.executable, module, order, [node])

            return take

        yield take_with("node_driver"), take_with("records_driver")


@contextmanager
def open_arq(folder: Path, fsync: str) -> Iterator[Take]:
    """The queue arq on Redis."""
    with run_redis(folder, fsync) as (redis, address):

        def take(connections: int, seconds: float) -> Turn:
            order = Order(address=address, connections=connections, seconds=seconds)
            log = folder / "arq.log"
            with run_server(_build_command(PYTHON, "arq_worker", order), log) as worker:
                return drive(PYTHON, "arq_driver", order, [redis, worker])

        yield take


@contextmanager
def open_celery(folder: Path, fsync: str) -> Iterator[Take]:
    """Celery on Redis, with two worker processes."""
    with run_redis(folder, fsync) as (redis, address):
        app = f"{RUNNERS}.celery_app"
        command = [str(PYTHON), "-m", "celery", "-A", app, "worker", "--concurrency", "2"]
        quiet = ["--loglevel", "error", "--without-gossip", "--without-mingle"]
        environment = {"BENCH_REDIS": address}

        def take(connections: int, seconds: float) -> Turn:
            order = Order(address=address, connections=connections, seconds=seconds)
            log = folder / "celery.log"
            with run_server([*command, *quiet], log, environment=environment) as worker:
                servers = [redis, worker]
                return drive(PYTHON, "celery_driver", order, servers, environment=environment)

        yield take


@contextmanager
def open_procrastinate(folder: Path) -> Iterator[Take]:
    """The queue procrastinate on PostgreSQL."""
    with run_postgres(folder) as (postgres, address):

        def take(connections: int, seconds: float) -> Turn:
            order = Order(address=address, connections=connections, seconds=seconds)
            install = [str(PYTHON), "-m", f"{RUNNERS}.procrastinate_tables", address]
            subprocess.run(install, cwd=ROOT, check=True)
            log = folder / "procrastinate.log"
            with run_server(_build_command(PYTHON, "procrastinate_app", order), log) as worker:
                return drive(PYTHON, "procrastinate_driver", order, [postgres, worker])

        yield take


@contextmanager
def open_web(folder: Path) -> Iterator[Take]:
    """The same requests with FastAPI and SQLite."""
    port, log = find_port(), folder / "web.log"
    app = f"{RUNNERS}.web_app:app"
    command = [str(PYTHON), "-m", "uvicorn", app, "--port", str(port), "--log-level", "warning"]
    environment = {"BENCH_DATABASE": str(folder / "web.db")}
    with run_server([*command, "--no-access-log"], log, environment=environment) as server:
        wait_for_port(server, port, log)

        def take(connections: int, seconds: float) -> Turn:
            order = Order(address=str(port), connections=connections, seconds=seconds)
            return drive(sys.executable, "web_driver", order, [server])

        yield take


@contextmanager
def open_anvil(folder: Path) -> Iterator[Take]:
    """The chain anvil, a new chain for each turn: the accounts are as many as the connections."""

    def take(connections: int, seconds: float) -> Turn:
        with run_anvil(folder, connections) as (server, port):
            order = Order(
                address=str(port), connections=connections, seconds=seconds, records=RECORDS
            )
            return drive(sys.executable, "anvil_driver", order, [server])

    yield take
