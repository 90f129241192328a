"""Audits as the faces show them: of a receipt, of a provider, and what they come to."""

from __future__ import annotations

import sqlite3

from ledger.audits import AuditTotals


def load_audit_totals(ledger: sqlite3.Connection, provider: str) -> AuditTotals:
    """Return what the audits of a provider come to."""
    row = ledger.execute(
        "SELECT passed, failed, tokens, exact_tokens, mean_gap_micros FROM audit_totals"
        " WHERE provider = ?",
        (provider,),
    ).fetchone()
    if row is None:
        return AuditTotals()
    return AuditTotals(
        passed=row[0], failed=row[1], tokens=row[2], exact_tokens=row[3], gap_micros=row[4]
    )
