"""Pages of transactions and receipts, pending ones first, then newest first.

A page is one range of one index, in its own order: nothing is counted, skipped or sorted, so every
page of a list costs the same. What is still pending is read before what is final, so a transaction
that becomes final in between is seen twice rather than not at all; the final one counts.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ledger.store.sessions import Connection
from ledger.views.models import MAX_PAGE, ReceiptFilter, TransactionView
from ledger.views.periods import find_period
from ledger.views.rows import PENDING_CURSOR, view_final, view_waiting

_END = 1 << 62


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Which part of a list is asked for."""

    limit: int
    before: int | None = None
    """Rows below this cursor."""
    after: int | None = None
    """The nearest rows above this cursor; it counts if both are given."""

    @property
    def rows(self) -> int:
        """How many rows to read: to SQLite a negative limit is none at all."""
        return max(0, min(self.limit, MAX_PAGE))

    @property
    def order(self) -> str:
        """Away from where the page begins."""
        return "DESC" if self.after is None else "ASC"

    def spell_range(self) -> tuple[int, int]:
        """Return the cursors between which it lies, both exclusive."""
        if self.after is not None:
            return self.after, _END
        return -1, _END if self.before is None else self.before


@dataclass(frozen=True, slots=True, kw_only=True)
class _Leaves:
    """A range of the tree: the blocks of a period."""

    first: int = 0
    end: int = PENDING_CURSOR
    with_pending: bool = True
    """Whether what has no block yet belongs to it."""


def list_transactions(
    ledger: sqlite3.Connection, market: Connection, page: Page
) -> list[TransactionView]:
    """Return transactions of every type."""
    pending = _select_pending(market, "", (), page)
    final = _select_final(ledger, "transactions o", "", (), page, _Leaves())
    return _choose([*pending, *final], page)


def list_block_transactions(
    ledger: sqlite3.Connection, height: int, page: Page
) -> list[TransactionView]:
    """Return those of one block, in its order; none of a block that is not here."""
    block = ledger.execute(
        "SELECT first_leaf, transactions, time_ms FROM blocks WHERE height = ?", (height,)
    ).fetchone()
    if block is None:
        return []
    # One bound on each side: of two, SQLite would seek by either, and look at what is between.
    first = block["first_leaf"] if page.after is None else max(block["first_leaf"], page.after + 1)
    rows = ledger.execute(
        "SELECT *, ? AS time_ms FROM transactions WHERE leaf >= ? AND leaf < ?"
        " ORDER BY leaf LIMIT ?",
        (block["time_ms"], first, block["first_leaf"] + block["transactions"], page.rows),
    )
    return [view_final(row) for row in rows]


def list_receipts(
    ledger: sqlite3.Connection, market: Connection, wanted: ReceiptFilter, page: Page
) -> list[TransactionView]:
    """Return the transactions of receipts.

    Raises:
        HistoryMissingError: they are narrowed by time, and blocks are missing.
    """
    rows: list[TransactionView] = []
    leaves = _find_leaves(ledger, wanted)
    for columns in list_spellings(market, wanted):
        conditions = "".join(f" AND {column} = ?" for column in columns)
        values = tuple(columns.values())
        if leaves.with_pending:
            rows += _select_pending(
                market, f" AND receipt_id IS NOT NULL{conditions}", values, page
            )
        rows += _select_final(ledger, _name_source(columns), conditions, values, page, leaves)
    return _choose(rows, page)


def list_audits(
    ledger: sqlite3.Connection, market: Connection, receipt_id: str, page: Page
) -> list[TransactionView]:
    """Return the audits of a receipt."""
    condition = (
        " AND id IN (SELECT transaction_id FROM audits INDEXED BY audits_receipt"
        " WHERE receipt_id = ? AND transaction_id IS NOT NULL)"
    )
    pending = _select_pending(market, condition, (receipt_id,), page)
    source = "audits o INDEXED BY audits_receipt"
    final = _select_final(ledger, source, " AND o.receipt_id = ?", (receipt_id,), page, _Leaves())
    return _choose([*pending, *final], page)


