"""Audits as the faces show them: what those of a provider come to."""

from __future__ import annotations

import sqlite3
from collections import OrderedDict

from ledger.audits import AuditTotals
from ledger.replay import METHOD, WINDOW, is_suspect
from ledger.store.reading import require_history

MAX_REMEMBERED = 1_024
"""Verdicts that are remembered, each of one provider."""

_NEWEST = (
    "SELECT b.hash, a.leaf FROM audits a INDEXED BY audits_provider"
    " CROSS JOIN transactions t ON t.leaf = a.leaf CROSS JOIN blocks b ON b.height = t.height"
    " WHERE a.provider = ? ORDER BY a.leaf DESC LIMIT 1"
)
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


_verdicts: OrderedDict[tuple[bytes, int], bool] = OrderedDict()
"""By the newest audit of a provider: its block, whose hash stands for all before it, and leaf."""


def _is_suspect(ledger: sqlite3.Connection, provider: str, *, audits: int) -> bool:
    """Return whether a provider is suspect; weighed once for each audit, since pages ask often."""
    newest = tuple(ledger.execute(_NEWEST, (provider,)).fetchone())
    verdict = _verdicts.get(newest)
    if verdict is None:
        verdict = _verdicts[newest] = _weigh(ledger, provider, audits)
        if len(_verdicts) > MAX_REMEMBERED:
            _verdicts.popitem(last=False)
    return verdict


def _weigh(ledger: sqlite3.Connection, provider: str, audits: int) -> bool:
    """Weigh the window that is open, and the one before it: a new one does not forgive at once."""
    begun = audits % WINDOW or WINDOW
    rows = ledger.execute(_COMPARABLE, (METHOD, provider, begun + WINDOW))
    gaps = [gap if is_comparable else None for gap, is_comparable in rows][::-1]
    windows = gaps[:-begun], gaps[-begun:]
    return any(is_suspect([gap for gap in window if gap is not None]) for window in windows)
