"""Measure this checkout on this machine and print one table.

    make bench                        everything, about eight minutes
    make bench ARGS="--quick"         shorter turns, less certain
    make bench ARGS="--only jobs"     one part

Each row compares its value with a reference that was measured in turns with it: the machine, its
disk and its neighbours move both, and the ratio stays. `CPU` is the processor time of one
operation, of the server's process where there is one.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import msgspec

from scripts.bench_figures.abuse import measure_abuse
from scripts.bench_figures.crowd import measure_crowd
from scripts.bench_figures.jobs import measure_finality, measure_jobs
from scripts.bench_figures.measure import Plan, Row, describe_machine
from scripts.bench_figures.model import measure_model
from scripts.bench_figures.node_process import ROOT
from scripts.bench_figures.pages import measure_pages
from scripts.bench_figures.streams import measure_streams
from scripts.bench_figures.sync import measure_sync
from scripts.bench_figures.verification import measure_verification

PARTS: dict[str, Callable[[Plan], Iterator[Row]]] = {
    "jobs": measure_jobs,
    "finality": measure_finality,
    "verify": measure_verification,
    "sync": measure_sync,
    "model": measure_model,
    "pages": measure_pages,
    "abuse": measure_abuse,
    "crowd": measure_crowd,
    "streams": measure_streams,
}
HEADINGS = ("figure", "value", "p99", "reference", "", "ratio", "goal", "CPU µs")


def build_plan(folder: Path, *, quick: bool) -> Plan:
    """Return how much to measure; all files are made in `folder`."""
    if quick:
        return Plan(
            folder=folder,
            rounds=1,
            slice_s=0.3,
            load_s=2,
            receipts=300,
            synced=5000,
            visits=20,
            finals=20,
            attackers=16,
            crowd=1000,
            crowd_s=5,
            followers=2000,
        )
    return Plan(
        folder=folder,
        rounds=3,
        slice_s=1,
        load_s=5,
        receipts=2000,
        synced=100_000,
        visits=50,
        finals=100,
        attackers=64,
        crowd=10_000,
        crowd_s=30,
        followers=19_000,
    )


def measure(plan: Plan, parts: Iterable[str]) -> tuple[list[Row], list[str]]:
    """Measure these parts; return their rows, and a line for each part that failed."""
    rows: list[Row] = []
    failures = []
    for part in parts:
        print(f"measuring {part}", file=sys.stderr)
        try:
            for row in PARTS[part](plan):
                rows.append(row)
                print(f"  {row.figure}: {_format_number(row.value)} {row.unit}", file=sys.stderr)
        except Exception as error:  # whatever it is, the others are measured
            failures.append(f"{part}: {type(error).__name__}: {error}")
    return rows, failures


def format_table(rows: Iterable[Row]) -> str:
    """Return the table as text."""
    lines = [HEADINGS, *(_format_cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADINGS))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if heading in {"figure", "reference", "goal"} else cell.rjust(width)
            for cell, width, heading in zip(line, widths, HEADINGS, strict=True)
        ).rstrip()
        for line in lines
    )


def _format_cells(row: Row) -> tuple[str, ...]:
    def show(value: float | None) -> str:
        return "" if value is None else f"{_format_number(value)} {row.unit}".rstrip()

    return (
        row.figure,
        show(row.value),
        show(row.p99),
        row.reference,
        show(row.reference_value),
        "" if row.ratio is None else f"{row.ratio:.2f}",
        row.goal,
        "" if row.cpu_micros is None else f"{row.cpu_micros:,.0f}",
    )


def _format_number(value: float) -> str:
    digits = 0 if value >= 100 or value == int(value) else 2
    return f"{value:,.{digits}f}"


def main(arguments: list[str] | None = None) -> int:
    """Run the command. Returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one short turn of everything")
    parser.add_argument(
        "--only", action="append", choices=PARTS, help="measure this part; repeatable"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there, too")
    options = parser.parse_args(arguments)
    print(describe_machine())
    # Beside the data directories, not in a temporary one that may lie in memory.
    build = ROOT / "build"
    build.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=build) as folder:
        plan = build_plan(Path(folder), quick=options.quick)
        rows, failures = measure(plan, options.only or PARTS)
    print(format_table(rows))
    for failure in failures:
        print(f"not measured: {failure}", file=sys.stderr)
    if options.json is not None:
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(rows)) + b"\n")
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
