"""What an API key may submit, and what it has submitted on the day of the server's clock."""

from __future__ import annotations

import sqlite3

from ledger.quotas import KeyLimits, Usage
from ledger.store.lists import count_jobs


def load_limits(connection: sqlite3.Connection, prefix: str) -> KeyLimits:
    """Return the limits of a key; one that is not stored has none of its own."""
    row = connection.execute(
        "SELECT max_pending, daily_jobs, daily_tokens FROM api_keys WHERE prefix = ?", (prefix,)
    ).fetchone()
    if row is None:
        return KeyLimits()
    return KeyLimits(max_pending=row[0], daily_jobs=row[1], daily_tokens=row[2])


def set_limits(connection: sqlite3.Connection, prefix: str, limits: KeyLimits) -> bool:
    """Replace the limits of a key. Returns False if there is none."""
    cursor = connection.execute(
        "UPDATE api_keys SET max_pending = ?, daily_jobs = ?, daily_tokens = ? WHERE prefix = ?",
        (limits.max_pending, limits.daily_jobs, limits.daily_tokens, prefix),
    )
    return cursor.rowcount == 1


def load_usage(connection: sqlite3.Connection, owner: str, day: int) -> Usage:
    """Return what a key has pending, and has submitted on a day (since the epoch, UTC).

    A clock that was set back does not give a fresh day.
    """
    pending = count_jobs(connection, owner=owner, state="pending")
    row = connection.execute(
        "SELECT jobs, tokens FROM owners WHERE owner = ? AND day >= ?", (owner, day)
    ).fetchone()
    jobs, tokens = row or (0, 0)
    return Usage(pending=pending, jobs=jobs, tokens=tokens)


def add_usage(
    connection: sqlite3.Connection, owner: str, day: int, *, jobs: int, tokens: int
) -> None:
    """Count what a key submits."""
    connection.execute(
        "INSERT INTO owners (owner, day, jobs, tokens) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (owner) DO UPDATE SET"
        " jobs = iif(excluded.day > day, 0, jobs) + excluded.jobs,"
        " tokens = iif(excluded.day > day, 0, tokens) + excluded.tokens,"
        " day = max(day, excluded.day)",
        (owner, day, jobs, tokens),
    )
