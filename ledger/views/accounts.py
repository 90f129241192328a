"""What one account did on the chain, and what it is on this node."""

from __future__ import annotations

import sqlite3

from ledger.store.chain import load_tip
from ledger.store.reading import require_history
from ledger.store.sessions import Connection
from ledger.views.models import AccountView

MAX_MINERS = 20
MAX_WAITING = 10_000
"""Transactions without a block, newest first, that are looked through for an account's first."""


def load_account(
    ledger: sqlite3.Connection, market: Connection, account: str
) -> AccountView | None:
    """Return an account that is in a receipt, audits, coordinates, seals or sealed, or mines here.

    Raises:
        HistoryMissingError: its totals may lack receipts.
    """
    require_history(ledger)
    authorities = load_tip(ledger).authority_set
    member = next((m for m in authorities.members if m.account == account), None)
    former = _find_former_name(ledger, account) if member is None else None
    coordinates = authorities.allows_coordinator(account)
    miners = _load_miners(market, account)
    sums = _load_sums(ledger, account)
    is_auditor = _is_auditor(ledger, account)
    is_known = sums or coordinates or miners or is_auditor or member or former is not None
    if not (is_known or _waits(market, account)):
        return None
    earned, earned_micros, spent, spent_micros, coordinated = sums or (0, 0, 0, 0, 0)
    return AccountView(
        account=account,
        earned_receipts=earned,
        earned_micros=earned_micros,
        spent_receipts=spent,
        spent_micros=spent_micros,
        coordinated_receipts=coordinated,
        authority=member.name if member is not None else None,
        coordinates=coordinates,
        miners=miners,
        is_auditor=is_auditor,
        former_authority=former,
    )


def took_part(ledger: sqlite3.Connection, market: Connection, account: str) -> bool:
    """Tell whether an account stands in a receipt, final or pending, or has audited one."""
    return (
        _load_sums(ledger, account) is not None
        or _is_auditor(ledger, account)
        or _waits(market, account)
    )


def _is_auditor(ledger: sqlite3.Connection, account: str) -> bool:
    row = ledger.execute("SELECT EXISTS (SELECT 1 FROM audits WHERE auditor = ?)", (account,))
    return bool(row.fetchone()[0])


def _load_sums(ledger: sqlite3.Connection, account: str) -> tuple[int, int, int, int, int] | None:
    row = ledger.execute(
        "SELECT earned_receipts, earned_micros, spent_receipts, spent_micros,"
        " coordinated_receipts FROM accounts WHERE account = ?",
        (account,),
    ).fetchone()
    return (row[0], row[1], row[2], row[3], row[4]) if row else None


def _find_former_name(ledger: sqlite3.Connection, account: str) -> str | None:
    row = ledger.execute(
        "SELECT json_extract(member.value, '$.name') FROM authority_sets,"
        " json_each(authority_sets.document, '$.members') AS member"
        " WHERE json_extract(member.value, '$.account') = ? ORDER BY epoch DESC LIMIT 1",
        (account,),
    ).fetchone()
    return row[0] if row else None


def _load_miners(market: Connection, account: str) -> tuple[str, ...]:
    rows = market.execute(
        "SELECT miner_id FROM miners WHERE account = ? ORDER BY miner_id LIMIT ?",
        (account, MAX_MINERS),
    )
    return tuple(row[0] for row in rows)


def _waits(market: Connection, account: str) -> bool:
    row = market.execute(
        "SELECT EXISTS (SELECT 1 FROM (SELECT client, provider FROM mempool ORDER BY seq DESC"
        " LIMIT ?) AS newest WHERE client = ? OR provider = ?)",
        (MAX_WAITING, account, account),
    ).fetchone()
    return bool(row[0])