def list_provider_audits(
    ledger: sqlite3.Connection, provider: str, page: Page
) -> list[TransactionView]:
    """Return final audits of a provider's answers."""
    source = "audits o INDEXED BY audits_provider"
    rows = _select_final(ledger, source, " AND o.provider = ?", (provider,), page, _Leaves())
    return _choose(rows, page)


def list_spellings(market: Connection, wanted: ReceiptFilter) -> list[dict[str, str]]:
    """Return the columns and values to look for, in each way in which they may be written.

    A miner's receipts stand under its account, or under its name while it had no key. One read for
    each keeps every read in the order of its index.
    """
    plain = {"client": wanted.client, "provider": wanted.provider, "model": wanted.model}
    columns = {column: value for column, value in plain.items() if value is not None}
    if wanted.provider is None:
        return [columns]
    names = {wanted.provider, _account_of(market, wanted.provider)}
    return [columns | {"provider": name} for name in sorted(names)]


def _account_of(market: Connection, miner_id: str) -> str:
    row = market.execute("SELECT account FROM miners WHERE miner_id = ?", (miner_id,)).fetchone()
    return str(row[0]) if row and row[0] else miner_id


def _name_source(columns: Mapping[str, str]) -> str:
    # Left alone, SQLite may take an index with fewer columns and look at every row in it.
    index = f" INDEXED BY receipts_{'_'.join(columns)}" if columns else ""
    return f"receipts o{index}"


def _find_leaves(ledger: sqlite3.Connection, wanted: ReceiptFilter) -> _Leaves:
    if wanted.from_ms is None and wanted.to_ms is None:
        return _Leaves()
    to_ms = _END if wanted.to_ms is None else wanted.to_ms
    period = find_period(ledger, wanted.from_ms or 0, to_ms)
    # What has no block yet is later than every block.
    return _Leaves(first=period.first_leaf, end=period.end_leaf, with_pending=wanted.to_ms is None)


def _select_pending(
    market: Connection, conditions: str, values: Sequence[object], page: Page
) -> list[TransactionView]:
    above, below = page.spell_range()
    rows = market.execute(
        "SELECT * FROM mempool WHERE seq > ? AND seq < ?"  # noqa: S608 - conditions hold only marks
        f"{conditions} ORDER BY seq {page.order} LIMIT ?",
        (above - PENDING_CURSOR, below - PENDING_CURSOR, *values, page.rows),
    )
    return [view_waiting(row) for row in rows]


def _select_final(
    ledger: sqlite3.Connection,
    source: str,
    conditions: str,
    values: Sequence[object],
    page: Page,
    leaves: _Leaves,
) -> list[TransactionView]:
    above, below = page.spell_range()
    # Ordered by the leaf of what is searched: by any other leaf, equal as it is, SQLite would sort.
    rows = ledger.execute(
        f"SELECT t.*, b.time_ms FROM {source}"  # noqa: S608 - conditions hold only marks
        " CROSS JOIN transactions t ON t.leaf = o.leaf CROSS JOIN blocks b ON b.height = t.height"
        f" WHERE o.leaf > ? AND o.leaf < ?{conditions} ORDER BY o.leaf {page.order} LIMIT ?",
        (max(above, leaves.first - 1), min(below, leaves.end), *values, page.rows),
    )
    return [view_final(row) for row in rows]


def _choose(rows: Sequence[TransactionView], page: Page) -> list[TransactionView]:
    """Return the rows of the page, each once; what is pending and final is final."""
    final = {row.id for row in rows if row.finality == "final"}
    unique = [row for row in rows if row.finality == "final" or row.id not in final]
    ordered = sorted(unique, key=lambda row: row.cursor, reverse=page.after is None)[: page.rows]
    return ordered if page.after is None else ordered[::-1]
