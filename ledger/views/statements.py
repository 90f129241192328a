"""Statements read from the chain: one range of leaves, two indexes, no counting.

Within the leaves of the period the lines of an account come from the indexes on client and
provider, which are ordered by leaf.
"""

from __future__ import annotations

import sqlite3

import msgspec

from ledger import merkle
from ledger.encoding import encode
from ledger.errors import StatementTooLongError, StoreError
from ledger.statement import MAX_STATEMENT_LINES
from ledger.store.chain import read_node
from ledger.totals import build_line, sum_lines
from ledger.transaction import ReceiptPayload, parse_transaction
from ledger.views.bundles import load_epochs, load_header
from ledger.views.models import StatementLineView, StatementView
from ledger.views.periods import Period, find_period


def load_statement(
    ledger: sqlite3.Connection, account: str, *, from_ms: int, to_ms: int
) -> StatementView:
    """Return the lines and totals of an account for block times in [from_ms, to_ms).

    Raises:
        StatementTooLongError: it has more than MAX_STATEMENT_LINES.
        HistoryMissingError: lines may be missing.
    """
    period = find_period(ledger, from_ms, to_ms)
    lines = [
        _view_line(account, row) for row in _select(ledger, account, period, MAX_STATEMENT_LINES)
    ]
    return StatementView(
        account=account,
        from_ms=from_ms,
        to_ms=to_ms,
        first_height=period.first_height,
        last_height=period.last_height,
        first_leaf=period.first_leaf,
        end_leaf=period.end_leaf,
        lines=tuple(lines),
        totals=sum_lines([line.line for line in lines]),
    )


def load_statement_bundle(
    ledger: sqlite3.Connection, account: str, *, from_ms: int, to_ms: int
) -> bytes | None:
    """Return the canonical statement bundle of the same lines, or None where there are none.

    Raises:
        StatementTooLongError: it has more than MAX_STATEMENT_LINES.
        HistoryMissingError: lines may be missing.
    """
    rows = _select(ledger, account, find_period(ledger, from_ms, to_ms), MAX_STATEMENT_LINES)
    if not rows:
        return None
    header, certificate = load_header(ledger, rows[-1]["height"])
    opening, opening_certificate = load_header(ledger, rows[0]["height"])
    parents = [load_header(ledger, opening.height - 1)[0]] if opening.height > 1 else []
    known: dict[tuple[int, int], bytes] = {}

    def read(level: int, index: int) -> bytes:
        # Neighbouring paths share most of their nodes.
        if (level, index) not in known:
            known[level, index] = read_node(ledger, level, index)
        return known[level, index]

    def build_entry(row: sqlite3.Row) -> dict[str, object]:
        path = merkle.build_inclusion_path(row["leaf"], header.tree_size, read)
        return {
            "envelope": msgspec.Raw(row["envelope"].encode()),
            "index": row["leaf"],
            "path": [node.hex() for node in path],
        }

    return encode(
        {
            "v": 1,
            "account": account,
            "from_ms": from_ms,
            "to_ms": to_ms,
            "entries": [build_entry(row) for row in rows],
            "opening": {
                "header": opening,
                "certificate": msgspec.Raw(opening_certificate),
                "parent": parents,
            },
            "header": header,
            "certificate": msgspec.Raw(certificate),
            "epochs": list(load_epochs(ledger, header.height)),
        }
    )


def _select(
    ledger: sqlite3.Connection, account: str, period: Period, limit: int
) -> list[sqlite3.Row]:
    """Return the rows of an account by ascending leaf, each once.

    Raises:
        StatementTooLongError: there are more than `limit`.
    """
    found: dict[int, sqlite3.Row] = {}
    # One read for each index keeps both in its order; an OR would sort, or read the whole table.
    for column in ("client", "provider"):
        rows = ledger.execute(
            "SELECT t.leaf, t.height, t.envelope, b.time_ms FROM receipts r"  # noqa: S608 - named above
            " JOIN transactions t USING (leaf) JOIN blocks b USING (height)"
            f" WHERE r.{column} = ? AND r.leaf >= ? AND r.leaf < ? ORDER BY r.leaf LIMIT ?",
            (account, period.first_leaf, period.end_leaf, limit + 1),
        )
        found |= {row["leaf"]: row for row in rows}
    ordered = [found[leaf] for leaf in sorted(found)]
    if len(ordered) > limit:
        begins_ms, ends_ms = ordered[0]["time_ms"], ordered[limit]["time_ms"]
        raise StatementTooLongError(
            f"statement: expected at most {limit} lines",
            fits_until_ms=ends_ms if ends_ms > begins_ms else None,
        )
    return ordered


def _view_line(account: str, row: sqlite3.Row) -> StatementLineView:
    transaction = parse_transaction(row["envelope"].encode())
    payload = transaction.payload
    line = (
        build_line(account, payload, row["leaf"], transaction.id)
        if isinstance(payload, ReceiptPayload)
        else None
    )
    if line is None:
        raise StoreError(f"ledger.db: the row of leaf {row['leaf']} is not its receipt's; run fsck")
    return StatementLineView(line=line, height=row["height"], time_ms=row["time_ms"])
