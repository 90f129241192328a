"""A receipt as one line of data: what JSON and CSV twins of lists hold."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields

from explorer_ui.format import iso
from ledger.views import ReceiptView

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""How a cell begins that a spreadsheet would run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """The facts of a receipt. Amounts are integer micros; what is pending has no place yet."""

    receipt_id: str
    state: str
    block: int | None
    block_time: str | None
    leaf: int | None
    job_id: str
    client: str
    provider: str
    miner_id: str | None
    """The provider's name on this node, where it is known here."""
    coordinator: str
    model: str
    prompt_tokens: int
    completion_tokens: int
    unit_type: str
    units_micros: int
    price_micros: int
    started_at: str
    completed_at: str


COLUMNS = tuple(field.name for field in fields(Line))


def build_line(receipt: ReceiptView) -> Line:
    """Return the line of a receipt."""
    payload, transaction = receipt.payload, receipt.transaction
    return Line(
        receipt_id=payload.receipt_id,
        state=transaction.finality,
        block=transaction.height,
        block_time=iso(transaction.time_ms) if transaction.height is not None else None,
        leaf=transaction.leaf,
        job_id=payload.job_id,
        client=payload.client,
        provider=payload.provider,
        miner_id=receipt.miner_id,
        coordinator=payload.coordinator,
        model=payload.model,
        prompt_tokens=payload.prompt_tokens,
        completion_tokens=payload.completion_tokens,
        unit_type=payload.unit_type,
        units_micros=payload.units_micros,
        price_micros=payload.price_micros,
        started_at=iso(payload.started_at_ms),
        completed_at=iso(payload.completed_at_ms),
    )


def write_lines(lines: Iterable[Line]) -> bytes:
    """Return lines as CSV, without their heads."""
    return write_csv(astuple(line) for line in lines)


def write_csv(rows: Iterable[Iterable[object]]) -> bytes:
    """Return rows as CSV (RFC 4180). No cell is a formula: one that looks so gets an apostrophe."""
    text = io.StringIO()
    csv.writer(text).writerows([_neutralise(cell) for cell in row] for row in rows)
    return text.getvalue().encode()


def _neutralise(cell: object) -> object:
    if isinstance(cell, str) and cell.startswith(_FORMULA):
        return "'" + cell
    return "" if cell is None else cell
