"""Blocks, Merkle paths and proof bundles, read from the chain."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from ledger import merkle
from ledger.block import Header, parse_certificate, parse_header
from ledger.encoding import encode
from ledger.errors import StoreError
from ledger.proof import Epoch, ProofBundle
from ledger.store.chain import load_authority_set, read_node
from ledger.store.reading import load_pin, require_history
from ledger.transaction import Envelope, parse_transaction


def load_bundle(ledger: sqlite3.Connection, receipt_id: str) -> bytes | None:
    """Return the canonical proof bundle of a receipt that is on the chain."""
    row = ledger.execute(
        "SELECT t.leaf, t.height, t.envelope FROM receipts r"
        " JOIN transactions t USING (leaf) WHERE r.receipt_id = ?",
        (receipt_id,),
    ).fetchone()
    if row is None:
        return None
    transaction = parse_transaction(row["envelope"].encode())
    header, certificate = load_header(ledger, row["height"])
    bundle = ProofBundle(
        envelope=Envelope(payload=transaction.payload, signatures=transaction.signatures),
        index=row["leaf"],
        path=tuple(build_path(ledger, row["leaf"], header.tree_size)),
        header=header,
        certificate=parse_certificate(certificate),
        epochs=tuple(load_epochs(ledger, header.height)),
    )
    return encode(bundle)


def load_header(ledger: sqlite3.Connection, height: int) -> tuple[Header, bytes]:
    """Return the header of a block and the bytes of its certificate."""
    row = ledger.execute(
        "SELECT header, certificate FROM blocks WHERE height = ?", (height,)
    ).fetchone()
    return parse_header(row[0].encode()), row[1].encode()


def load_figures(ledger: sqlite3.Connection, height: int) -> sqlite3.Row:
    """Return time_ms, first_leaf and transactions of a block.

    Raises:
        StoreError: it is not in the file.
    """
    row: sqlite3.Row | None = ledger.execute(
        "SELECT time_ms, first_leaf, transactions FROM blocks WHERE height = ?", (height,)
    ).fetchone()
    if row is None:
        raise StoreError(f"ledger.db: block {height} is missing; run fsck")
    return row


def count_leaves(ledger: sqlite3.Connection, height: int) -> int:
    """Return the tree size after a block, 0 at genesis."""
    if height == 0:
        return 0
    row = load_figures(ledger, height)
    return int(row["first_leaf"] + row["transactions"])


def load_raw_block(ledger: sqlite3.Connection, height: int) -> bytes | None:
    """Return the canonical JSON of a block's header and certificate."""
    row = ledger.execute(
        "SELECT header, certificate FROM blocks WHERE height = ?", (height,)
    ).fetchone()
    return f'{{"certificate":{row[1]},"header":{row[0]}}}'.encode() if row else None


def build_path(ledger: sqlite3.Connection, leaf: int, size: int) -> list[str]:
    """Return the inclusion path of a leaf in the tree of `size` leaves, as hex."""
    path = merkle.build_inclusion_path(leaf, size, lambda *node: read_node(ledger, *node))
    return [node.hex() for node in path]


def load_epochs(ledger: sqlite3.Connection, height: int) -> Iterable[Epoch]:
    """Return the set changes that lead from genesis to the set of block `height`.

    Raises:
        HistoryMissingError: they are not all here yet.
    """
    pin = load_pin(ledger)
    if pin is not None and pin.height < height and pin.next_authority_set.epoch > 0:
        require_history(ledger)
    rows = ledger.execute(
        "SELECT hash, from_height FROM authority_sets WHERE epoch > 0 AND from_height <= ?"
        " ORDER BY epoch",
        (height,),
    ).fetchall()
    for set_hash, from_height in rows:
        header, certificate = load_header(ledger, from_height - 1)
        yield Epoch(
            header=header,
            certificate=parse_certificate(certificate),
            authority_set=load_authority_set(ledger, set_hash),
        )
