"""The mempool in node.db: transactions that are durable here and not final yet.

The columns of receipts are empty for other types; they are what lists of receipts are narrowed by.
"""

from __future__ import annotations

from collections.abc import Iterable

from ledger.store.sessions import Connection, insert_row
from ledger.transaction import ReceiptPayload, Transaction


def insert_transaction(connection: Connection, transaction: Transaction, *, now_ms: int) -> int:
    """Let a transaction wait for a block. Returns its place."""
    payload = transaction.payload
    columns: tuple[str | None, ...] = (None, None, None, None)
    if isinstance(payload, ReceiptPayload):
        columns = (payload.receipt_id, payload.client, payload.provider, payload.model)
    return insert_row(
        connection,
        "INSERT INTO mempool (id, receipt_id, client, provider, model, received_at_ms, envelope)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            bytes(transaction.id),
            *columns,
            now_ms,
            transaction.envelope.decode(),
        ),
    )


def is_waiting(connection: Connection, transaction_id: bytes) -> bool:
    """Tell whether a transaction waits for a block."""
    row = connection.execute(
        "SELECT EXISTS (SELECT 1 FROM mempool WHERE id = ?)", (transaction_id,)
    ).fetchone()
    return bool(row[0])


def list_mempool(
    connection: Connection, *, limit: int, after: int = 0
) -> list[tuple[int, bytes, str | None, bytes]]:
    """Return the oldest waiting transactions as (seq, id, receipt id or None, envelope)."""
    rows = connection.execute(
        "SELECT seq, id, receipt_id, envelope FROM mempool WHERE seq > ? ORDER BY seq LIMIT ?",
        (after, limit),
    )
    return [(row[0], bytes(row[1]), row[2], row[3].encode()) for row in rows]


def count_submissions(connection: Connection, limit: int) -> int:
    """Return how many transactions wait that are no coordinator's, counted up to `limit`."""
    (count,) = connection.execute(
        "SELECT count(*) FROM (SELECT 1 FROM mempool WHERE receipt_id IS NULL"
        " AND json_extract(envelope, '$.payload.type') <> 'audit' LIMIT ?) AS found",
        (limit,),
    ).fetchone()
    return int(count)


def count_waiting(connection: Connection, limit: int) -> int:
    """Return how many transactions wait, counted up to `limit`."""
    (count,) = connection.execute(
        "SELECT count(*) FROM (SELECT 1 FROM mempool LIMIT ?) AS found", (limit,)
    ).fetchone()
    return int(count)


def find_oldest_ms(connection: Connection) -> int | None:
    """Return when the transaction that waits longest was received, None if none waits."""
    row = connection.execute("SELECT received_at_ms FROM mempool ORDER BY seq LIMIT 1").fetchone()
    return int(row[0]) if row else None


def remove_from_mempool(connection: Connection, ids: Iterable[bytes]) -> None:
    """Forget transactions that are final."""
    connection.executemany("DELETE FROM mempool WHERE id = ?", [(i,) for i in ids])


def take_from_mempool(
    connection: Connection, transaction_id: bytes
) -> tuple[str | None, int] | None:
    """Forget one transaction; returns its receipt id and when it came, None if it was not there."""
    row = connection.execute(
        "DELETE FROM mempool WHERE id = ? RETURNING receipt_id, received_at_ms", (transaction_id,)
    ).fetchone()
    return (row[0], int(row[1])) if row else None
