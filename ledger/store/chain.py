"""ledger.db: the public chain. Nothing in this file is private; anybody may be handed it.

A block enters with its certificate, its transactions, the tree nodes they complete and the counters
in one transaction, so every committed state of the file is a whole chain. Tree nodes are numbered
in order (leaf i is 2i, inner nodes lie between their leaves): one integer is the key.
"""

from __future__ import annotations

import sqlite3
from concurrent.futures import Future
from pathlib import Path

import sqlite_utils
from sqlite_utils.migrations import Migrations

from ledger import merkle
from ledger.authorities import AuthoritySet, hash_authority_set
from ledger.block import (
    Block,
    Certificate,
    Genesis,
    Tip,
    advance_tip,
    build_genesis_tip,
    hash_genesis,
    hash_header,
    parse_certificate,
    parse_genesis,
    parse_header,
    verify_certificate,
)
from ledger.encoding import decode, encode
from ledger.errors import InvalidBlockError, InvalidTransactionError, LedgerError, StoreError
from ledger.payloads import find_receipt_id
from ledger.rules import validate_block
from ledger.store.database import Database
from ledger.store.rows import (
    block_figures,
    evidence_rows,
    receipt_rows,
    set_rows,
    transaction_rows,
)
from ledger.transaction import parse_transaction

migrations = Migrations("ledger")


@migrations()
def m001_chain(db: sqlite_utils.Database) -> None:
    """Blocks, transactions, receipts, tree nodes, authority sets and counters."""
    for statement in (
        "CREATE TABLE genesis (id INTEGER PRIMARY KEY CHECK (id = 1), hash BLOB NOT NULL,"
        " document TEXT NOT NULL) STRICT",
        "CREATE TABLE blocks (height INTEGER PRIMARY KEY, hash BLOB NOT NULL UNIQUE,"
        " time_ms INTEGER NOT NULL, first_leaf INTEGER NOT NULL, transactions INTEGER NOT NULL,"
        " size_bytes INTEGER NOT NULL, header TEXT NOT NULL, certificate TEXT NOT NULL) STRICT",
        "CREATE TABLE transactions (leaf INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE,"
        " height INTEGER NOT NULL REFERENCES blocks, type TEXT NOT NULL,"
        " envelope TEXT NOT NULL) STRICT",
        "CREATE TABLE receipts (leaf INTEGER PRIMARY KEY REFERENCES transactions,"
        " receipt_id TEXT NOT NULL UNIQUE, job_id TEXT NOT NULL, client TEXT NOT NULL,"
        " provider TEXT NOT NULL, coordinator TEXT NOT NULL, model TEXT NOT NULL,"
        " unit_type TEXT NOT NULL, units_micros INTEGER NOT NULL, price_micros INTEGER NOT NULL,"
        " started_at_ms INTEGER NOT NULL, completed_at_ms INTEGER NOT NULL) STRICT",
        "CREATE INDEX receipts_client ON receipts (client)",
        "CREATE INDEX receipts_provider ON receipts (provider)",
        "CREATE INDEX receipts_model ON receipts (model)",
        "CREATE TABLE tree_nodes (position INTEGER PRIMARY KEY, hash BLOB NOT NULL) STRICT",
        "CREATE TABLE authority_sets (epoch INTEGER PRIMARY KEY, hash BLOB NOT NULL UNIQUE,"
        " from_height INTEGER NOT NULL, document TEXT NOT NULL) STRICT",
        "CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT",
    ):
        db.execute(statement)


@migrations()
def m002_authorities(db: sqlite_utils.Database) -> None:
    """Which transaction made a set, and evidence by the accused."""
    for statement in (
        "ALTER TABLE authority_sets ADD COLUMN leaf INTEGER REFERENCES transactions",
        "CREATE TABLE evidence (leaf INTEGER PRIMARY KEY REFERENCES transactions,"
        " accused TEXT NOT NULL, height INTEGER NOT NULL, view INTEGER NOT NULL) STRICT",
        "CREATE INDEX evidence_accused ON evidence (accused)",
        "CREATE UNIQUE INDEX authority_sets_leaf ON authority_sets (leaf)",
    ):
        db.execute(statement)


def locate_node(level: int, index: int) -> int:
    """Return the in-order number of a tree node, the key of its row."""
    return ((2 * index + 1) << level) - 1


class ChainStore:
    """The chain of one network in one file. Only the node that applies blocks writes."""

    def __init__(self, path: Path, genesis: Genesis) -> None:
        """Open the file or create it.

        Raises:
            StoreError: the file holds another network, or its newest block does not verify.
        """
        self.genesis = genesis
        self.database = Database(path, migrations)
        try:
            self.database.write(lambda c: adopt_genesis(c, genesis, path)).result()
            check_tail(self.database.reader, path)
        except StoreError:
            self.database.close()
            raise

    def tip(self) -> Tip:
        """Return what the next block is checked against."""
        return load_tip(self.database.reader)

    def read_node(self, level: int, index: int) -> bytes:
        """Return the hash of a full subtree."""
        return read_node(self.database.reader, level, index)

    def append(self, block: Block, certificate: Certificate) -> Future[None]:
        """Store a block that was validated and certified. Resolves when it is durable."""
        return self.database.write(lambda c: append_block(c, block, certificate))

    def contains(self, transaction_id: bytes, receipt_id: str | None) -> bool:
        """Tell whether a transaction, or another one with its receipt id, is final."""
        return contains(self.database.reader, transaction_id, receipt_id)

    def validate(self, block: Block, tip: Tip) -> None:
        """Check a block completely, apart from its certificate and the clock.

        Raises:
            InvalidBlockError, InvalidTransactionError: see `validate_next_block`.
        """
        validate_next_block(self.database.reader, block, tip)

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
    validate_block(block, tip, lambda *node: read_node(connection, *node))


