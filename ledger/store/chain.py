"""ledger.db: the public chain. Nothing in this file is private; anybody may be handed it.

A block enters with its certificate, its transactions, the tree nodes they complete and the counters
in one transaction, so every committed state of the file is a whole chain; or one that began at a
pinned checkpoint, with its history below it growing towards that. Tree nodes are numbered
in order (leaf i is 2i, inner nodes lie between their leaves): one integer is the key.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

from ledger import merkle
from ledger.authorities import hash_authority_set
from ledger.block import (
    Block,
    Certificate,
    Genesis,
    Tip,
    VerifiedBlock,
    hash_genesis,
    hash_header,
    parse_certificate,
    parse_header,
    verify_certificate,
)
from ledger.encoding import encode
from ledger.errors import InvalidBlockError, LedgerError, StoreError
from ledger.payloads import find_receipt_id
from ledger.pin import Pin
from ledger.rules import validate_block
from ledger.store.appending import adopt_pin, append_block, append_history, append_verified
from ledger.store.audits import is_due
from ledger.store.database import Database
from ledger.store.events import FinalPlace
from ledger.store.reading import (
    find_missing,
    load_authority_set,
    load_block,
    load_genesis,
    load_history_tip,
    load_tip,
    locate_node,
    read_node,
)
from ledger.store.schema import migrations
from ledger.transaction import Transaction

__all__ = [
    "ChainStore",
    "check_tail",
    "is_due",
    "load_authority_set",
    "load_block",
    "load_genesis",
    "load_tip",
    "locate_node",
    "migrations",
    "read_node",
]


class ChainStore:
    """The chain of one network in one file. Only the node that applies blocks writes."""

    def __init__(self, path: Path, genesis: Genesis) -> None:
        """Open the file or create it.

        Raises:
            StoreError: the file holds another network, or its newest block does not verify.
        """
        self.genesis = genesis
        self._known: tuple[int, Tip] | None = None
        """The tip after so many commits."""
        self.database = Database(path, migrations)
        try:
            self.database.write(lambda c: adopt_genesis(c, genesis, path)).result()
            check_tail(self.database.reader, path)
        except StoreError:
            self.database.close()
            raise

    def tip(self) -> Tip:
        """Return what the next block is checked against."""
        version, known = self.database.version, self._known
        # A reader in a transaction sees the file as it was at its beginning.
        if version % 2 or self.database.reader.in_transaction:
            return load_tip(self.database.reader)
        if known is None or known[0] != version:
            # Every request asks, and blocks are rarer. Nobody else writes into this file.
            known = self._known = version, load_tip(self.database.reader)
        return known[1]

    def recent_tip(self) -> Tip:
        """Return the tip, or the one before it while a block is stored: for who asks often."""
        known = self._known
        if known is not None and known[0] + 1 == self.database.version:
            return known[1]
        return self.tip()

    def read_node(self, level: int, index: int) -> bytes:
        """Return the hash of a full subtree."""
        return read_node(self.database.reader, level, index)

    def append(self, block: Block, certificate: Certificate) -> Future[None]:
        """Store a block that was validated and certified. Resolves when it is durable."""
        return self.database.write(lambda c: append_block(c, block, certificate, load_tip(c), {}))

    def append_verified(self, batch: Sequence[VerifiedBlock]) -> Future[Tip]:
        """Store blocks of another node, all or none; resolves to the new tip when it is durable.

        Everything that needs the chain is checked in the same transaction, so nothing enters that
        is not verified. Blocks that are here already are skipped.

        The future raises:
            InvalidBlockError: one does not extend the chain.
            InvalidTransactionError: a transaction or its receipt is on the chain already.
        """
        return self.database.write(lambda c: append_verified(c, batch))

    def append_history(self, batch: Sequence[VerifiedBlock]) -> Future[Tip]:
        """Store blocks that follow `history_tip`, as `append_verified` does those after the tip.

        With the pinned block the history is whole, and from then on nothing tells that it was not.

        The future raises as above, and:
            StoreError: history does not lead to the pinned block.
        """
        return self.database.write(lambda c: append_history(c, batch))

    def adopt_pin(self, pin: Pin) -> Future[None]:
        """Let an empty chain begin after a pinned block. A second time changes nothing.

        The future raises:
            StoreError: the chain has begun already, or holds another block at that height.
        """
        return self.database.write(lambda c: adopt_pin(c, pin))

    def history_tip(self) -> Tip:
        """Return up to where the chain is whole from genesis."""
        return load_history_tip(self.database.reader)

    def missing(self) -> range | None:
        """Return the heights of the blocks below a pinned one that are not here yet."""
        return find_missing(self.database.reader)

    def contains(self, transaction_id: bytes, receipt_id: str | None) -> bool:
        """Tell whether a transaction, or another one with its receipt id, is final."""
        return contains(self.database.reader, transaction_id, receipt_id)

    def is_due(self, transaction: Transaction) -> bool:
        """Tell whether the chain is far enough for a transaction: an audit waits for its receipt.

        Raises:
            InvalidTransactionError: an audit that no block may ever hold.
        """
        return is_due(self.database.reader, transaction)

    def locate_receipt(self, receipt_id: str) -> FinalPlace | None:
        """Return where a receipt is final."""
        row = self.database.reader.execute(
            "SELECT t.id, t.height, b.time_ms FROM receipts r JOIN transactions t USING (leaf)"
            " JOIN blocks b USING (height) WHERE r.receipt_id = ?",
            (receipt_id,),
        ).fetchone()
        return FinalPlace(transaction_id=row[0], height=row[1], time_ms=row[2]) if row else None

    def validate(self, block: Block, tip: Tip) -> None:
        """Check a block completely, apart from its certificate and the clock.

        Raises:
            InvalidBlockError, InvalidTransactionError: see `validate_next_block`.
        """
        with self.database.snapshot() as connection:  # one look at the file, not one a receipt
            validate_next_block(connection, block, tip)

    def is_accused(self, account: str) -> bool:
        """Tell whether evidence against an account is final since it is in the current set."""
        row = self.database.reader.execute(
            "SELECT EXISTS (SELECT 1 FROM evidence WHERE accused = ? AND height >= "
            "(SELECT from_height FROM authority_sets ORDER BY epoch DESC LIMIT 1))",
            (account,),
        ).fetchone()
        return bool(row[0])

    def close(self) -> None:
        """Close the file."""
        self.database.close()


def adopt_genesis(connection: sqlite3.Connection, genesis: Genesis, path: Path) -> None:
    """Make an empty database that of one network, or check that it is.

    Raises:
        StoreError: it holds another network.
    """
    digest = hash_genesis(genesis)
    row = connection.execute("SELECT hash FROM genesis").fetchone()
    if row is None:
        document = encode(genesis).decode()
        authority_set = genesis.authority_set
        connection.execute("INSERT INTO genesis VALUES (1, ?, ?)", (digest, document))
        connection.execute(
            "INSERT INTO authority_sets VALUES (0, ?, 1, ?, NULL)",
            (hash_authority_set(authority_set), encode(authority_set).decode()),
        )
        connection.execute("INSERT INTO counters VALUES ('receipts', 0)")
    elif row[0] != digest:
        raise StoreError(
            f"{path}: holds network {row[0].hex()[:16]}…, but genesis.json names "
            f"{digest.hex()[:16]}…; use the genesis file that belongs to this data directory"
        )


def contains(connection: sqlite3.Connection, transaction_id: bytes, receipt_id: str | None) -> bool:
    """Tell whether a transaction, or another one with its receipt id, is final.

    Only receipts have a receipt id; of other types None is asked for.
    """
    row = connection.execute(
        "SELECT EXISTS (SELECT 1 FROM transactions WHERE id = ?)"
        " OR EXISTS (SELECT 1 FROM receipts WHERE receipt_id = ?)",
        (transaction_id, receipt_id),
    ).fetchone()
    return bool(row[0])


def validate_next_block(connection: sqlite3.Connection, block: Block, tip: Tip) -> None:
    """Check a block on the tip of this chain completely, apart from its certificate and the clock.

    Raises:
        InvalidBlockError: it does not extend the chain, or holds what is final already.
        InvalidTransactionError: one of its transactions is not valid.
    """
    for transaction in block.transactions:
        if contains(connection, transaction.id, find_receipt_id(transaction.payload)):
            raise InvalidBlockError(f"transaction {transaction.id.hex()}: it is final already")
        if not is_due(connection, transaction):
            raise InvalidBlockError(
                f"audit {transaction.id.hex()}: its receipt is not in a lower block"
            )
    validate_block(block, tip, lambda *node: read_node(connection, *node))


def check_tail(connection: sqlite3.Connection, path: Path) -> None:
    """Verify the newest block: header hash, certificate and tree root.

    Raises:
        StoreError: the file is damaged.
    """
    try:
        row = connection.execute(
            "SELECT hash, header, certificate FROM blocks ORDER BY height DESC LIMIT 1"
        ).fetchone()
        if row is None:
            return
        header = parse_header(row[1].encode())
        verify_certificate(
            parse_certificate(row[2].encode()),
            header=header,
            authority_set=load_authority_set(connection, bytes.fromhex(header.set_hash)),
        )
        root = merkle.compute_root(header.tree_size, lambda *node: read_node(connection, *node))
    except (LedgerError, sqlite3.DatabaseError, UnicodeDecodeError) as error:
        raise StoreError(f"{path}: the newest block does not verify: {error}; run fsck") from error
    if hash_header(header) != row[0] or root.hex() != header.tree_root:
        raise StoreError(f"{path}: the newest block does not match its hash or tree; run fsck")
