"""What an API key may submit, and what it has submitted on the day of the server's clock."""

from __future__ import annotations

from ledger.quotas import KeyLimits, Usage
from ledger.store.sessions import Connection


def load_limits(connection: Connection, prefix: str) -> KeyLimits:
    """Return the limits of a key; one that is not stored has none of its own."""
    return load_standing(connection, prefix, 0)[0]


def load_standing(connection: Connection, owner: str, day: int) -> tuple[KeyLimits, Usage]:
    """Return what a key may do, has pending, and has submitted on a day (since the epoch, UTC).

    A key that is not stored has no limits of its own. A clock that was set back does not give a
    fresh day.
    """
    row = connection.execute(
        "SELECT k.max_pending, k.daily_jobs, k.daily_tokens, c.jobs, o.jobs, o.tokens"
        " FROM (SELECT ? AS owner) AS a LEFT JOIN api_keys AS k ON k.prefix = a.owner"
        " LEFT JOIN job_counts AS c ON c.owner = a.owner AND c.state = 'pending'"
        " LEFT JOIN owners AS o ON o.owner = a.owner AND o.day >= ?",
        (owner, day),
    ).fetchone()
    limits = KeyLimits(max_pending=row[0], daily_jobs=row[1], daily_tokens=row[2])
    return limits, Usage(pending=row[3] or 0, jobs=row[4] or 0, tokens=row[5] or 0)


def set_limits(connection: Connection, prefix: str, limits: KeyLimits) -> bool:
    """Replace the limits of a key. Returns False if there is none."""
    cursor = connection.execute(
        "UPDATE api_keys SET max_pending = ?, daily_jobs = ?, daily_tokens = ? WHERE prefix = ?",
        (limits.max_pending, limits.daily_jobs, limits.daily_tokens, prefix),
    )
    return cursor.rowcount == 1


def add_usage(connection: Connection, owner: str, day: int, *, jobs: int, tokens: int) -> None:
    """Count what a key submits."""
    connection.execute(
        "INSERT INTO owners (owner, day, jobs, tokens) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (owner) DO UPDATE SET"
        " jobs = excluded.jobs + CASE WHEN excluded.day > owners.day THEN 0 ELSE owners.jobs END,"
        " tokens = excluded.tokens"
        " + CASE WHEN excluded.day > owners.day THEN 0 ELSE owners.tokens END,"
        " day = CASE WHEN excluded.day > owners.day THEN excluded.day ELSE owners.day END",
        (owner, day, jobs, tokens),
    )
