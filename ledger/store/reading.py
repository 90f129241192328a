"""Reads of ledger.db that the store, fsck and the views share. Each is one row or a few, by key.

A chain that began at a pinned checkpoint has a gap below that block until its history is fetched:
then `load_tip` is where new blocks go on, `load_history_tip` where old ones do.
"""

from __future__ import annotations

import sqlite3

from ledger import merkle
from ledger.authorities import AuthoritySet, hash_authority_set
from ledger.block import (
    Block,
    Certificate,
    Genesis,
    Tip,
    build_genesis_tip,
    build_tip,
    parse_certificate,
    parse_genesis,
    parse_header,
)
from ledger.encoding import MAX_INTEGER, decode
from ledger.errors import EncodingError, HistoryMissingError, StoreError
from ledger.pin import MAX_PIN_BYTES, Pin
from ledger.transaction import parse_transaction


def locate_node(level: int, index: int) -> int:
    """Return the in-order number of a tree node, the key of its row."""
    return ((2 * index + 1) << level) - 1


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
    if row is not None:
        return decode(row[0].encode(), AuthoritySet)
    pin = load_pin(connection)
    pinned = (pin.authority_set, pin.next_authority_set) if pin is not None else ()
    for authority_set in pinned:
        if hash_authority_set(authority_set) == set_hash:
            return authority_set
    raise StoreError(f"ledger.db: authority set {set_hash.hex()} is missing; run fsck")


def load_tip(connection: sqlite3.Connection) -> Tip:
    """Return the state after the newest block, or after the pinned one if that is newer."""
    tip, pin = _load_tip_below(connection, MAX_INTEGER), load_pin(connection)
    if pin is not None and tip.height <= pin.height:
        return pin.build_tip(load_genesis(connection))
    return tip


def load_history_tip(connection: sqlite3.Connection) -> Tip:
    """Return up to where the chain is whole from genesis: `load_tip`, but below a pinned block."""
    pin = load_pin(connection)
    return load_tip(connection) if pin is None else _load_tip_below(connection, pin.height)


def _load_tip_below(connection: sqlite3.Connection, height: int) -> Tip:
    """Return the state after the newest block that is not above `height`."""
    genesis = load_genesis(connection)
    row = connection.execute(
        "SELECT header FROM blocks WHERE height <= ? ORDER BY height DESC LIMIT 1", (height,)
    ).fetchone()
    if row is None:
        return build_genesis_tip(genesis)
    header = parse_header(row[0].encode())
    authority_set = load_authority_set(connection, bytes.fromhex(header.next_set_hash))
    return build_tip(header, authority_set=authority_set, limits=genesis.limits)


def load_pin(connection: sqlite3.Connection) -> Pin | None:
    """Return the pinned checkpoint that the chain began at, None once its history is whole."""
    row = connection.execute("SELECT document FROM pin WHERE id = 1").fetchone()
    if row is None:
        return None
    try:
        return decode(row[0].encode(), Pin, max_bytes=MAX_PIN_BYTES)
    except EncodingError as error:
        raise StoreError(f"ledger.db: the pinned checkpoint is damaged: {error}") from error


def build_pin(connection: sqlite3.Connection) -> Pin:
    """Return the newest block as a pinned checkpoint.

    Raises:
        StoreError: there is none.
        HistoryMissingError: the chain rests on somebody else's checkpoint still.
    """
    require_history(connection)
    row = connection.execute(
        "SELECT header, certificate FROM blocks ORDER BY height DESC LIMIT 1"
    ).fetchone()
    if row is None:
        raise StoreError("ledger.db: has no block yet")
    header = parse_header(row[0].encode())
    peaks = [read_node(connection, *place) for place in merkle.list_peaks(header.tree_size)]
    return Pin(
        header=header,
        certificate=parse_certificate(row[1].encode()),
        authority_set=load_authority_set(connection, bytes.fromhex(header.set_hash)),
        next_authority_set=load_authority_set(connection, bytes.fromhex(header.next_set_hash)),
        peaks=tuple(peak.hex() for peak in peaks),
    )


def find_missing(connection: sqlite3.Connection) -> range | None:
    """Return the heights of the blocks that are still being fetched, None if none are."""
    pin = load_pin(connection)
    if pin is None:
        return None
    return range(_load_tip_below(connection, pin.height).height + 1, pin.height + 1)


def require_history(connection: sqlite3.Connection) -> None:
    """Refuse a question whose answer needs the whole chain, as long as it is not.

    Raises:
        HistoryMissingError: blocks are missing.
    """
    if missing := find_missing(connection):
        raise HistoryMissingError(
            f"this node still fetches the history of blocks {missing[0]} to {missing[-1]}; "
            "ask again later, or ask another node"
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
