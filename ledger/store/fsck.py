"""fsck: verify a whole ledger.db from genesis, trusting nothing that is derived in it."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable
from pathlib import Path

from ledger import merkle
from ledger.authorities import hash_authority_set
from ledger.block import (
    Block,
    Genesis,
    Tip,
    advance_tip,
    build_genesis_tip,
    hash_genesis,
    verify_certificate,
)
from ledger.encoding import encode
from ledger.errors import LedgerError, StoreError
from ledger.rules import validate_block
from ledger.store.chain import (
    block_figures,
    load_block,
    read_node,
    receipt_rows,
    transaction_rows,
)
from ledger.store.database import open_reader


def verify_chain(path: Path, genesis: Genesis, progress: Callable[[int, int], None]) -> Tip:
    """Verify a whole ledger.db from genesis (`fsck`): every hash, signature, node and counter.

    `progress(height, tip_height)` is called after every block. Memory does not grow with the
    chain. Returns the verified tip.

    Raises:
        StoreError: the first thing that is wrong.
    """
    try:
        with contextlib.closing(open_reader(path)) as connection:
            connection.execute("BEGIN")
            return verify_connection(connection, genesis, progress)
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        # SQLite quotes damaged names in its messages, which need not be text then.
        raise StoreError(f"{path}: is not a readable ledger: {error}") from error


def verify_connection(
    connection: sqlite3.Connection, genesis: Genesis, progress: Callable[[int, int], None]
) -> Tip:
    """Do the work of `verify_chain` on an open database."""
    _verify_file(connection)
    _verify_network(connection, genesis)
    return _verify_chain(connection, genesis, progress)


def _verify_file(connection: sqlite3.Connection) -> None:
    """Pages, indexes and constraints, as far as SQLite knows them."""
    (found,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
    if found != "ok":
        raise StoreError(f"ledger.db: SQLite finds the file damaged: {found}")


def _verify_network(connection: sqlite3.Connection, genesis: Genesis) -> None:
    first_set = genesis.authority_set
    expected = {
        "genesis": [(1, hash_genesis(genesis), encode(genesis).decode())],
        "authority_sets": [(0, hash_authority_set(first_set), 1, encode(first_set).decode())],
    }
    for table, rows in expected.items():
        stored = connection.execute(f"SELECT * FROM {table} LIMIT 2")  # noqa: S608 - named above
        if [tuple(row) for row in stored] != rows:
            raise StoreError(f"ledger.db: table {table} is not that of this genesis file's network")


def _verify_chain(
    connection: sqlite3.Connection, genesis: Genesis, progress: Callable[[int, int], None]
) -> Tip:
    tip, receipts = build_genesis_tip(genesis), 0
    (last,) = connection.execute("SELECT coalesce(max(height), 0) FROM blocks").fetchone()

    def read(level: int, index: int) -> bytes:
        return read_node(connection, level, index)

    for height in range(1, last + 1):
        try:
            found = load_block(connection, height)
            if found is None:
                raise StoreError("it is missing")
            block, certificate = found
            validate_block(block, tip, read)
            verify_certificate(certificate, header=block.header, authority_set=tip.authority_set)
        except LedgerError as error:
            raise StoreError(f"ledger.db: block {height}: {error}") from error
        _verify_rows(connection, block, tip)
        receipts += len(block.transactions)
        tip = advance_tip(tip, block)
        progress(height, last)
    _verify_counts(connection, tip, receipts)
    return tip


def _verify_rows(connection: sqlite3.Connection, block: Block, tip: Tip) -> None:
    """Everything that is derived from a block must be what the block says."""
    leaves = [merkle.hash_leaf(transaction.envelope) for transaction in block.transactions]
    nodes = merkle.append_leaves(tip.tree_size, leaves, lambda *node: read_node(connection, *node))
    for (level, index), node in nodes.items():
        if read_node(connection, level, index) != node:
            raise StoreError(f"ledger.db: tree node ({level}, {index}) is not its children's hash")
    derived = [*transaction_rows(block, tip.tree_size), *receipt_rows(block, tip.tree_size)]
    leaf_range = (tip.tree_size, block.header.tree_size)
    stored = [
        *connection.execute(
            "SELECT * FROM transactions WHERE leaf >= ? AND leaf < ? ORDER BY leaf", leaf_range
        ),
        *connection.execute(
            "SELECT * FROM receipts WHERE leaf >= ? AND leaf < ? ORDER BY leaf", leaf_range
        ),
    ]
    if [tuple(row) for row in stored] != derived:
        raise StoreError(f"ledger.db: the rows of block {block.header.height} differ from its body")
    (stored_block,) = connection.execute(
        "SELECT time_ms, first_leaf, transactions, size_bytes FROM blocks WHERE height = ?",
        (block.header.height,),
    )
    if tuple(stored_block) != block_figures(block):
        raise StoreError(f"ledger.db: the figures of block {block.header.height} differ")


def _verify_counts(connection: sqlite3.Connection, tip: Tip, receipts: int) -> None:
    counters = [tuple(row) for row in connection.execute("SELECT name, value FROM counters")]
    if counters != [("receipts", receipts)]:
        raise StoreError(f"ledger.db: counters: expected receipts {receipts}, got {counters}")
    expected = {
        "blocks": tip.height,
        "transactions": tip.tree_size,
        "receipts": receipts,
        # A tree of n leaves has 2n - (bits set in n) full subtrees.
        "tree_nodes": 2 * tip.tree_size - tip.tree_size.bit_count(),
    }
    for table, rows in expected.items():
        (found,) = connection.execute(f"SELECT count(*) FROM {table}").fetchone()  # noqa: S608
        if found != rows:
            raise StoreError(f"ledger.db: {table}: expected {rows} rows, got {found}")
