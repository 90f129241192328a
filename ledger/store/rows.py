"""What a block puts into the tables of ledger.db, derived from its bytes alone.

The store writes these rows, and fsck holds what is stored against them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import NamedTuple

from ledger.authorities import hash_authority_set
from ledger.block import Block
from ledger.encoding import encode
from ledger.transaction import AuditPayload, AuthoritySetPayload, EvidencePayload, ReceiptPayload

BACKFILL_ROWS = 10_000
"""Receipts of an older file that are added up at a time."""


class Figures(NamedTuple):
    """What a receipt adds to the sums that a file keeps."""

    client: str
    provider: str
    coordinator: str
    model: str
    unit_type: str
    units_micros: int
    price_micros: int
    time_ms: int
    """Of its block."""


def block_figures(block: Block) -> tuple[int, int, int, int]:
    """Return time_ms, first leaf, number of transactions and size in bytes."""
    count = len(block.transactions)
    size_bytes = sum(len(transaction.envelope) for transaction in block.transactions)
    return block.header.time_ms, block.header.tree_size - count, count, size_bytes


def transaction_rows(block: Block, first_leaf: int) -> list[tuple[object, ...]]:
    """Rows of `transactions` for one block."""
    return [
        (first_leaf + i, bytes(t.id), block.header.height, t.type, t.envelope.decode())
        for i, t in enumerate(block.transactions)
    ]


def receipt_figures(block: Block) -> list[Figures]:
    """What the receipts of one block add to sums, in their order."""
    return [
        Figures(
            client=p.client,
            provider=p.provider,
            coordinator=p.coordinator,
            model=p.model,
            unit_type=p.unit_type,
            units_micros=p.units_micros,
            price_micros=p.price_micros,
            time_ms=block.header.time_ms,
        )
        for transaction in block.transactions
        if isinstance(p := transaction.payload, ReceiptPayload)
    ]


def read_figures(connection: sqlite3.Connection) -> Iterator[list[Figures]]:
    """The same of all receipts in a file, in their order, many at a time."""
    rows = connection.execute(
        "SELECT client, provider, coordinator, model, unit_type, units_micros, price_micros,"
        " b.time_ms FROM receipts r CROSS JOIN transactions t USING (leaf)"
        " CROSS JOIN blocks b USING (height) ORDER BY r.leaf"
    )
    while batch := rows.fetchmany(BACKFILL_ROWS):
        yield [Figures._make(row) for row in batch]


def receipt_rows(block: Block, first_leaf: int) -> list[tuple[object, ...]]:
    """Rows of `receipts` for one block."""
    rows: list[tuple[object, ...]] = []
    for i, transaction in enumerate(block.transactions):
        if not isinstance(p := transaction.payload, ReceiptPayload):
            continue
        rows.append(
            (
                first_leaf + i,
                p.receipt_id,
                p.job_id,
                p.client,
                p.provider,
                p.coordinator,
                p.model,
                p.unit_type,
                p.units_micros,
                p.price_micros,
                p.started_at_ms,
                p.completed_at_ms,
            )
        )
    return rows


def audit_rows(block: Block, first_leaf: int) -> list[tuple[object, ...]]:
    """Rows of `audits` for one block, without what its receipt tells."""
    return [
        (
            first_leaf + i,
            payload.receipt_id,
            payload.auditor,
            payload.verdict,
            payload.tokens,
            payload.exact_tokens,
            payload.mean_gap_micros,
            payload.method,
            payload.model_digest,
        )
        for i, payload in enumerate(transaction.payload for transaction in block.transactions)
        if isinstance(payload, AuditPayload)
    ]


def evidence_rows(block: Block, first_leaf: int) -> list[tuple[object, ...]]:
    """Rows of `evidence` for one block."""
    return [
        (first_leaf + i, payload.accused, payload.height, payload.view)
        for i, payload in enumerate(transaction.payload for transaction in block.transactions)
        if isinstance(payload, EvidencePayload)
    ]


def set_rows(block: Block, first_leaf: int) -> list[tuple[object, ...]]:
    """Rows of `authority_sets` for one block: the set it makes certifies the blocks above it."""
    return [
        (
            payload.authority_set.epoch,
            hash_authority_set(payload.authority_set),
            block.header.height + 1,
            encode(payload.authority_set).decode(),
            first_leaf + i,
        )
        for i, payload in enumerate(transaction.payload for transaction in block.transactions)
        if isinstance(payload, AuthoritySetPayload)
    ]
