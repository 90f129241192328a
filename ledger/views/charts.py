"""Roll-ups of ledger.db: one range of an index for each line of a chart."""

from __future__ import annotations

import sqlite3
from collections import Counter

from ledger.store.reading import require_history
from ledger.store.rollups import ALL_MODELS
from ledger.views.models import PaceView, UsageView

MAX_BUCKETS = 400
"""Spans of one line."""
MAX_RANKED_ROWS = 10_000
"""Rows, newest first, that are looked at for the models with the most receipts."""


def load_usage(
    ledger: sqlite3.Connection, span_ms: int, *, from_ms: int, to_ms: int, model: str | None
) -> list[UsageView]:
    """Return the spans that begin in [from_ms, to_ms) and have receipts, oldest first.

    Raises:
        HistoryMissingError: they may lack receipts.
    """
    require_history(ledger)
    rows = ledger.execute(
        "SELECT start_ms, receipts, tokens_micros, tokens_price_micros, gpu_seconds_micros,"
        " gpu_seconds_price_micros FROM usage_rollups"
        " WHERE span_ms = ? AND model = ? AND start_ms >= ? AND start_ms < ?"
        " ORDER BY start_ms LIMIT ?",
        (span_ms, ALL_MODELS if model is None else model, from_ms, to_ms, MAX_BUCKETS),
    )
    return [
        UsageView(
            start_ms=row[0],
            receipts=row[1],
            tokens_micros=row[2],
            tokens_price_micros=row[3],
            gpu_seconds_micros=row[4],
            gpu_seconds_price_micros=row[5],
        )
        for row in rows
    ]


def rank_models(
    ledger: sqlite3.Connection, span_ms: int, *, from_ms: int, to_ms: int, limit: int
) -> list[str]:
    """Return the models with the most receipts in a time, by number, then by name."""
    rows = ledger.execute(
        "SELECT model, receipts FROM usage_rollups"
        " WHERE span_ms = ? AND start_ms >= ? AND start_ms < ?"
        " ORDER BY start_ms DESC LIMIT ?",
        (span_ms, from_ms, to_ms, MAX_RANKED_ROWS),
    )
    counts: Counter[str] = Counter()
    for model, receipts in rows:
        counts[model] += receipts
    del counts[ALL_MODELS]
    return sorted(counts, key=lambda model: (-counts[model], model))[:limit]


def load_pace(
    ledger: sqlite3.Connection, span_ms: int, *, from_ms: int, to_ms: int
) -> list[PaceView]:
    """Return the spans that begin in [from_ms, to_ms) and have blocks, oldest first.

    Raises:
        HistoryMissingError: they may lack blocks.
    """
    require_history(ledger)
    rows = ledger.execute(
        "SELECT start_ms, blocks, gaps, gap_ms FROM pace_rollups"
        " WHERE span_ms = ? AND start_ms >= ? AND start_ms < ? ORDER BY start_ms LIMIT ?",
        (span_ms, from_ms, to_ms, MAX_BUCKETS),
    )
    return [PaceView(start_ms=row[0], blocks=row[1], gaps=row[2], gap_ms=row[3]) for row in rows]
