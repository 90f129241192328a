"""Life cycles of jobs through several front-ends on one PostgreSQL, beside one node with node.db.

    make bench-frontends
    make bench-frontends ARGS="--database postgresql://aitbc@/aitbc?host=/run/postgresql"

Each turn has an authority and so many front-ends, as processes, and a schema of its own in the
database, which is dropped afterwards. Without `--database` a server of Debian's is started for the
run, with its own settings. Every front-end is loaded by a process of its own. The authority seals,
and is not loaded. On a machine with few cores the front-ends, the loads, the database and the
authority take them from each other: what it prints is a figure of that machine.
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from urllib.parse import quote

import psycopg

from node.apikeys import issue_key
from node.clock import read_clock_ms
from node.datadir import DataDirectory
from scripts.bench_figures.load import LoadOrder, LoadReport, run_load
from scripts.bench_figures.measure import MICROS, describe_machine, percentile
from scripts.bench_figures.node_process import ROOT, RunningNode, make_data_directory, run_node
from scripts.bench_peers.servers import Server, run_postgres

MAX_PENDING = ("--max-pending-per-key", "1000")
WARM_UP_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What one arrangement gave."""

    name: str
    cycles: int
    seconds: float
    cpu_micros: float
    """Of all nodes together, for each life cycle."""
    server_micros: float
    """Of the database's server, where it was started here."""
    driver_micros: float
    """Of the clients and miners."""
    complete_ms: list[float]

    def show(self) -> str:
        """Return a line of the table."""
        wait = median(self.complete_ms), percentile(self.complete_ms, 0.99)
        micros = self.cpu_micros, self.server_micros, self.driver_micros
        cells = [f"{each:>9,.0f}" for each in (self.cycles / self.seconds, *micros)]
        return " ".join([f"{self.name:<28}", *cells, *(f"{each:>9.1f}" for each in wait)])


@contextlib.contextmanager
def make_schema(database: str, name: str) -> Iterator[str]:
    """Yield the URL of an empty schema."""
    mark = "&" if "?" in database else "?"
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(f"DROP SCHEMA IF EXISTS {name} CASCADE".encode())
        connection.execute(f"CREATE SCHEMA {name}".encode())
    try:
        yield f"{database}{mark}options={quote(f'-csearch_path={name}')}"
    finally:
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute(f"DROP SCHEMA {name} CASCADE".encode())


def measure(
    name: str,
    nodes: Sequence[RunningNode],
    loaded: Sequence[RunningNode],
    server: Server | None,
    **load: object,
) -> Turn:
    """Load some of the nodes that run."""

    def run(node: RunningNode, seconds: float) -> LoadReport:
        order = LoadOrder(
            port=node.port,
            key=str(load["key"]),
            data=str(load["data"]),
            connections=int(str(load["connections"])),
            seconds=seconds,
        )
        return run_load(order)

    with ThreadPoolExecutor(len(loaded)) as pool:
        list(pool.map(lambda node: run(node, WARM_UP_S), loaded))
        cpu_s, server_s, driver_s = _read_cpu(nodes, server)
        reports = list(pool.map(lambda node: run(node, float(str(load["seconds"]))), loaded))
    cycles = sum(len(report.cycle_ms) for report in reports)
    cpu_now_s, server_now_s, driver_now_s = _read_cpu(nodes, server)
    return Turn(
        name=name,
        cycles=cycles,
        seconds=max(report.seconds for report in reports),
        cpu_micros=(cpu_now_s - cpu_s) * MICROS / cycles,
        server_micros=(server_now_s - server_s) * MICROS / cycles,
        driver_micros=(driver_now_s - driver_s) * MICROS / cycles,
        complete_ms=[each for report in reports for each in report.complete_ms],
    )


def _read_cpu(nodes: Sequence[RunningNode], server: Server | None) -> tuple[float, float, float]:
    """Return the processor time of nodes, server and loads that have ended, in seconds."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (
        sum(node.cpu_s for node in nodes),
        server.cpu_s if server else 0.0,
        ended.ru_utime + ended.ru_stime,
    )


def measure_frontends(
    folder: Path, database: str, frontends: int, server: Server | None, **load: object
) -> Turn:
    """Measure an authority with so many front-ends; with none it serves the API itself."""
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(make_schema(database, f"aitbc_bench_{frontends}"))
        data = make_data_directory(folder / f"authority-{frontends}", created_ms=read_clock_ms())
        key = issue_key(data, "admin", now_ms=read_clock_ms(), database=url)
        nodes = [stack.enter_context(run_node(data, "--database", url, *MAX_PENDING))]
        for number in range(frontends):
            front = DataDirectory(folder / f"api-{frontends}-{number}")
            front.root.parent.mkdir(exist_ok=True)
            options = (
                *("--role", "api", "--database", url, "--genesis", str(data.genesis)),
                *("--follow", f"http://127.0.0.1:{nodes[0].port}"),
                *("--coordinator-key", str(data.authority_key), *MAX_PENDING),
            )
            nodes.append(stack.enter_context(run_node(front, *options, log=folder / "api.log")))
        name = f"PostgreSQL, {frontends} front-ends" if frontends else "PostgreSQL, authority alone"
        return measure(name, nodes, nodes[1:] or nodes, server, key=key, data=data.root, **load)


def measure_file(folder: Path, **load: object) -> Turn:
    """Measure one node with node.db."""
    data = make_data_directory(folder / "alone", created_ms=read_clock_ms())
    key = issue_key(data, "admin", now_ms=read_clock_ms())
    with run_node(data, *MAX_PENDING) as node:
        return measure("node.db, one node", [node], [node], None, key=key, data=data.root, **load)


def main(arguments: list[str] | None = None) -> int:
    """Run the command. Returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--database", metavar="URL", help="a server that runs; else one is started")
    parser.add_argument("--frontends", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--connections", type=int, default=16, help="of each front-end")
    parser.add_argument("--seconds", type=float, default=5)
    options = parser.parse_args(arguments)
    load = {"connections": options.connections, "seconds": options.seconds}
    build = ROOT / "build"
    build.mkdir(exist_ok=True)
    print(describe_machine())
    print(
        f"{'':<28} {'cycles/s':>9} {'nodes µs':>9} {'server µs':>9} {'driver µs':>9}"
        f" {'p50 ms':>9} {'p99 ms':>9}"
    )
    with ExitStack() as stack:
        folder = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="frontends-", dir=build))
        )
        print(measure_file(folder, **load).show(), flush=True)
        server, database = None, options.database
        if database is None:
            server, database = stack.enter_context(run_postgres(folder))
        for frontends in options.frontends:
            turn = measure_frontends(folder, database, frontends, server, **load)
            print(turn.show(), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
