"""Statements read from the chain: one range of leaves, two indexes, a piece at a time.

Within the leaves of the period the lines of an account come from the indexes on client and
provider, which are ordered by leaf. What is final never changes, so a statement of any length is
read piece by piece, with nothing held in between; its proof is one document, and bounded.
"""

from __future__ import annotations

import sqlite3
from typing import Literal

import msgspec

from ledger import merkle
from ledger.encoding import encode
from ledger.errors import StatementTooLongError
from ledger.statement import MAX_STATEMENT_LINES
from ledger.store.chain import read_node
from ledger.totals import Line, Share, Sum, find_role
from ledger.views.bundles import load_epochs, load_header
from ledger.views.models import StatementLineView, StatementView
from ledger.views.periods import Period, find_period

_HALF_BITS = 30
_ADDED = (
    "price_micros",
    "CASE WHEN unit_type = 'tokens' THEN units_micros END",
    "CASE WHEN unit_type = 'gpu_seconds' THEN units_micros END",
)
_SUMS = "count(*), " + ", ".join(
    f"sum(({amount}) >> {_HALF_BITS}), sum(({amount}) & {(1 << _HALF_BITS) - 1})"
    for amount in _ADDED
)
"""Sums in two halves, since a sum of the largest amounts is no integer of SQLite's any more."""


def load_statement(
    ledger: sqlite3.Connection, account: str, *, from_ms: int, to_ms: int
) -> StatementView:
    """Return period and sums of an account for block times in [from_ms, to_ms).

    Raises:
        HistoryMissingError: lines may be missing.
    """
    period = find_period(ledger, from_ms, to_ms)
    leaves = (period.first_leaf, period.end_leaf)
    return StatementView(
        account=account,
        from_ms=from_ms,
        to_ms=to_ms,
        first_height=period.first_height,
        last_height=period.last_height,
        first_leaf=period.first_leaf,
        end_leaf=period.end_leaf,
        earned=_add_up(ledger, "provider", account, leaves),
        spent=_add_up(ledger, "client", account, leaves),
    )


def list_lines(
    ledger: sqlite3.Connection, statement: StatementView, *, after: int | None, limit: int
) -> list[StatementLineView]:
    """Return the next lines above leaf `after`, by ascending leaf. What is final never changes."""
    first = statement.first_leaf if after is None else max(statement.first_leaf, after + 1)
    found: dict[int, StatementLineView] = {}
    for column in ("client", "provider"):
        rows = ledger.execute(
            "SELECT r.leaf, r.receipt_id, r.job_id, r.client, r.provider, r.model, r.unit_type,"  # noqa: S608 - named above
            " r.units_micros, r.price_micros, t.id, t.height, b.time_ms"
            f" FROM receipts r INDEXED BY receipts_{column} CROSS JOIN transactions t"
            " ON t.leaf = r.leaf CROSS JOIN blocks b ON b.height = t.height"
            f" WHERE r.{column} = ? AND r.leaf >= ? AND r.leaf < ? ORDER BY r.leaf LIMIT ?",
            (statement.account, first, statement.end_leaf, limit),
        )
        found |= {row["leaf"]: _view_line(statement.account, row) for row in rows}
    return [found[leaf] for leaf in sorted(found)[:limit]]


def list_shares(
    ledger: sqlite3.Connection,
    statement: StatementView,
    by: Literal["counterparty", "model"],
    *,
    after: str,
    limit: int,
) -> list[Share]:
    """Return the next totals with names above `after`: of each model, or of each other side."""
    earned, spent = (
        _add_up_each(
            ledger,
            statement,
            side,
            by=other if by == "counterparty" else "model",
            after=after,
            limit=limit,
        )
        for side, other in (("provider", "client"), ("client", "provider"))
    )
    # Each has all its names up to its last one, so the first of both together are complete.
    names = sorted({*earned, *spent})[:limit]
    return [
        Share(name=name, earned=earned.get(name, Sum()), spent=spent.get(name, Sum()))
        for name in names
    ]


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
    role = find_role(account, client=row["client"], provider=row["provider"])
    assert role is not None, "it was looked for by this account"
    line = Line(
        leaf=row["leaf"],
        receipt_id=row["receipt_id"],
        job_id=row["job_id"],
        transaction_id=row["id"].hex(),
        role=role,
        counterparty=row["client"] if role == "provider" else row["provider"],
        model=row["model"],
        unit_type=row["unit_type"],
        units_micros=row["units_micros"],
        price_micros=row["price_micros"],
    )
    return StatementLineView(line=line, height=row["height"], time_ms=row["time_ms"])


def _add_up(ledger: sqlite3.Connection, column: str, account: str, leaves: tuple[int, int]) -> Sum:
    row = ledger.execute(
        f"SELECT {_SUMS} FROM receipts INDEXED BY receipts_{column}"  # noqa: S608 - named above
        f" WHERE {column} = ? AND leaf >= ? AND leaf < ?",
        (account, *leaves),
    ).fetchone()
    return _read_sum(row)


def _add_up_each(
    ledger: sqlite3.Connection,
    statement: StatementView,
    column: str,
    *,
    by: str,
    after: str,
    limit: int,
) -> dict[str, Sum]:
    """Return sums by the values of `by`, in their order. SQLite sorts, and spills what is much."""
    rows = ledger.execute(
        f"SELECT {_SUMS}, {by} FROM receipts INDEXED BY receipts_{column}"  # noqa: S608 - named above
        f" WHERE {column} = ? AND leaf >= ? AND leaf < ? AND {by} > ?"
        f" GROUP BY {by} ORDER BY {by} LIMIT ?",
        (statement.account, statement.first_leaf, statement.end_leaf, after, limit),
    )
    return {row[by]: _read_sum(row) for row in rows}


def _read_sum(row: sqlite3.Row) -> Sum:
    count, *halves = row[: 1 + 2 * len(_ADDED)]
    pairs = zip(halves[::2], halves[1::2], strict=True)
    amounts = [((high or 0) << _HALF_BITS) + (low or 0) for high, low in pairs]
    return Sum(
        lines=count,
        price_micros=amounts[0],
        tokens_micros=amounts[1],
        gpu_seconds_micros=amounts[2],
    )
