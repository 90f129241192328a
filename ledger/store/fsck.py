"""fsck: verify a whole ledger.db from genesis, trusting nothing that is derived in it."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import sqlite_utils

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
from ledger.pin import Pin, parse_pin
from ledger.rules import validate_block
from ledger.store.audits import check_audits, verify_audit_totals
from ledger.store.chain import load_block, migrations, read_node
from ledger.store.database import open_reader
from ledger.store.reading import load_pin
from ledger.store.recount import Recount, begin_recount
from ledger.store.rows import (
    audit_rows,
    block_figures,
    evidence_rows,
    receipt_rows,
    set_rows,
    transaction_rows,
)
from ledger.transaction import AuditPayload, EvidencePayload, ReceiptPayload

_DERIVED: dict[str, tuple[str, Callable[[Block, int], list[tuple[object, ...]]]]] = {
    "transactions": ("*", transaction_rows),
    "receipts": ("*", receipt_rows),
    "audits": (
        "leaf, receipt_id, auditor, verdict, tokens, exact_tokens, mean_gap_micros, method,"
        " model_digest",
        audit_rows,
    ),
    "evidence": ("*", evidence_rows),
    "authority_sets": ("*", set_rows),
}
"""What the rows of a block's leaves must be, by table: the columns that its bytes alone tell."""


@dataclass(slots=True)
class _Totals:
    """Rows that a whole chain has, counted from its blocks."""

    receipts: int = 0
    audits: int = 0
    evidence: int = 0

    def add(self, block: Block) -> None:
        payloads = [transaction.payload for transaction in block.transactions]
        self.receipts += sum(isinstance(payload, ReceiptPayload) for payload in payloads)
        self.audits += sum(isinstance(payload, AuditPayload) for payload in payloads)
        self.evidence += sum(isinstance(payload, EvidencePayload) for payload in payloads)


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
            _verify_schema(connection, path)
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
    with begin_recount() as recount:
        return _verify_chain(connection, genesis, recount, progress)


