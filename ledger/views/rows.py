"""Rows of the databases as read models."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence

from ledger.authorities import AuthoritySet
from ledger.block import parse_certificate, parse_header
from ledger.payloads import find_receipt_id
from ledger.store.chain import load_authority_set
from ledger.store.sessions import Connection
from ledger.transaction import Transaction, parse_transaction
from ledger.views.models import BlockView, ReceiptView, TransactionView, VoteView

PENDING_CURSOR = 1 << 52
"""Pending transactions sort above every leaf of the tree."""


def view_final(row: sqlite3.Row) -> TransactionView:
    """Return a transaction of the chain; the row also holds its block's time_ms."""
    transaction = parse_transaction(row["envelope"].encode())
    return TransactionView(
        id=transaction.id.hex(),
        type=transaction.type,
        finality="final",
        cursor=row["leaf"],
        leaf=row["leaf"],
        height=row["height"],
        time_ms=row["time_ms"],
        size_bytes=len(transaction.envelope),
        payload=transaction.payload,
        signatures=transaction.signatures,
    )


def view_pending(transaction: Transaction, *, seq: int, received_at_ms: int) -> TransactionView:
    """Return how a transaction is shown that waits in the mempool at place `seq`."""
    return TransactionView(
        id=transaction.id.hex(),
        type=transaction.type,
        finality="pending",
        cursor=PENDING_CURSOR + seq,
        leaf=None,
        height=None,
        time_ms=received_at_ms,
        size_bytes=len(transaction.envelope),
        payload=transaction.payload,
        signatures=transaction.signatures,
    )


def view_waiting(row: sqlite3.Row) -> TransactionView:
    """Return a transaction of the mempool."""
    return view_pending(
        parse_transaction(row["envelope"].encode()),
        seq=row["seq"],
        received_at_ms=row["received_at_ms"],
    )


def view_receipts(market: Connection, transactions: Sequence[TransactionView]) -> list[ReceiptView]:
    """Return receipts with the names of the miners that ran their jobs on this node."""
    ids = [find_receipt_id(transaction.payload) for transaction in transactions]
    if not ids:
        return []
    marks = ", ".join("?" * len(ids))
    rows = market.execute(
        f"SELECT receipt_id, miner_id FROM jobs WHERE receipt_id IN ({marks})",  # noqa: S608 - marks
        ids,
    )
    names = {row[0]: row[1] for row in rows}
    return [
        ReceiptView(transaction=transaction, miner_id=names.get(receipt_id))
        for transaction, receipt_id in zip(transactions, ids, strict=True)
    ]


def view_blocks(ledger: sqlite3.Connection, rows: Iterable[sqlite3.Row]) -> list[BlockView]:
    """Return blocks of the chain."""
    sets: dict[str, AuthoritySet] = {}
    return [_view_block(ledger, row, sets) for row in rows]


def _view_block(
    ledger: sqlite3.Connection, row: sqlite3.Row, sets: dict[str, AuthoritySet]
) -> BlockView:
    header = parse_header(row["header"].encode())
    certificate = parse_certificate(row["certificate"].encode())
    if (authorities := sets.get(header.set_hash)) is None:
        # Most blocks beside each other were certified by one set.
        authorities = load_authority_set(ledger, bytes.fromhex(header.set_hash))
        sets[header.set_hash] = authorities
    signatures = dict(certificate.votes)
    return BlockView(
        height=header.height,
        hash=row["hash"].hex(),
        prev_hash=header.prev_hash,
        time_ms=header.time_ms,
        transactions=row["transactions"],
        first_leaf=row["first_leaf"],
        tree_size=header.tree_size,
        tree_root=header.tree_root,
        set_hash=header.set_hash,
        next_set_hash=header.next_set_hash,
        proposer=header.proposer,
        proposer_name=_name_of(authorities, header.proposer),
        size_bytes=row["size_bytes"],
        view=certificate.view,
        votes=tuple(
            VoteView(
                index=index,
                account=member.account,
                name=member.name,
                signature=signatures.get(index),
            )
            for index, member in enumerate(authorities.members)
        ),
        quorum=authorities.quorum,
    )


def _name_of(authorities: AuthoritySet, account: str) -> str:
    return next((m.name for m in authorities.members if m.account == account), account)
