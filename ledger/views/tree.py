"""Reads of the tree itself: its head, tiles, entry bundles and consistency proofs.

All but the head are the same for ever once they exist, and a file that fills in its history from
the newest end has none yet where leaves are missing.
"""

from __future__ import annotations

import sqlite3
from bisect import bisect_left
from dataclasses import dataclass

import msgspec

from ledger import merkle
from ledger.block import Header, parse_certificate
from ledger.consistency import ConsistencyProof, HeadProof
from ledger.encoding import encode
from ledger.store.chain import (
    ChainStore,
    load_authority_set,
    load_tip,
    locate_node,
    read_node,
)
from ledger.store.reading import require_history
from ledger.tiles import TILE_HEIGHT, TILE_WIDTH, TilePlace, encode_entries, fits_tree
from ledger.views.bundles import count_leaves, load_epochs, load_header


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeHead:
    """The tree after the newest final block."""

    height: int
    """0 at genesis."""
    size: int
    root: bytes


class TreeViews:
    """The public reads of one node's tree."""

    def __init__(self, chain: ChainStore) -> None:
        self._chain = chain

    def head(self) -> TreeHead:
        """Return the head of the newest final block.

        Raises:
            HistoryMissingError: the tree below it is not whole yet.
        """
        require_history(self._chain.database.reader)
        row = self._chain.database.reader.execute(
            "SELECT height FROM blocks ORDER BY height DESC LIMIT 1"
        ).fetchone()
        if row is None:
            return TreeHead(height=0, size=0, root=merkle.EMPTY_ROOT)
        header, _ = load_header(self._chain.database.reader, row[0])
        return TreeHead(
            height=header.height, size=header.tree_size, root=bytes.fromhex(header.tree_root)
        )

    def tile(self, level: int, place: TilePlace) -> bytes | None:
        """Return the hashes of a tile, None if not all of them exist."""
        if not fits_tree(level, place):
            return None
        first = place.index * TILE_WIDTH
        positions = [
            locate_node(TILE_HEIGHT * level, index) for index in range(first, first + place.width)
        ]
        marks = ",".join("?" * place.width)
        rows = self._chain.database.reader.execute(
            f"SELECT hash FROM tree_nodes WHERE position IN ({marks})"  # noqa: S608 - only marks
            " ORDER BY position",
            positions,
        ).fetchall()
        return b"".join(row[0] for row in rows) if len(rows) == place.width else None

    def entries(self, place: TilePlace) -> bytes | None:
        """Return the envelopes under a tile of level 0, None if not all of them exist."""
        if not fits_tree(0, place):
            return None
        first = place.index * TILE_WIDTH
        rows = self._chain.database.reader.execute(
            "SELECT CAST(envelope AS BLOB) FROM transactions WHERE leaf >= ? AND leaf < ?"
            " ORDER BY leaf",
            (first, first + place.width),
        ).fetchall()
        return encode_entries([row[0] for row in rows]) if len(rows) == place.width else None

    def consistency(self, from_size: int, to_size: int | None) -> bytes | None:
        """Return the canonical proof that one tree extends another, by default the newest one.

        None if they do not exist, or `from_size` is the larger one. Sizes are not negative.

        Raises:
            HistoryMissingError: there is a gap in the tree.
        """
        with self._chain.database.snapshot() as ledger:
            require_history(ledger)
            tip = load_tip(ledger)
            to_size = tip.tree_size if to_size is None else to_size
            if not from_size <= to_size <= tip.tree_size:
                return None

            def read(level: int, index: int) -> bytes:
                return read_node(ledger, level, index)

            path = merkle.build_consistency_path(from_size, to_size, read) if from_size else []
            block = find_block(ledger, to_size)
            return encode(
                ConsistencyProof(
                    from_size=from_size,
                    from_root=merkle.compute_root(from_size, read).hex(),
                    to_size=to_size,
                    to_root=merkle.compute_root(to_size, read).hex(),
                    path=tuple(node.hex() for node in path),
                    head=_load_head_proof(ledger, block)
                    if block and block.tree_size == to_size
                    else msgspec.UNSET,
                )
            )


def find_block(ledger: sqlite3.Connection, size: int) -> Header | None:
    """Return the header of the first block whose tree has `size` leaves or more.

    None for the empty tree, and beyond the newest block.

    Raises:
        HistoryMissingError: there is a gap in the blocks.
    """
    require_history(ledger)
    (last,) = ledger.execute("SELECT coalesce(max(height), 0) FROM blocks").fetchone()
    # Trees grow with their height, so it is found by halving, in at most 53 reads.
    heights = range(1, last + 1)
    height = 1 + bisect_left(heights, size, key=lambda height: count_leaves(ledger, height))
    return load_header(ledger, height)[0] if size and height <= last else None


def _load_head_proof(ledger: sqlite3.Connection, header: Header) -> HeadProof:
    _, certificate = load_header(ledger, header.height)
    changed = header.next_set_hash != header.set_hash
    return HeadProof(
        header=header,
        certificate=parse_certificate(certificate),
        epochs=tuple(load_epochs(ledger, header.height)),
        next_set=load_authority_set(ledger, bytes.fromhex(header.next_set_hash))
        if changed
        else msgspec.UNSET,
    )
