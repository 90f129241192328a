"""Measure the explorer over a long ledger and print one table.

    make bench-explorer                                1,000,000 receipts, made once in build/
    make bench-explorer ARGS="--receipts 20000"        a first impression
    make bench-explorer ARGS="--only lists --visits 500"

A node serves the ledger in a process of its own; pages are read over the loopback, one after
another, with what was read before still in memory: what is measured is how long one reader waits,
not how many can be served. `CPU` is the processor time of the node for one request.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import msgspec
import uvloop

from node.datadir import DataDirectory
from scripts import generate
from scripts.bench_explorer import exports, storage, table, weights
from scripts.bench_explorer.places import Places, Query, stay
from scripts.bench_explorer.sample import Sample, read_sample
from scripts.bench_explorer.table import Figure
from scripts.bench_explorer.visits import Budget, Visitor
from scripts.bench_figures.connection import Connection
from scripts.bench_figures.measure import describe_machine
from scripts.bench_figures.node_process import (
    ROOT,
    RunningNode,
    make_api_key,
    read_memory,
    run_node,
)

RECEIPTS = 1_000_000
VISITS = 200
PENDING_JOBS = 40

LIST_BUDGET = Budget(p50_ms=5, p99_ms=25)
PAGE_BUDGET = Budget(p50_ms=None, p99_ms=25)
SUGGEST_BUDGET = Budget(p50_ms=None, p99_ms=10)
NO_BUDGET = Budget(p50_ms=None, p99_ms=None)

FIRST_READ = "any of these pages, read for the first time"
PARTS = ("start", "storage", "instead", "weights", "lists", "details", "exports")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is measured of which ledger."""

    data: DataDirectory
    visits: int
    parts: tuple[str, ...]
    seed: int = 1
    twice: bool = False
    """Whether an address is read once before it counts, as with a ledger larger than memory."""


def measure(plan: Plan) -> Iterator[Figure]:
    """Measure the parts of a plan, cheap ones first."""
    random = Random(plan.seed)  # noqa: S311 - which pages are visited is no secret
    sample = read_sample(plan.data, random)
    if "storage" in plan.parts:
        yield from storage.measure_storage(plan.data)
        yield from storage.measure_sql(plan.data, sample, random)
    if "instead" in plan.parts:
        yield from storage.measure_instead(plan.data, sample, random)
    key = make_api_key(plan.data, "client")
    began = time.perf_counter()
    with run_node(plan.data) as node:
        if "start" in plan.parts:
            yield Figure(
                name="a node starts in", value=time.perf_counter() - began, unit="s", most=5
            )
            yield Figure(name="its memory then", value=read_memory(node.pid), unit="MB", most=200)
        yield from uvloop.run(_visit(plan, node, key, sample, random))
        if "exports" in plan.parts:
            yield from exports.measure_exports(node, sample)
        yield Figure(name="memory of the node at the end", value=read_memory(node.pid), unit="MB")


async def _visit(
    plan: Plan, node: RunningNode, key: str, sample: Sample, random: Random
) -> list[Figure]:
    client = await Connection.open(node.port, {"X-Api-Key": key})
    for _ in range(PENDING_JOBS):
        await client.expect(201, "POST", "/v1/jobs", b'{"prompt": "pending"}')
    await client.close()
    connection = await Connection.open(node.port, {"Accept-Encoding": "gzip"})
    try:
        places = Places(sample, random)
        return await _visit_parts(plan, node, connection, places, _list_ordinary(sample))
    finally:
        await connection.close()


async def _visit_parts(
    plan: Plan, node: RunningNode, connection: Connection, places: Places, ordinary: Query
) -> list[Figure]:
    visitor = Visitor(node, connection, twice=plan.twice)
    figures: list[Figure] = []
    if "weights" in plan.parts:
        figures += await weights.measure_weights(connection, ordinary)
    if "lists" in plan.parts:
        reference = {"reference: /robots.txt": stay("/robots.txt")}
        figures += await visitor.measure(reference, plan.visits, NO_BUDGET)
        figures += await visitor.measure(places.list_lists(), plan.visits, LIST_BUDGET)
        figures += await _look_again(plan, node, connection)
    if "details" in plan.parts:
        suggest = {"/_f/suggest?q=": places.suggest}
        figures += await visitor.measure(places.list_details(), plan.visits, PAGE_BUDGET)
        figures += await visitor.measure(suggest, plan.visits, SUGGEST_BUDGET)
    if visitor.first_ms:
        figures.append(table.summarize_times(FIRST_READ, visitor.first_ms))
    return figures


async def _look_again(plan: Plan, node: RunningNode, connection: Connection) -> list[Figure]:
    """Ask for a page that a browser has already."""
    tag = (await connection.expect(200, "GET", "/receipts")).tag
    again = await Connection.open(node.port, {"If-None-Match": tag})
    try:
        return await Visitor(node, again, expected=frozenset({304})).measure(
            {"/receipts, unchanged (304)": stay("/receipts")}, plan.visits, LIST_BUDGET
        )
    finally:
        await again.close()


def _list_ordinary(sample: Sample) -> Query:
    row, block = sample.receipts[0], sample.blocks[0]
    return {
        "/receipts": "/receipts",
        "/receipts/{id}": f"/receipts/{row['receipt_id']}",
        "/blocks": "/blocks",
        "/blocks/{height}": f"/blocks/{block['height']}",
        "/txs/{id}": f"/txs/{row['id'].hex()}",
        "/jobs": "/jobs",
        "/jobs/{id}": f"/jobs/{sample.job_ids[0]}",
        "/miners": "/miners",
        "/accounts/{account}": f"/accounts/{sample.provider}",
        "/network": "/network",
        "/charts/jobs": "/charts/jobs?range=year",
        "/search": "/search?q=nothing",
    }


def main(arguments: list[str] | None = None) -> int:
    """Run the command. Returns the exit status: 1 if a budget is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--receipts", type=int, default=RECEIPTS)
    parser.add_argument("--data", type=Path, help="a data directory that no node runs on")
    parser.add_argument("--visits", type=int, default=VISITS, help="of each page")
    parser.add_argument("--only", action="append", choices=PARTS, help="this part; repeatable")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    options = parser.parse_args(arguments)
    root = options.data or ROOT / "build" / f"generated-{options.receipts}"
    if options.data is None and generate.main([str(root), "--receipts", str(options.receipts)]):
        return 1
    print(describe_machine())
    plan = Plan(
        data=DataDirectory(root),
        visits=options.visits,
        parts=tuple(options.only or PARTS),
    )
    figures = []
    for figure in measure(plan):
        figures.append(figure)
        print(f"  {figure.name}", file=sys.stderr)
    print(table.format_table(figures))
    missed = [figure.name for figure in figures if figure.is_ok is False]
    print(f"{len(missed)} of {sum(f.is_ok is not None for f in figures)} budgets missed")
    if options.json is not None:
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(figures)) + b"\n")
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
