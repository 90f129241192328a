"""Idempotency keys: which jobs a request made, so that its repetition makes no others.

A row is written in the transaction of its jobs. Of the orders only a digest is kept, keyed with the
secret salt of the first job, so nobody can try prompts against it.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from blake3 import blake3

from ledger.errors import MarketError
from ledger.jobs import Job, JobOrder
from ledger.store.lists import list_batch
from ledger.store.sessions import Connection

REPEAT_MS = 86_400_000
"""How long a key is remembered."""
MAX_SWEPT_REPEATS = 1_000
"""Rows that one sweep removes."""


def find_repeat(
    connection: Connection,
    owner: str,
    key: str,
    orders: Sequence[JobOrder],
    *,
    now_ms: int,
) -> tuple[Job, ...] | None:
    """Return the jobs that the same request has made, as they are now; None for a new key.

    Raises:
        MarketError: IDEMPOTENCY_MISMATCH, the key was used for something else.
    """
    row = connection.execute(
        "SELECT * FROM repeats WHERE owner = ? AND key = ? AND created_at_ms > ?",
        (owner, key, now_ms - REPEAT_MS),
    ).fetchone()
    if row is None:
        return None
    jobs = list_batch(connection, row["first_seq"], row["jobs"])
    if row["digest"] != _digest(jobs[0].prompt_salt, orders):
        raise MarketError(
            "IDEMPOTENCY_MISMATCH", "this Idempotency-Key was used with another body within 24 h"
        )
    return jobs


def remember(
    connection: Connection, owner: str, key: str, jobs: Sequence[Job], *, first_seq: int
) -> None:
    """Note which jobs a request has made; their rows are in sequence."""
    digest = _digest(jobs[0].prompt_salt, [job.order for job in jobs])
    connection.execute(
        "INSERT INTO repeats (owner, key, digest, first_seq, jobs, created_at_ms)"
        " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (owner, key) DO UPDATE SET"
        " digest = excluded.digest, first_seq = excluded.first_seq, jobs = excluded.jobs,"
        " created_at_ms = excluded.created_at_ms",
        (owner, key, digest, first_seq, len(jobs), jobs[0].created_at_ms),
    )


def forget_old_repeats(connection: Connection, now_ms: int) -> int:
    """Remove keys whose time is over. Returns how many."""
    return connection.execute(
        "DELETE FROM repeats WHERE (owner, key) IN (SELECT owner, key FROM repeats"
        " INDEXED BY repeats_created WHERE created_at_ms <= ? ORDER BY created_at_ms LIMIT ?)",
        (now_ms - REPEAT_MS, MAX_SWEPT_REPEATS),
    ).rowcount


def _digest(salt: bytes, orders: Sequence[JobOrder]) -> bytes:
    return blake3(msgspec.json.encode(list(orders)), key=salt).digest()
