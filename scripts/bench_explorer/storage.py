"""How much of a disk a receipt takes, and what one page costs SQLite, beside what it replaces."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from random import Random

from ledger.store.database import open_reader
from node.datadir import DataDirectory
from scripts.bench_explorer.sample import Sample
from scripts.bench_explorer.table import Figure, summarize_times

MAX_OVERHEAD_BYTES = 250
MAX_PAGE_MICROS = 100
TURNS = 200
SLOW_TURNS = 12
"""Of what takes as long as it skips."""
PAGE_ROWS = 25

_PAGE = (
    "SELECT t.*, b.time_ms FROM receipts o{} CROSS JOIN transactions t ON t.leaf = o.leaf"
    " CROSS JOIN blocks b ON b.height = t.height WHERE o.leaf < ?{} ORDER BY o.leaf DESC LIMIT 25"
)
"""As `ledger.views.lists` reads it."""


def measure_storage(data: DataDirectory) -> Iterator[Figure]:
    """Return sizes of ledger.db for each receipt."""
    ledger = open_reader(data.ledger)
    try:
        (receipts,) = ledger.execute(
            "SELECT value FROM counters WHERE name = 'receipts'"
        ).fetchone()
        (body,) = ledger.execute("SELECT sum(size_bytes) FROM blocks").fetchone()
    finally:
        ledger.close()
    stored = data.ledger.stat().st_size / receipts
    yield Figure(name="ledger.db for each receipt", value=stored, unit="B")
    yield Figure(name="  of it signed bytes", value=body / receipts, unit="B")
    yield Figure(
        name="  of it all else", value=stored - body / receipts, unit="B", most=MAX_OVERHEAD_BYTES
    )


def measure_sql(data: DataDirectory, sample: Sample, random: Random) -> Iterator[Figure]:
    """Time pages in SQLite alone, without a server, rows fetched but not parsed.

    What has a budget is read from memory, as it is where somebody has just looked.
    """
    ledger = open_reader(data.ledger)

    def leaf() -> int:
        return random.randint(PAGE_ROWS, sample.leaves)

    def row() -> sqlite3.Row:
        return random.choice(sample.receipts)

    reads: dict[str, Callable[[], tuple[str, tuple[object, ...]]]] = {
        "a page of receipts": lambda: (_PAGE.format("", ""), (leaf(),)),
        "a page of a client's receipts": lambda: (
            _PAGE.format(" INDEXED BY receipts_client", " AND o.client = ?"),
            (leaf(), row()["client"]),
        ),
        "a page of a client's receipts of a model": lambda: (
            _PAGE.format(" INDEXED BY receipts_client_model", " AND o.client = ? AND o.model = ?"),
            (leaf(), row()["client"], row()["model"]),
        ),
        "a receipt by its id": lambda: (
            "SELECT * FROM receipts WHERE receipt_id = ?",
            (row()["receipt_id"],),
        ),
    }
    try:
        for name, read in reads.items():
            # A long ledger is larger than memory. What the disk takes is a figure of its own.
            turns = [read() for _ in range(TURNS)]
            first, again = zip(
                *([_time(ledger, *turn) for _ in "12"] for turn in turns), strict=True
            )
            yield summarize_times(f"SQL: {name}", again, unit="µs", most=MAX_PAGE_MICROS)
            yield summarize_times(f"SQL, read for the first time: {name}", first, unit="µs")
    finally:
        ledger.close()


def measure_instead(data: DataDirectory, sample: Sample, random: Random) -> Iterator[Figure]:
    """Time what lists and searches would do without keys and counts: they read what they skip."""
    ledger = open_reader(data.ledger)

    def leaf() -> int:
        return random.randint(PAGE_ROWS, sample.leaves)

    def row() -> sqlite3.Row:
        return random.choice(sample.receipts)

    slow: dict[str, Callable[[], tuple[str, tuple[object, ...]]]] = {
        "instead: a page by OFFSET": lambda: (
            "SELECT * FROM receipts ORDER BY leaf DESC LIMIT 25 OFFSET ?",
            (sample.leaves - leaf(),),
        ),
        "instead: count(*) of a client": lambda: (
            "SELECT count(*) FROM receipts WHERE client = ?",
            (sample.client,),
        ),
        "instead: suggestions by LIKE": lambda: (
            "SELECT receipt_id FROM receipts WHERE receipt_id LIKE ? LIMIT 4",
            (f"%{row()['receipt_id'][6:12]}%",),
        ),
    }
    try:
        for name, read in slow.items():
            times = [_time(ledger, *read()) for _ in range(SLOW_TURNS)]
            yield summarize_times(f"SQL, {name}", times, unit="µs")
    finally:
        ledger.close()


def _time(ledger: sqlite3.Connection, statement: str, values: tuple[object, ...]) -> float:
    began = time.perf_counter()
    ledger.execute(statement, values).fetchall()
    return (time.perf_counter() - began) * 1e6
