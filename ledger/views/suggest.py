"""What a few typed letters may be the beginning of: seeks in indexes, no search through rows."""

from __future__ import annotations

import re
import sqlite3

from ledger.store.rollups import SPANS_MS
from ledger.store.sessions import Connection

MIN_PREFIX = 2
"""Shorter ones begin too much."""
MAX_PREFIX = 128
PER_KIND = 4
"""Suggestions of one kind."""

_HEX = re.compile(r"[0-9a-f]{4,64}")
_LAST = "\U0010ffff"
"""Sorts after every character that a name begins with."""


def suggest(ledger: sqlite3.Connection, market: Connection, prefix: str) -> list[str]:
    """Return ids and names that begin with `prefix`, at most a few of each kind."""
    if not MIN_PREFIX <= len(prefix) <= MAX_PREFIX:
        return []
    found = [
        *_seek_text(ledger, "SELECT receipt_id FROM receipts WHERE receipt_id", prefix),
        *_seek_text(ledger, "SELECT account FROM accounts WHERE account", prefix),
        *_seek_models(ledger, prefix),
        *_seek_text(market, "SELECT miner_id FROM miners WHERE miner_id", prefix),
    ]
    if _HEX.fullmatch(prefix):
        found += _seek_hash(ledger, "SELECT hash FROM blocks WHERE hash", prefix)
        found += _seek_hash(ledger, "SELECT id FROM transactions WHERE id", prefix)
    return list(dict.fromkeys(found))


def _seek_text(connection: Connection, select: str, prefix: str) -> list[str]:
    column = select.rpartition(" ")[2]
    rows = connection.execute(
        f"{select} >= ? AND {column} < ? ORDER BY {column} LIMIT ?",
        (prefix, prefix + _LAST, PER_KIND),
    )
    return [row[0] for row in rows]


def _seek_hash(connection: sqlite3.Connection, select: str, prefix: str) -> list[str]:
    column = select.rpartition(" ")[2]
    low, high = bytes.fromhex(prefix.ljust(64, "0")), bytes.fromhex(prefix.ljust(64, "f"))
    rows = connection.execute(
        f"{select} >= ? AND {column} <= ? ORDER BY {column} LIMIT ?", (low, high, PER_KIND)
    )
    return [row[0].hex() for row in rows]


def _seek_models(ledger: sqlite3.Connection, prefix: str) -> list[str]:
    # A model has a row for each day: each seek jumps over those of the model before.
    names: list[str] = []
    statement = (
        "SELECT min(model) FROM usage_rollups WHERE span_ms = ? AND model {} ? AND model < ?"
    )
    after, comparison = prefix, ">="
    while len(names) < PER_KIND:
        (name,) = ledger.execute(
            statement.format(comparison), (max(SPANS_MS), after, prefix + _LAST)
        ).fetchone()
        if name is None:
            break
        names.append(name)
        after, comparison = name, ">"
    return names
