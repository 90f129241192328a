"""Statements as JSON and as CSV.

In CSV a cell that a spreadsheet would take for a formula is given an apostrophe in front, since
names in receipts are written by strangers.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from typing import Literal

import msgspec

from api.render import Json, format_decimal, format_micros, format_time
from ledger.encoding import MAX_INTEGER
from ledger.totals import Share, Sum
from ledger.views import StatementLineView, StatementView

CSV_COLUMNS = (
    *("timestamp", "block_height", "receipt_id", "job_id", "transaction_id", "role"),
    *("counterparty", "model", "unit_type", "units", "price"),
)

Noun = Literal["counterparty", "model"]

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def render_head(statement: StatementView) -> bytes:
    """Return the beginning of a Statement, which a comma and its other fields follow."""
    head: Json = {
        "account": statement.account,
        "period": _render_period(statement),
        "totals": {
            "earned": _render_sum(statement.earned),
            "spent": _render_sum(statement.spent),
        },
    }
    return msgspec.json.encode(head).removesuffix(b"}")


def render_shares(shares: Iterable[Share], noun: Noun) -> bytes:
    """Return totals of each model or counterparty as the inside of an array."""
    return b",".join(msgspec.json.encode(_render_share(share, noun)) for share in shares)


def render_lines(lines: Iterable[StatementLineView]) -> bytes:
    """Return lines as the inside of an array."""
    return b",".join(msgspec.json.encode(_render_line(line)) for line in lines)


def _render_period(statement: StatementView) -> Json:
    period: Json = {}
    if statement.from_ms > 0:
        period["from"] = format_time(statement.from_ms)
    if statement.to_ms < MAX_INTEGER:
        period["to"] = format_time(statement.to_ms)
    if statement.first_height <= statement.last_height:
        period["first_height"] = statement.first_height
        period["last_height"] = statement.last_height
    period["tree_size_before"] = statement.first_leaf
    period["tree_size_after"] = statement.end_leaf
    return period


def _render_share(share: Share, noun: Noun) -> Json:
    return {
        noun: share.name,
        "earned": _render_sum(share.earned),
        "spent": _render_sum(share.spent),
    }


def _render_sum(total: Sum) -> Json:
    return {
        "receipts": total.lines,
        "price": format_micros(total.price_micros),
        "price_micros": total.price_micros,
        "tokens": format_micros(total.tokens_micros),
        "gpu_seconds": format_micros(total.gpu_seconds_micros),
    }


def _render_line(view: StatementLineView) -> Json:
    line = view.line
    return {
        "receipt_id": line.receipt_id,
        "job_id": line.job_id,
        "transaction_id": line.transaction_id,
        "timestamp": format_time(view.time_ms),
        "block_height": view.height,
        "role": line.role,
        "counterparty": line.counterparty,
        "model": line.model,
        "unit_type": line.unit_type,
        "units": format_micros(line.units_micros),
        "price": format_micros(line.price_micros),
        "price_micros": line.price_micros,
    }


def write_lines(lines: Iterable[StatementLineView]) -> bytes:
    """Return lines as CSV, in the order of CSV_COLUMNS."""
    return write_rows(
        (
            format_time(view.time_ms),
            view.height,
            view.line.receipt_id,
            view.line.job_id,
            view.line.transaction_id,
            view.line.role,
            _neutralise(view.line.counterparty),
            _neutralise(view.line.model),
            view.line.unit_type,
            format_decimal(view.line.units_micros),
            format_decimal(view.line.price_micros),
        )
        for view in lines
    )


def write_rows(rows: Iterable[Iterable[object]]) -> bytes:
    """Return rows of CSV as RFC 4180 has them, in UTF-8."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def _neutralise(cell: str) -> str:
    return "'" + cell if cell.startswith(_FORMULA) else cell
