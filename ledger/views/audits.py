"""Audits as the faces show them: what those of a provider come to."""

from __future__ import annotations

import sqlite3
import struct
from functools import lru_cache

from ledger.audits import AuditTotals
from ledger.replay import METHOD, WINDOW, is_suspect
from ledger.store.reading import require_history

MAX_JUDGED = 512
"""Windows whose verdict is remembered: one that is full never changes, the open one seldom."""

_COMPARABLE = (
    "SELECT mean_gap_micros, method = ? AND same_model FROM audits INDEXED BY audits_provider"
    " WHERE provider = ? ORDER BY leaf DESC LIMIT ?"
)
"""Mean gaps, newest first, and whether they are of the method and the model that are weighed."""


def load_audit_totals(ledger: sqlite3.Connection, provider: str) -> AuditTotals:
    """Return what the audits of a provider come to.

    Raises:
        HistoryMissingError: blocks are missing, and audits with them.
    """
    require_history(ledger)
    row = ledger.execute(
        "SELECT passed, failed, tokens, exact_tokens, mean_gap_micros FROM audit_totals"
        " WHERE provider = ?",
        (provider,),
    ).fetchone()
    if row is None:
        return AuditTotals()
    return AuditTotals(
        passed=row[0],
        failed=row[1],
        tokens=row[2],
        exact_tokens=row[3],
        gap_micros=row[4],
        is_suspect=_is_suspect(ledger, provider, audits=row[0] + row[1]),
    )


def _is_suspect(ledger: sqlite3.Connection, provider: str, *, audits: int) -> bool:
    """Weigh the window that is open, and the one before it: a new one does not forgive at once."""
    begun = audits % WINDOW or WINDOW
    rows = ledger.execute(_COMPARABLE, (METHOD, provider, begun + WINDOW))
    gaps = [gap if is_comparable else None for gap, is_comparable in rows][::-1]
    windows = gaps[:-begun], gaps[-begun:]
    weighed = ([gap for gap in window if gap is not None] for window in windows)
    return any(_judge(struct.pack(f"<{len(gaps)}q", *gaps)) for gaps in weighed)


@lru_cache(maxsize=MAX_JUDGED)
def _judge(gaps: bytes) -> bool:
    """Return what a window of packed gaps says; a page of a provider asks each time."""
    return is_suspect(struct.unpack(f"<{len(gaps) // 8}q", gaps))
