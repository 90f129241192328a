"""What an account earned and spent: the lines of a statement, and their totals.

A line is a receipt in which the account is the client, the provider, or both. A coordinator takes
no part in the price, so what it merely coordinated is no line of its statement. Amounts are integer
micros.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from ledger.transaction import ReceiptPayload, TransactionId

LineRole = Literal["both", "client", "provider"]


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """What a statement says of one receipt."""

    leaf: int
    receipt_id: str
    job_id: str
    transaction_id: str
    role: LineRole
    """Whether the account spent (`client`), earned (`provider`), or paid itself (`both`)."""
    counterparty: str
    """The other side; the account itself where it is both."""
    model: str
    unit_type: Literal["gpu_seconds", "tokens"]
    units_micros: int
    price_micros: int


class Sum(msgspec.Struct, frozen=True, kw_only=True):
    """Totals of some lines. Tokens and GPU seconds are never added to each other."""

    lines: int = 0
    price_micros: int = 0
    tokens_micros: int = 0
    gpu_seconds_micros: int = 0


class Share(msgspec.Struct, frozen=True, kw_only=True):
    """Totals of the lines with one model, or with one counterparty."""

    name: str
    earned: Sum
    spent: Sum


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """Totals of a statement; earned as provider, spent as client."""

    earned: Sum
    spent: Sum
    by_model: tuple[Share, ...]
    """Sorted by name, as text."""
    by_counterparty: tuple[Share, ...]


def find_role(account: str, *, client: str, provider: str) -> LineRole | None:
    """Return what `account` is to a receipt, or None if the receipt is not its business."""
    if account == client:
        return "both" if client == provider else "client"
    return "provider" if account == provider else None


def build_line(
    account: str, payload: ReceiptPayload, leaf: int, transaction_id: TransactionId
) -> Line | None:
    """Return what a statement of `account` says of a receipt; None if it is not its business."""
    role = find_role(account, client=payload.client, provider=payload.provider)
    if role is None:
        return None
    return Line(
        leaf=leaf,
        receipt_id=payload.receipt_id,
        job_id=payload.job_id,
        transaction_id=transaction_id.hex(),
        role=role,
        counterparty=payload.client if role == "provider" else payload.provider,
        model=payload.model,
        unit_type=payload.unit_type,
        units_micros=payload.units_micros,
        price_micros=payload.price_micros,
    )


def sum_lines(lines: Sequence[Line]) -> Totals:
    """Add up the lines of a statement."""
    return Totals(
        earned=_add_up(line for line in lines if line.role != "client"),
        spent=_add_up(line for line in lines if line.role != "provider"),
        by_model=_divide((line.model, line) for line in lines),
        by_counterparty=_divide((line.counterparty, line) for line in lines),
    )


def _add_up(lines: Iterable[Line]) -> Sum:
    count = price = tokens = gpu_seconds = 0
    for line in lines:
        count += 1
        price += line.price_micros
        if line.unit_type == "tokens":
            tokens += line.units_micros
        else:
            gpu_seconds += line.units_micros
    return Sum(
        lines=count, price_micros=price, tokens_micros=tokens, gpu_seconds_micros=gpu_seconds
    )


def _divide(named: Iterable[tuple[str, Line]]) -> tuple[Share, ...]:
    groups: dict[str, list[Line]] = {}
    for name, line in named:
        groups.setdefault(name, []).append(line)
    return tuple(
        Share(
            name=name,
            earned=_add_up(line for line in lines if line.role != "client"),
            spent=_add_up(line for line in lines if line.role != "provider"),
        )
        for name, lines in sorted(groups.items())
    )
