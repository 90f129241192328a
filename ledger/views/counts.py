"""How many receipts a list has: exact where that is cheap, else not said."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping

from ledger.store.sessions import Connection

MAX_COUNTED_RECEIPTS = 10_000
"""Final receipts of one account or model are counted no further than this."""
MAX_COUNTED_PENDING = 1_000


def count_receipts(
    ledger: sqlite3.Connection, market: Connection, columns: Mapping[str, str]
) -> int | None:
    """Return how many receipts have these values, at most one; None if there are too many."""
    if len(columns) > 1:
        return None  # an index counts one column; for two it would have to read the rows
    condition = "".join(f" AND {column} = ?" for column in columns)
    values = list(columns.values())
    pending = [
        row[0]
        for row in market.execute(
            "SELECT receipt_id FROM mempool WHERE receipt_id IS NOT NULL"  # noqa: S608 - our words
            f"{condition} LIMIT ?",
            (*values, MAX_COUNTED_PENDING + 1),
        )
    ]
    if len(pending) > MAX_COUNTED_PENDING:
        return None
    final = _count_final(ledger, condition, values)
    if final is None or not pending:
        return final
    # What became final since it was read is in both.
    (both,) = ledger.execute(
        "SELECT count(*) FROM receipts WHERE receipt_id IN (SELECT value FROM json_each(?))",
        (json.dumps(pending),),
    ).fetchone()
    return int(final + len(pending) - both)


def _count_final(ledger: sqlite3.Connection, condition: str, values: list[str]) -> int | None:
    if not values:
        (count,) = ledger.execute("SELECT value FROM counters WHERE name = 'receipts'").fetchone()
        return int(count)
    (count,) = ledger.execute(
        f"SELECT count(*) FROM (SELECT 1 FROM receipts WHERE true{condition} LIMIT ?)",  # noqa: S608
        (*values, MAX_COUNTED_RECEIPTS + 1),
    ).fetchone()
    return None if count > MAX_COUNTED_RECEIPTS else int(count)
