"""What happened in each five minutes, hour and day, kept as blocks enter ledger.db.

Every figure is a sum over blocks by their own times, so all nodes have the same ones, whatever
their clocks say and in which order blocks came. Sums stop at the largest integer of SQLite, as
those of accounts do.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from typing import NamedTuple

from ledger.block import Tip
from ledger.store.accounts import MAX_TOTAL
from ledger.store.reading import load_pin
from ledger.store.rows import Figures, read_figures

SPANS_MS = (300_000, 3_600_000, 86_400_000)
"""Five minutes, an hour, a day. Each begins at a whole multiple of itself since 1970."""
ALL_MODELS = ""
"""Stands for all models together; no model has this name."""

SCHEMA = (
    "CREATE TABLE usage_rollups (span_ms INTEGER NOT NULL, model TEXT NOT NULL,"
    " start_ms INTEGER NOT NULL, receipts INTEGER NOT NULL, tokens_micros INTEGER NOT NULL,"
    " tokens_price_micros INTEGER NOT NULL, gpu_seconds_micros INTEGER NOT NULL,"
    " gpu_seconds_price_micros INTEGER NOT NULL, PRIMARY KEY (span_ms, model, start_ms)) STRICT",
    # It holds what models are ranked by, so that ranking them reads no row.
    "CREATE INDEX usage_rollups_start ON usage_rollups (span_ms, start_ms, model, receipts)",
    "CREATE TABLE pace_rollups (span_ms INTEGER NOT NULL, start_ms INTEGER NOT NULL,"
    " blocks INTEGER NOT NULL, gaps INTEGER NOT NULL, gap_ms INTEGER NOT NULL,"
    " PRIMARY KEY (span_ms, start_ms)) STRICT",
)

# A sum that is too large becomes a real number, which is larger than any integer.
_ADD_USAGE = (
    "INSERT INTO usage_rollups VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
    " ON CONFLICT (span_ms, model, start_ms) DO UPDATE SET receipts = receipts + excluded.receipts,"
    " tokens_micros = min(tokens_micros + excluded.tokens_micros, 9223372036854775807),"
    " tokens_price_micros ="
    " min(tokens_price_micros + excluded.tokens_price_micros, 9223372036854775807),"
    " gpu_seconds_micros ="
    " min(gpu_seconds_micros + excluded.gpu_seconds_micros, 9223372036854775807),"
    " gpu_seconds_price_micros ="
    " min(gpu_seconds_price_micros + excluded.gpu_seconds_price_micros, 9223372036854775807)"
)
_ADD_PACE = (
    "INSERT INTO pace_rollups VALUES (?, ?, ?, ?, ?) ON CONFLICT (span_ms, start_ms) DO UPDATE SET"
    " blocks = blocks + excluded.blocks, gaps = gaps + excluded.gaps,"
    " gap_ms = min(gap_ms + excluded.gap_ms, 9223372036854775807)"
)


class BlockTime(NamedTuple):
    """When a block was sealed."""

    time_ms: int
    gap_ms: int | None
    """Since the block before; None of the first one, which has none before it."""


def find_block_time(time_ms: int, tip: Tip) -> BlockTime:
    """Return when the block after `tip` was sealed."""
    return BlockTime(time_ms=time_ms, gap_ms=time_ms - tip.time_ms if tip.height else None)


def add_usage(connection: sqlite3.Connection, receipts: Iterable[Figures]) -> None:
    """Add receipts to the spans in which they became final."""
    # A block has few models and one time, so what is alike is added up before it is spread.
    alike: dict[tuple[int, str, str], list[int]] = {}
    for receipt in receipts:
        sums = alike.setdefault((receipt.time_ms, receipt.model, receipt.unit_type), [0, 0, 0])
        sums[0] += 1
        sums[1] += receipt.units_micros
        sums[2] += receipt.price_micros
    totals: dict[tuple[int, str, int], list[int]] = {}
    for (time_ms, name, unit_type), (count, units_micros, price_micros) in alike.items():
        place = 1 if unit_type == "tokens" else 3
        for span_ms in SPANS_MS:
            for model in (ALL_MODELS, name):
                key = (span_ms, model, time_ms - time_ms % span_ms)
                sums = totals.setdefault(key, [0] * 5)
                sums[0] += count
                sums[place] = min(sums[place] + units_micros, MAX_TOTAL)
                sums[place + 1] = min(sums[place + 1] + price_micros, MAX_TOTAL)
    connection.executemany(_ADD_USAGE, [(*key, *sums) for key, sums in totals.items()])


def add_pace(connection: sqlite3.Connection, block: BlockTime) -> None:
    """Add a block to the spans in which it was sealed."""
    gaps, gap_ms = (0, 0) if block.gap_ms is None else (1, block.gap_ms)
    connection.executemany(
        _ADD_PACE,
        [(span, block.time_ms - block.time_ms % span, 1, gaps, gap_ms) for span in SPANS_MS],
    )


def fill_rollups(connection: sqlite3.Connection) -> None:
    """Add up all blocks of a file that had no roll-ups."""
    for batch in read_figures(connection):
        add_usage(connection, batch)
    pin = load_pin(connection)
    known = {0: None, pin.height: pin.header.time_ms} if pin is not None else {0: None}
    rows = connection.execute("SELECT height, time_ms FROM blocks ORDER BY height")
    before: tuple[int, int] | None = None
    for height, time_ms in rows:
        if before is not None and before[0] == height - 1:
            parent_ms: int | None = before[1]
        else:
            parent_ms = known.get(height - 1)
        gap_ms = None if parent_ms is None else time_ms - parent_ms
        add_pace(connection, BlockTime(time_ms=time_ms, gap_ms=gap_ms))
        before = height, time_ms
