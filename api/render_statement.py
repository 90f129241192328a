"""Statements as JSON and as CSV.

In CSV a cell that a spreadsheet would take for a formula is given an apostrophe in front, since
names in receipts are written by strangers.
"""

from __future__ import annotations

import csv
import io
from typing import Literal

from api.render import Json, format_decimal, format_micros, format_time
from ledger.encoding import MAX_INTEGER
from ledger.totals import Share, Sum
from ledger.views import StatementLineView, StatementView

CSV_COLUMNS = (
    *("timestamp", "block_height", "receipt_id", "job_id", "transaction_id", "role"),
    *("counterparty", "model", "unit_type", "units", "price"),
)

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def render_statement(statement: StatementView) -> Json:
    """Return a Statement."""
    totals = statement.totals
    return {
        "account": statement.account,
        "period": _render_period(statement),
        "totals": {"earned": _render_sum(totals.earned), "spent": _render_sum(totals.spent)},
        "by_model": [_render_share(share, "model") for share in totals.by_model],
        "by_counterparty": [
            _render_share(share, "counterparty") for share in totals.by_counterparty
        ],
        "lines": [_render_line(line) for line in statement.lines],
    }


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


def _render_share(share: Share, noun: Literal["counterparty", "model"]) -> Json:
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


def write_csv(statement: StatementView) -> bytes:
    """Return one row of names and one for each line, as RFC 4180 has them, in UTF-8."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(CSV_COLUMNS)
    for view in statement.lines:
        line = view.line
        writer.writerow(
            (
                format_time(view.time_ms),
                view.height,
                line.receipt_id,
                line.job_id,
                line.transaction_id,
                line.role,
                _neutralise(line.counterparty),
                _neutralise(line.model),
                line.unit_type,
                format_decimal(line.units_micros),
                format_decimal(line.price_micros),
            )
        )
    return text.getvalue().encode()


def _neutralise(cell: str) -> str:
    return "'" + cell if cell.startswith(_FORMULA) else cell
