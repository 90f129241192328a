"""Hold a node to its goals: every one measured in one run, as one table.

    make goals                                 everything, about eight minutes
    make goals ARGS="--quick"                  short turns, to see that all of it runs
    make goals ARGS="--only sync --only jobs"
    make goals ARGS="--markdown FILE"          the table for docs/performance.md, too

Everything is measured by the parts of `make bench`, `make bench-peers` and `make bench-explorer`. A
part that fails is named, and the others are measured. Reads are timed on ten million receipts of
which all but the first quarter of a million are copies (scripts/multiply.py), made once in build/.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from node.datadir import DataDirectory
from scripts import bench
from scripts.bench_explorer import __main__ as explorer
from scripts.bench_explorer.table import Figure
from scripts.bench_figures.jobs import GOAL_CONNECTIONS, measure_jobs
from scripts.bench_figures.measure import Plan, Row, describe_machine
from scripts.bench_figures.node_process import ROOT
from scripts.bench_figures.streams import measure_streams
from scripts.bench_figures.sync import measure_sync
from scripts.bench_peers import __main__ as peers
from scripts.bench_peers.table import build_rows

LEDGER = ROOT / "build" / "multiplied-40"
OLD_CYCLE_MICROS = 43_500
"""Processor time of a life cycle at the coordinator that this node replaces: 41 to 46 ms."""
OLD_TIMES = 250
CYCLES_PER_CORE = 6_000
COMPLETE_MS = 2.0
SYNCED_PER_S = 60_000
FOLLOWERS, FOLLOWED_MS = 19_000, 400.0
VISITS = 60
HEADINGS = ("goal", "value", "", "met", "CPU µs")


class Goal(NamedTuple):
    """One line of the table."""

    name: str
    value: str
    bound: str
    is_met: bool | None
    """None: not measured."""
    cpu_micros: float | None = None
    """Processor time of one operation, of the node's process."""

    def list_cells(self) -> tuple[str, ...]:
        """Return the line as text."""
        met = {True: "yes", False: "no", None: "not measured"}[self.is_met]
        cpu = "" if self.cpu_micros is None else f"{self.cpu_micros:,.0f}"
        return self.name, self.value, self.bound, met, cpu


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What to measure, and how long."""

    plan: Plan
    ledger: DataDirectory
    visits: int
    peer_rounds: int
    peer_seconds: float


def measure_cycles(order: Order) -> Iterator[Goal]:
    """Life cycles of jobs: rate of a core, cost beside the old coordinator, wait."""
    rows = _by_figure(measure_jobs(order.plan))
    core = rows["job life cycles per server core"]
    yield Goal(
        "life cycles of a second of a core",
        f"{core.value:,.0f}",
        f">= {CYCLES_PER_CORE:,}",
        core.value >= CYCLES_PER_CORE,
        core.cpu_micros,
    )
    cost = rows[f"CPU of a life cycle, {GOAL_CONNECTIONS} at a time"].value
    times = OLD_CYCLE_MICROS / cost
    yield Goal(
        "life cycles for the processor time of one at the old coordinator (43.5 ms)",
        f"{times:,.0f}",
        f">= {OLD_TIMES}",
        times >= OLD_TIMES,
        cost,
    )
    wait = rows[f"complete, {GOAL_CONNECTIONS} at a time"]
    yield Goal(
        f"complete, {GOAL_CONNECTIONS} at a time, p50",
        f"{wait.value:,.1f} ms",
        f"<= {COMPLETE_MS:g} ms",
        wait.value <= COMPLETE_MS,
    )


def measure_beside_peers(order: Order) -> Iterator[Goal]:
    """Job queues and a chain that do the same work, in turns."""
    with peers.open_folder() as folder:
        turns = peers.take_turns(folder, peers.PEERS, order.peer_rounds, order.peer_seconds)
    for row in build_rows(turns):
        if row.goal is not None:
            yield Goal(
                f"{row.figure} beside {row.peer} ({row.ours:,.0f} and {row.theirs:,.0f}/s)",
                f"{row.ratio:.2f} times",
                f">= {row.goal:g} times",
                row.ratio >= row.goal,
                row.ours_micros,
            )


def measure_syncing(order: Order) -> Iterator[Goal]:
    """A new node that fetches, verifies and stores a whole chain."""
    rows = list(measure_sync(order.plan))
    yield Goal(
        rows[0].figure,
        f"{rows[0].value:,.0f}/s",
        f">= {SYNCED_PER_S:,}/s",
        rows[0].value >= SYNCED_PER_S,
        rows[0].cpu_micros,
    )


def measure_reads(order: Order) -> Iterator[Goal]:
    """SQL and pages over ten million receipts, and how much of a disk they take."""
    plan = explorer.Plan(
        data=order.ledger, visits=order.visits, parts=("storage", "lists", "details"), twice=True
    )
    figures = list(explorer.measure(plan))
    bounded = [figure for figure in figures if figure.is_ok is not None]
    sql = [figure for figure in bounded if figure.unit == "µs"]
    yield _judge_worst("SQL of a page or a key, 10 M receipts, p50", sql, lambda one: one.value)
    pages = [figure for figure in bounded if figure.most_p99 == explorer.PAGE_BUDGET.p99_ms]
    disk = next((f"{f.p99 or f.value:,.0f}" for f in figures if f.name == explorer.FIRST_READ), "?")
    yield _judge_worst(
        f"first byte of a page, 10 M receipts, p99 ({disk} ms from the disk)",
        pages,
        lambda one: one.p99 or one.value,
    )
    (storage,) = (figure for figure in bounded if figure.unit == "B")
    yield Goal(
        "storage of a receipt beside its signed bytes",
        f"{storage.value:,.0f} B",
        f"<= {storage.most:g} B",
        bool(storage.is_ok),
    )


def measure_following(order: Order) -> Iterator[Goal]:
    """Followers of events on one core."""
    rows = list(measure_streams(order.plan))
    count, wait = rows[0], rows[1]
    yield Goal(
        f"{count.figure}, p99 {wait.p99 or wait.value:,.0f} ms",
        f"{count.value:,.0f}",
        f">= {FOLLOWERS:,}, p99 < {FOLLOWED_MS:g} ms",
        count.value >= FOLLOWERS,
        count.cpu_micros,
    )


PARTS: Mapping[str, Callable[[Order], Iterator[Goal]]] = {
    "jobs": measure_cycles,
    "sync": measure_syncing,
    "streams": measure_following,
    "reads": measure_reads,
    "peers": measure_beside_peers,
}


def _judge_worst(name: str, figures: list[Figure], read: Callable[[Figure], float]) -> Goal:
    """Hold the worst of several figures to the bound that all of them have."""
    worst = max(figures, key=read)
    bound = worst.most if worst.unit == "µs" else worst.most_p99
    assert bound is not None, "only what has a budget is judged"
    within = sum(read(figure) <= bound for figure in figures)
    return Goal(
        f"{name}: {within} of {len(figures)} within; the worst, {worst.name.removeprefix('SQL: ')}",
        f"{read(worst):,.1f} {worst.unit}",
        f"<= {bound:g} {worst.unit}",
        within == len(figures),
        worst.cpu_micros,
    )


def _by_figure(rows: Iterable[Row]) -> dict[str, Row]:
    return {row.figure: row for row in rows}


def measure_all(order: Order, parts: Iterable[str]) -> Iterator[Goal]:
    """Measure these parts, one after another; one that fails is a line of its own."""
    for part in parts:
        print(f"measuring {part}", file=sys.stderr)
        try:
            yield from PARTS[part](order)
        except Exception as error:  # whatever it is, the others are measured
            yield Goal(f"{part}: {type(error).__name__}: {error}", "", "", None)


def format_markdown(goals: Iterable[Goal]) -> str:
    """Return the table for a document, which is read as it is, too."""
    lines = [
        HEADINGS,
        ("---", "---:", "---", "---", "---:"),
        *(goal.list_cells() for goal in goals),
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main(arguments: list[str] | None = None) -> int:
    """Run the command. Returns the exit status: 1 if a part was not measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="short turns, less certain")
    parser.add_argument("--only", action="append", choices=PARTS, help="this part; repeatable")
    parser.add_argument("--ledger", type=Path, default=LEDGER, help="of ten million receipts")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there, too")
    options = parser.parse_args(arguments)
    machine = describe_machine()
    print(machine)
    build = ROOT / "build"
    build.mkdir(exist_ok=True)
    goals = []
    with tempfile.TemporaryDirectory(prefix="goals-", dir=build) as folder:
        order = Order(
            plan=bench.build_plan(Path(folder), quick=options.quick),
            ledger=DataDirectory(options.ledger),
            visits=3 if options.quick else VISITS,
            peer_rounds=1 if options.quick else peers.ROUNDS,
            peer_seconds=peers.QUICK_SECONDS if options.quick else peers.SECONDS,
        )
        for goal in measure_all(order, options.only or PARTS):
            goals.append(goal)
            print("  " + "  ".join(goal.list_cells()), file=sys.stderr, flush=True)
    table = format_markdown(goals)
    print(table)
    print(f"{sum(goal.is_met is True for goal in goals)} of {len(goals)} met")
    if options.markdown is not None:
        options.markdown.write_text(f"{machine}.\n\n{table}\n", encoding="utf-8")
    return 1 if any(goal.is_met is None for goal in goals) else 0


if __name__ == "__main__":
    raise SystemExit(main())
