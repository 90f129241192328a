"""What is written to ledger.db when a block enters, in the transaction of the one who calls.

A block of our own engine was validated by it. One of another node comes with a certificate and
transactions that were verified; what needs the chain is checked here, under the same transaction
that stores it, so that nothing enters unverified and a batch enters whole or not at all.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence

from ledger import merkle
from ledger.authorities import hash_authority_set
from ledger.block import Block, Certificate, Tip, VerifiedBlock, advance_tip, hash_header
from ledger.encoding import encode
from ledger.errors import InvalidBlockError, InvalidTransactionError, StoreError
from ledger.pin import Pin
from ledger.rules import validate_extension
from ledger.store.accounts import add_to_accounts
from ledger.store.audits import check_audits, insert_audits, settle_audits
from ledger.store.reading import (
    load_history_tip,
    load_pin,
    load_tip,
    locate_node,
    read_node,
)
from ledger.store.rollups import add_pace, add_usage, find_block_time
from ledger.store.rows import (
    audit_rows,
    block_figures,
    evidence_rows,
    receipt_figures,
    receipt_rows,
    set_rows,
    transaction_rows,
)

_WRONG_PIN = (
    "ledger.db: the history from genesis, every block of it certified, does not lead to the pinned "
    "checkpoint: the checkpoint file is wrong, or the network has forked; begin again in a new "
    "data directory, without it or with another one"
)


def append_verified(connection: sqlite3.Connection, batch: Sequence[VerifiedBlock]) -> Tip:
    """Append blocks of another node to the tip; see `ChainStore.append_verified`."""
    tip = load_tip(connection)
    for verified in batch:
        if verified.block.header.height <= tip.height:
            _check_known(connection, verified.block)
        else:
            tip = _extend(connection, verified, tip, {})
    return tip


def append_history(connection: sqlite3.Connection, batch: Sequence[VerifiedBlock]) -> Tip:
    """Append blocks to the history below the pinned one; see `ChainStore.append_history`."""
    pin, tip = load_pin(connection), load_history_tip(connection)
    for verified in batch:
        block = verified.block
        if pin is None or block.header.height <= tip.height:
            _check_known(connection, block)
            continue
        tip = _extend(connection, verified, tip, pin.peak_nodes())
        if tip.height == pin.height:
            _join(connection, tip, pin)
            pin, tip = None, load_tip(connection)
    return tip


def adopt_pin(connection: sqlite3.Connection, pin: Pin) -> None:
    """Let an empty chain begin after a pinned block; see `ChainStore.adopt_pin`."""
    known = connection.execute("SELECT hash FROM blocks WHERE height = ?", (pin.height,)).fetchone()
    pinned, block_hash = load_pin(connection), hash_header(pin.header)
    if pinned is not None and pinned.height == pin.height:
        known = (hash_header(pinned.header),)
    if known is not None:
        if known[0] != block_hash:
            raise StoreError(
                f"ledger.db: block {pin.height} is {known[0].hex()} here, the pinned checkpoint "
                f"names {block_hash.hex()}; one of the two is of a fork"
            )
        return
    if (height := load_tip(connection).height) > 0:
        raise StoreError(
            f"ledger.db: goes up to block {height} already; only a new data directory can begin "
            "at a pinned checkpoint, run this one without"
        )
    connection.execute("INSERT INTO pin VALUES (1, ?)", (encode(pin).decode(),))
    _insert_nodes(connection, pin.peak_nodes())


def _extend(
    connection: sqlite3.Connection,
    verified: VerifiedBlock,
    tip: Tip,
    pinned: Mapping[tuple[int, int], bytes],
) -> Tip:
    """Check what needs the chain, and append. `pinned` nodes are stored already."""
    block = verified.block
    if verified.set_hash != hash_authority_set(tip.authority_set):
        raise InvalidBlockError(
            f"block {block.header.height}: it was verified under another authority set"
        )
    validate_extension(block, tip, lambda *node: read_node(connection, *node))
    append_block(connection, block, verified.certificate, tip, pinned)
    return advance_tip(tip, block)


def _join(connection: sqlite3.Connection, tip: Tip, pin: Pin) -> None:
    """End the gap: history has reached the pinned block."""
    if tip.hash != hash_header(pin.header):
        raise StoreError(_WRONG_PIN)
    connection.execute("DELETE FROM pin")
    settle_audits(connection)


def _check_known(connection: sqlite3.Connection, block: Block) -> None:
    height = block.header.height
    row = connection.execute("SELECT hash FROM blocks WHERE height = ?", (height,)).fetchone()
    if row is not None and row[0] != block.hash:
        raise InvalidBlockError(
            f"block {height}: {row[0].hex()} is final here and {block.hash.hex()} elsewhere"
        )


def append_block(
    connection: sqlite3.Connection,
    block: Block,
    certificate: Certificate,
    tip: Tip,
    pinned: Mapping[tuple[int, int], bytes],
) -> None:
    """Store a valid block that follows `tip`, with everything that is derived from it.

    `pinned` are nodes of the tree that are stored already, and must be the same.
    """
    header, first_leaf = block.header, block.header.tree_size - len(block.transactions)
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
    subjects = check_audits(connection, block, first_leaf)
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
        insert_audits(connection, audit_rows(block, first_leaf), subjects)
        connection.executemany(
            "INSERT INTO evidence VALUES (?, ?, ?, ?)", evidence_rows(block, first_leaf)
        )
        connection.executemany(
            "INSERT INTO authority_sets VALUES (?, ?, ?, ?, ?)", set_rows(block, first_leaf)
        )
    except sqlite3.IntegrityError as error:
        raise InvalidTransactionError(f"block {header.height}: not unique: {error}") from error
    for place in nodes.keys() & pinned.keys():
        if nodes.pop(place) != pinned[place]:
            raise StoreError(_WRONG_PIN)
    _insert_nodes(connection, nodes)
    connection.execute(
        "UPDATE counters SET value = value + ? WHERE name = 'receipts'", (len(receipts),)
    )
    sums = receipt_figures(block)
    add_to_accounts(connection, sums)
    add_usage(connection, sums)
    add_pace(connection, find_block_time(header.time_ms, tip))


def _insert_nodes(connection: sqlite3.Connection, nodes: Mapping[tuple[int, int], bytes]) -> None:
    connection.executemany(
        "INSERT INTO tree_nodes VALUES (?, ?)",
        [(locate_node(*place), node) for place, node in nodes.items()],
    )
