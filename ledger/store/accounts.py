"""What each account earned, spent and coordinated in all, kept as blocks enter ledger.db.

Totals are sums over final receipts, so it does not matter in which order blocks come: history may
be filled in behind the newest ones. They stop at the largest integer of SQLite instead of failing,
since a price is what a coordinator writes, and no price may keep a block out of the file.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from ledger.store.rows import Figures, read_figures

MAX_TOTAL = 2**63 - 1

SCHEMA = (
    "CREATE TABLE accounts (account TEXT PRIMARY KEY, earned_receipts INTEGER NOT NULL,"
    " earned_micros INTEGER NOT NULL, spent_receipts INTEGER NOT NULL,"
    " spent_micros INTEGER NOT NULL, coordinated_receipts INTEGER NOT NULL) STRICT"
)

_ADD = (
    "INSERT INTO accounts VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (account) DO UPDATE SET"
    " earned_receipts = earned_receipts + excluded.earned_receipts,"
    # A sum that is too large becomes a real number, which is larger than any integer.
    " earned_micros = min(earned_micros + excluded.earned_micros, 9223372036854775807),"
    " spent_receipts = spent_receipts + excluded.spent_receipts,"
    " spent_micros = min(spent_micros + excluded.spent_micros, 9223372036854775807),"
    " coordinated_receipts = coordinated_receipts + excluded.coordinated_receipts"
)


def add_to_accounts(connection: sqlite3.Connection, receipts: Iterable[Figures]) -> None:
    """Add receipts to the totals of those who took part."""
    # Few deal with each other in one block, so what they did together is added up first.
    deals: dict[tuple[str, str, str], list[int]] = {}
    for receipt in receipts:
        deal = deals.setdefault((receipt.provider, receipt.client, receipt.coordinator), [0, 0])
        deal[0] += 1
        deal[1] += receipt.price_micros
    totals: dict[str, list[int]] = {}
    for (provider, client, coordinator), (count, price_micros) in deals.items():
        for account, place in ((provider, 0), (client, 2)):
            sums = totals.setdefault(account, [0, 0, 0, 0, 0])
            sums[place] += count
            sums[place + 1] = min(sums[place + 1] + price_micros, MAX_TOTAL)
        totals.setdefault(coordinator, [0, 0, 0, 0, 0])[4] += count
    connection.executemany(_ADD, [(account, *sums) for account, sums in totals.items()])


def fill_accounts(connection: sqlite3.Connection) -> None:
    """Add up all receipts of a file that had no totals."""
    for batch in read_figures(connection):
        add_to_accounts(connection, batch)