def _verify_file(connection: sqlite3.Connection) -> None:
    """Pages, indexes and constraints, as far as SQLite knows them."""
    (found,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
    if found != "ok":
        raise StoreError(f"ledger.db: SQLite finds the file damaged: {found}")


def _verify_schema(connection: sqlite3.Connection, path: Path) -> None:
    # What has a schema of ours, but not all of it, is sound: no node of this release opened it yet.
    database = sqlite_utils.Database(connection)
    if migrations.applied(database) and migrations.pending(database):
        raise StoreError(
            f"{path}: was written by an older release; start this node once, which brings it up "
            "to date, and run fsck again"
        )


def _verify_network(connection: sqlite3.Connection, genesis: Genesis) -> None:
    first_set = genesis.authority_set
    expected = {
        "genesis": [(1, hash_genesis(genesis), encode(genesis).decode())],
        "authority_sets": [(0, hash_authority_set(first_set), 1, encode(first_set).decode(), None)],
    }
    for table, rows in expected.items():
        stored = connection.execute(f"SELECT * FROM {table} ORDER BY rowid LIMIT 1")  # noqa: S608
        if [tuple(row) for row in stored] != rows:
            raise StoreError(f"ledger.db: table {table} is not that of this genesis file's network")


def _verify_chain(
    connection: sqlite3.Connection,
    genesis: Genesis,
    recount: Recount,
    progress: Callable[[int, int], None],
) -> Tip:
    pin, totals, first = load_pin(connection), _Totals(), build_genesis_tip(genesis)
    (last,) = connection.execute("SELECT coalesce(max(height), 0) FROM blocks").fetchone()

    def verify_up_to(tip: Tip, height: int) -> Tip:
        while tip.height < height:
            tip = _verify_block(connection, tip, totals, recount)
            progress(tip.height, last)
        return tip

    if pin is None:
        tip = verify_up_to(first, last)
        _verify_counts(connection, [(first, tip)], totals)
        recount.compare(connection)
        return tip
    _verify_pin(connection, pin, genesis)
    (below,) = connection.execute(
        "SELECT coalesce(max(height), 0) FROM blocks WHERE height <= ?", (pin.height,)
    ).fetchone()
    history = verify_up_to(first, below)
    pinned = pin.build_tip(genesis)
    tip = verify_up_to(pinned, last)
    _verify_counts(connection, [(first, history), (pinned, tip)], totals, pin)
    recount.compare(connection)
    raise StoreError(
        f"ledger.db: blocks {below + 1} to {pin.height} are missing: they are still being fetched, "
        "as the chain began at a pinned checkpoint; everything else verifies"
    )


def _verify_pin(connection: sqlite3.Connection, pin: Pin, genesis: Genesis) -> None:
    try:
        parse_pin(encode(pin), genesis)
    except LedgerError as error:
        raise StoreError(f"ledger.db: {error}") from error
    for place, node in pin.peak_nodes().items():
        if read_node(connection, *place) != node:
            raise StoreError(f"ledger.db: tree node {place} is not that of the pinned checkpoint")


def _verify_block(
    connection: sqlite3.Connection, tip: Tip, totals: _Totals, recount: Recount
) -> Tip:
    """Verify the block after `tip` with all its rows; returns the state after it."""
    height = tip.height + 1
    try:
        found = load_block(connection, height)
        if found is None:
            raise StoreError("it is missing")
        block, certificate = found
        validate_block(block, tip, lambda *place: read_node(connection, *place))
        check_audits(connection, block, tip.tree_size)
        verify_certificate(certificate, header=block.header, authority_set=tip.authority_set)
    except LedgerError as error:
        raise StoreError(f"ledger.db: block {height}: {error}") from error
    _verify_rows(connection, block, tip)
    totals.add(block)
    recount.add(block, tip)
    return advance_tip(tip, block)


def _verify_rows(connection: sqlite3.Connection, block: Block, tip: Tip) -> None:
    """Everything that is derived from a block must be what the block says."""
    leaves = [merkle.hash_leaf(transaction.envelope) for transaction in block.transactions]
    nodes = merkle.append_leaves(tip.tree_size, leaves, lambda *node: read_node(connection, *node))
    for (level, index), node in nodes.items():
        if read_node(connection, level, index) != node:
            raise StoreError(f"ledger.db: tree node ({level}, {index}) is not its children's hash")
    leaf_range = (tip.tree_size, block.header.tree_size)
    for table, (columns, derive) in _DERIVED.items():
        stored = connection.execute(
            f"SELECT {columns} FROM {table} WHERE leaf >= ? AND leaf < ? ORDER BY leaf",  # noqa: S608
            leaf_range,
        )
        if [tuple(row) for row in stored] != derive(block, tip.tree_size):
            raise StoreError(
                f"ledger.db: the rows of block {block.header.height} in {table} differ from its "
                "body"
            )
    (stored_block,) = connection.execute(
        "SELECT time_ms, first_leaf, transactions, size_bytes FROM blocks WHERE height = ?",
        (block.header.height,),
    )
    if tuple(stored_block) != block_figures(block):
        raise StoreError(f"ledger.db: the figures of block {block.header.height} differ")


def _verify_counts(
    connection: sqlite3.Connection,
    parts: Sequence[tuple[Tip, Tip]],
    totals: _Totals,
    pin: Pin | None = None,
) -> None:
    """Check that there is nothing but what the blocks made, from and to each of these states."""
    counters = [tuple(row) for row in connection.execute("SELECT name, value FROM counters")]
    if counters != [("receipts", totals.receipts)]:
        raise StoreError(
            f"ledger.db: counters: expected receipts {totals.receipts}, got {counters}"
        )
    expected = {
        "blocks": sum(end.height - begin.height for begin, end in parts),
        "transactions": sum(end.tree_size - begin.tree_size for begin, end in parts),
        "receipts": totals.receipts,
        "audits": totals.audits,
        "evidence": totals.evidence,
        # Genesis made the first, and every change makes one.
        "authority_sets": 1
        + sum(end.authority_set.epoch - begin.authority_set.epoch for begin, end in parts),
        "tree_nodes": sum(
            _count_nodes(end.tree_size) - _count_nodes(begin.tree_size) for begin, end in parts
        )
        + _count_peaks_above(pin, parts[0][1].tree_size),
        "pin": int(pin is not None),
    }
    for table, rows in expected.items():
        (found,) = connection.execute(f"SELECT count(*) FROM {table}").fetchone()  # noqa: S608
        if found != rows:
            raise StoreError(f"ledger.db: {table}: expected {rows} rows, got {found}")
    verify_audit_totals(connection, is_whole=pin is None)


def _count_nodes(size: int) -> int:
    """A tree of n leaves has 2n - (bits set in n) full subtrees."""
    return 2 * size - size.bit_count()


def _count_peaks_above(pin: Pin | None, size: int) -> int:
    """Peaks of the pinned tree that a history of `size` leaves has not reached yet."""
    if pin is None:
        return 0
    return sum((index + 1) << level > size for level, index in pin.peak_nodes())