def read_node(connection: sqlite3.Connection, level: int, index: int) -> bytes:
    """Return the hash of the full subtree (level, index).

    Raises:
        StoreError: it is not in the file.
    """
    row = connection.execute(
        "SELECT hash FROM tree_nodes WHERE position = ?", (locate_node(level, index),)
    ).fetchone()
    if row is None:
        raise StoreError(f"ledger.db: tree node ({level}, {index}) is missing; run fsck")
    return bytes(row[0])


def load_genesis(connection: sqlite3.Connection) -> Genesis:
    """Return the genesis document of the file."""
    row = connection.execute("SELECT document FROM genesis").fetchone()
    if row is None:
        raise StoreError("ledger.db: holds no genesis; it was not made by a node")
    return parse_genesis(row[0].encode())


def load_authority_set(connection: sqlite3.Connection, set_hash: bytes) -> AuthoritySet:
    """Return the authority set with this hash."""
    row = connection.execute(
        "SELECT document FROM authority_sets WHERE hash = ?", (set_hash,)
    ).fetchone()
    if row is None:
        raise StoreError(f"ledger.db: authority set {set_hash.hex()} is missing; run fsck")
    return decode(row[0].encode(), AuthoritySet)


def load_tip(connection: sqlite3.Connection) -> Tip:
    """Return the state after the newest block."""
    genesis = load_genesis(connection)
    row = connection.execute("SELECT header FROM blocks ORDER BY height DESC LIMIT 1").fetchone()
    if row is None:
        return build_genesis_tip(genesis)
    header = parse_header(row[0].encode())
    return Tip(
        genesis_hash=bytes.fromhex(header.genesis),
        height=header.height,
        hash=hash_header(header),
        time_ms=header.time_ms,
        tree_size=header.tree_size,
        authority_set=load_authority_set(connection, bytes.fromhex(header.next_set_hash)),
        limits=genesis.limits,
    )


def load_block(connection: sqlite3.Connection, height: int) -> tuple[Block, Certificate] | None:
    """Return a block with its transactions and certificate, or None above the tip."""
    row = connection.execute(
        "SELECT hash, header, certificate, first_leaf, transactions FROM blocks WHERE height = ?",
        (height,),
    ).fetchone()
    if row is None:
        return None
    envelopes = connection.execute(
        "SELECT envelope FROM transactions WHERE leaf >= ? AND leaf < ? ORDER BY leaf",
        (row[3], row[3] + row[4]),
    )
    block = Block(
        hash=row[0],
        header=parse_header(row[1].encode()),
        transactions=tuple(parse_transaction(envelope.encode()) for (envelope,) in envelopes),
    )
    return block, parse_certificate(row[2].encode())


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


def append_block(connection: sqlite3.Connection, block: Block, certificate: Certificate) -> None:
    """Store a block that was validated and certified, in the caller's transaction.

    Raises:
        StoreError: it does not extend the stored chain.
        InvalidTransactionError: a transaction or receipt is stored already.
    """
    header, first_leaf = block.header, block.header.tree_size - len(block.transactions)
    tip = load_tip(connection)
    if header.height != tip.height + 1 or header.prev_hash != tip.hash.hex():
        raise StoreError(
            f"ledger.db: expected block {tip.height + 1} on {tip.hash.hex()}, "
            f"got block {header.height} on {header.prev_hash}"
        )
    following = advance_tip(tip, block).authority_set
    if hash_authority_set(following).hex() != header.next_set_hash:
        raise StoreError(
            f"ledger.db: block {header.height} names next set {header.next_set_hash}, "
            f"its transactions make {hash_authority_set(following).hex()}"
        )
    figures = (*block_figures(block), encode(header).decode(), encode(certificate).decode())
    leaves = [merkle.hash_leaf(transaction.envelope) for transaction in block.transactions]
    nodes = merkle.append_leaves(first_leaf, leaves, lambda *node: read_node(connection, *node))
    receipts = receipt_rows(block, first_leaf)
    try:
        connection.execute(
            "INSERT INTO blocks VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (header.height, block.hash, *figures),
        )
        connection.executemany(
            "INSERT INTO transactions VALUES (?, ?, ?, ?, ?)", transaction_rows(block, first_leaf)
        )
        connection.executemany(
            "INSERT INTO receipts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", receipts
        )
        connection.executemany(
            "INSERT INTO evidence VALUES (?, ?, ?, ?)", evidence_rows(block, first_leaf)
        )
        connection.executemany(
            "INSERT INTO authority_sets VALUES (?, ?, ?, ?, ?)", set_rows(block, first_leaf)
        )
    except sqlite3.IntegrityError as error:
        raise InvalidTransactionError(f"block {header.height}: not unique: {error}") from error
    connection.executemany(
        "INSERT INTO tree_nodes VALUES (?, ?)",
        [(locate_node(*position), node) for position, node in nodes.items()],
    )
    connection.execute(
        "UPDATE counters SET value = value + ? WHERE name = 'receipts'", (len(receipts),)
    )
