"""Audits in ledger.db: that their receipts are there, and what they come to for each provider.

An audit's receipt must stand in a lower block. A chain that began at a pinned checkpoint may not
have that block yet; then the audit is taken as the quorum took it, without the name of its
provider, and held against its receipt when history is whole (`settle_audits`).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from ledger.audits import AuditSubject, validate_subject
from ledger.block import Block
from ledger.encoding import MAX_INTEGER
from ledger.errors import InvalidTransactionError, LedgerError, StoreError
from ledger.payloads import AuditPayload
from ledger.store.reading import load_pin
from ledger.transaction import Transaction, parse_transaction

_COUNTED = (
    "SELECT provider, sum(verdict = 'pass'), sum(verdict = 'fail'), sum(tokens),"
    " sum(exact_tokens), sum(mean_gap_micros) FROM audits WHERE provider IS NOT NULL"
    " GROUP BY provider"
)
"""What `audit_totals` must hold."""


def find_subject(
    connection: sqlite3.Connection, receipt_id: str, *, below_leaf: int = MAX_INTEGER
) -> AuditSubject | None:
    """Return the receipt with this id, if it is on the chain below a leaf."""
    row = connection.execute(
        "SELECT coordinator, provider, json_extract(envelope, '$.payload.model_digest')"
        " FROM receipts CROSS JOIN transactions USING (leaf) WHERE receipt_id = ? AND leaf < ?",
        (receipt_id, below_leaf),
    ).fetchone()
    if row is None:
        return None
    return AuditSubject(coordinator=row[0], provider=row[1], model_digest=row[2])


def is_due(connection: sqlite3.Connection, transaction: Transaction) -> bool:
    """Tell whether the chain is far enough for a transaction: an audit waits for its receipt.

    Raises:
        InvalidTransactionError: an audit that no block may ever hold.
    """
    payload = transaction.payload
    if not isinstance(payload, AuditPayload):
        return True
    known = connection.execute(
        "SELECT EXISTS (SELECT 1 FROM audits WHERE receipt_id = ? AND auditor = ?)",
        (payload.receipt_id, payload.auditor),
    ).fetchone()
    if known[0]:
        raise InvalidTransactionError(
            f"audit: {payload.auditor} has audited {payload.receipt_id} already"
        )
    subject = find_subject(connection, payload.receipt_id)
    if subject is not None:
        validate_subject(payload, subject)
    return subject is not None


def check_audits(
    connection: sqlite3.Connection, block: Block, first_leaf: int
) -> list[AuditSubject | None]:
    """Return what the audits of a block are about; None for one that can't be told yet.

    Raises:
        InvalidTransactionError: a receipt isn't below the block, or isn't the auditor's to audit.
    """
    subjects: list[AuditSubject | None] = []
    for transaction in block.transactions:
        if not isinstance(payload := transaction.payload, AuditPayload):
            continue
        subject = find_subject(connection, payload.receipt_id, below_leaf=first_leaf)
        if subject is not None:
            validate_subject(payload, subject)
        elif not _is_history_missing(connection, block.header.height):
            raise InvalidTransactionError(
                f"audit receipt_id: expected a receipt of a lower block, got {payload.receipt_id}"
            )
        subjects.append(subject)
    return subjects


def _is_history_missing(connection: sqlite3.Connection, height: int) -> bool:
    """Tell whether blocks below this one are still being fetched."""
    pin = load_pin(connection)
    return pin is not None and height > pin.height


def insert_audits(
    connection: sqlite3.Connection,
    rows: Sequence[Sequence[object]],
    subjects: Sequence[AuditSubject | None],
) -> None:
    """Store the audits of a block (`audit_rows`), and add them to their providers' totals."""
    for row, subject in zip(rows, subjects, strict=True):
        connection.execute(
            "INSERT INTO audits (leaf, receipt_id, auditor, verdict, tokens, exact_tokens,"
            " mean_gap_micros, method, model_digest) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            row,
        )
        if subject is not None:
            _settle(connection, row, subject)


def settle_audits(connection: sqlite3.Connection) -> None:
    """Hold audits against receipts that were missing when they were stored.

    Raises:
        StoreError: a block holds an audit that no block may hold.
    """
    waiting = connection.execute(
        "SELECT a.*, b.first_leaf, t.envelope FROM audits a JOIN transactions t USING (leaf)"
        " JOIN blocks b USING (height) WHERE a.provider IS NULL ORDER BY leaf"
    ).fetchall()
    for row in waiting:
        leaf, receipt_id = row["leaf"], row["receipt_id"]
        subject = find_subject(connection, receipt_id, below_leaf=row["first_leaf"])
        try:
            if subject is None:
                raise InvalidTransactionError(f"its receipt {receipt_id} is not on the chain")
            payload = parse_transaction(row["envelope"].encode()).payload
            assert isinstance(payload, AuditPayload), "rows of audits are made of audits"
            validate_subject(payload, subject)
        except LedgerError as error:
            raise StoreError(
                f"ledger.db: the audit of leaf {leaf} is not valid: {error}; the network that the "
                "checkpoint was taken from breaks the rules"
            ) from error
        _settle(connection, row, subject)


def _settle(connection: sqlite3.Connection, row: Sequence[object], subject: AuditSubject) -> None:
    """Say whose answer a stored audit is about, and add it to what is known of them."""
    connection.execute(
        "UPDATE audits SET provider = ?, same_model = model_digest = ? WHERE leaf = ?",
        (subject.provider, subject.model_digest, row[0]),
    )
    _add_to_totals(connection, subject.provider, row)


def _add_to_totals(connection: sqlite3.Connection, provider: str, row: Sequence[object]) -> None:
    _leaf, _receipt_id, _auditor, verdict, tokens, exact_tokens, mean_gap_micros, *_ = row
    passed = int(verdict == "pass")
    connection.execute(
        "INSERT INTO audit_totals VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (provider) DO UPDATE SET"
        " passed = passed + excluded.passed, failed = failed + excluded.failed,"
        " tokens = tokens + excluded.tokens, exact_tokens = exact_tokens + excluded.exact_tokens,"
        " mean_gap_micros = mean_gap_micros + excluded.mean_gap_micros",
        (provider, passed, 1 - passed, tokens, exact_tokens, mean_gap_micros),
    )


def verify_audit_totals(connection: sqlite3.Connection, *, is_whole: bool) -> None:
    """Check (for fsck) that totals and providers are what audits and receipts make them.

    Raises:
        StoreError: they are not.
    """
    unsettled = "" if is_whole else " AND a.provider IS NOT NULL"
    (wrong,) = connection.execute(
        "SELECT count(*) FROM audits a LEFT JOIN receipts r USING (receipt_id)"  # noqa: S608 - ours
        " LEFT JOIN transactions t ON t.leaf = r.leaf WHERE (a.provider IS NOT r.provider"
        " OR a.same_model IS NOT"
        " (a.model_digest = json_extract(t.envelope, '$.payload.model_digest')))"
        f"{unsettled}"
    ).fetchone()
    if wrong:
        raise StoreError(f"ledger.db: audits: {wrong} do not say what their receipt says")
    (wrong,) = connection.execute(
        f"WITH counted AS ({_COUNTED}) SELECT count(*) FROM"  # noqa: S608 - our words
        " (SELECT * FROM (SELECT * FROM audit_totals EXCEPT SELECT * FROM counted) UNION ALL"
        " SELECT * FROM (SELECT * FROM counted EXCEPT SELECT * FROM audit_totals))"
    ).fetchone()
    if wrong:
        raise StoreError("ledger.db: audit_totals: they are not the sums over the audits")
