"""Transactions that prove themselves: what anybody may hand to a node, without a key.

A change of the authority set carries the authorities' signatures, evidence the accused's. Both are
verified whole before they are stored. What waits is few and bounded: the authorities make changes,
but whoever voted twice could make evidence against itself for ever.
"""

from __future__ import annotations

from ledger.block import Tip
from ledger.errors import InvalidTransactionError, LedgerError, MarketError
from ledger.rules import verify_transaction
from ledger.store.mempool import count_submissions, insert_transaction, is_waiting
from ledger.store.sessions import Connection
from ledger.transaction import AuditPayload, ReceiptPayload, Transaction, parse_transaction

MAX_WAITING_SUBMISSIONS = 100
"""Changes and evidence that wait for a block at once."""


def parse_submission(envelope: bytes) -> Transaction:
    """Parse an envelope that somebody hands in. Says nothing yet about its validity.

    Raises:
        MarketError: TRANSACTION_INVALID, or TRANSACTION_TYPE_REFUSED for a receipt or an audit.
    """
    try:
        transaction = parse_transaction(envelope)
    except InvalidTransactionError as error:
        raise MarketError("TRANSACTION_INVALID", str(error)) from error
    if isinstance(transaction.payload, ReceiptPayload | AuditPayload):
        raise MarketError(
            "TRANSACTION_TYPE_REFUSED",
            f"type: expected authority_set or evidence, got {transaction.type}; receipts and "
            "audits are put into blocks by their coordinator",
        )
    return transaction


def verify_submission(transaction: Transaction, tip: Tip) -> None:
    """Check whether a transaction may stand in the block after `tip`.

    Raises:
        MarketError: TRANSACTION_INVALID.
    """
    try:
        verify_transaction(transaction, tip)
    except LedgerError as error:
        raise MarketError("TRANSACTION_INVALID", str(error)) from error


def store_submission(connection: Connection, transaction: Transaction, *, now_ms: int) -> None:
    """Let a verified transaction wait for a block; a second time changes nothing.

    Raises:
        MarketError: RATE_LIMIT_EXCEEDED, too many wait.
    """
    if is_waiting(connection, transaction.id):
        return
    if count_submissions(connection, MAX_WAITING_SUBMISSIONS) >= MAX_WAITING_SUBMISSIONS:
        raise MarketError(
            "RATE_LIMIT_EXCEEDED",
            f"{MAX_WAITING_SUBMISSIONS} changes and pieces of evidence wait for a block already",
        )
    insert_transaction(connection, transaction, now_ms=now_ms)
