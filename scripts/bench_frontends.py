"""Life cycles of jobs through several front-ends on one PostgreSQL, beside one node with node.db.

    make bench-frontends ARGS="--database postgresql://aitbc@/aitbc?host=/run/postgresql"

Each turn has an authority and so many front-ends, as processes, in a schema of its own in that
database, which is dropped afterwards. Every front-end is loaded by a process of its own. The
authority seals, and is not loaded. On a machine with few cores the front-ends, the loads, the
database and the authority take them from each other: what it prints is a figure of that machine.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
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
    complete_ms: list[float]

    def show(self) -> str:
        """Return a line of the table."""
        return (
            f"{self.name:<28} {self.cycles / self.seconds:>9,.0f} {self.cpu_micros:>9,.0f}"
            f" {median(self.complete_ms):>9.1f} {percentile(self.complete_ms, 0.99):>9.1f}"
        )


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
    name: str, nodes: Sequence[RunningNode], loaded: Sequence[RunningNode], **load: object
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
        cpu_s = sum(node.cpu_s for node in nodes)
        reports = list(pool.map(lambda node: run(node, float(str(load["seconds"]))), loaded))
    cycles = sum(len(report.cycle_ms) for report in reports)
    return Turn(
        name=name,
        cycles=cycles,
        seconds=max(report.seconds for report in reports),
        cpu_micros=(sum(node.cpu_s for node in nodes) - cpu_s) * MICROS / cycles,
        complete_ms=[each for report in reports for each in report.complete_ms],
    )


def measure_frontends(folder: Path, database: str, frontends: int, **load: object) -> Turn:
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
        return measure(name, nodes, nodes[1:] or nodes, key=key, data=data.root, **load)


def measure_file(folder: Path, **load: object) -> Turn:
    """Measure one node with node.db."""
    data = make_data_directory(folder / "alone", created_ms=read_clock_ms())
    key = issue_key(data, "admin", now_ms=read_clock_ms())
    with run_node(data, *MAX_PENDING) as node:
        return measure("node.db, one node", [node], [node], key=key, data=data.root, **load)


def main(arguments: list[str] | None = None) -> int:
    """Run the command. Returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--database", required=True, metavar="URL")
    parser.add_argument("--frontends", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--connections", type=int, default=16, help="of each front-end")
    parser.add_argument("--seconds", type=float, default=5)
    options = parser.parse_args(arguments)
    load = {"connections": options.connections, "seconds": options.seconds}
    build = ROOT / "build"
    build.mkdir(exist_ok=True)
    print(describe_machine())
    print(f"{'':<28} {'cycles/s':>9} {'CPU µs':>9} {'p50 ms':>9} {'p99 ms':>9}")
    with tempfile.TemporaryDirectory(prefix="frontends-", dir=build) as folder:
        print(measure_file(Path(folder), **load).show(), flush=True)
        for frontends in options.frontends:
            turn = measure_frontends(Path(folder), options.database, frontends, **load)
            print(turn.show(), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
