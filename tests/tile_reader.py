"""Tiles and entry bundles as a reader of the log sees them."""

from __future__ import annotations

from collections.abc import Iterator

from ledger.tiles import TILE_HEIGHT, TILE_WIDTH, TilePlace


def list_places(level: int, size: int) -> Iterator[TilePlace]:
    """Return the tiles of one level in the tree of `size` leaves, in their order."""
    full, rest = divmod(size >> (TILE_HEIGHT * level), TILE_WIDTH)
    for index in range(full):
        yield TilePlace(index=index)
    if rest:
        yield TilePlace(index=full, width=rest)


def parse_entries(data: bytes) -> list[bytes]:
    """Return the envelopes of an entry bundle."""
    envelopes = []
    while data:
        size = int.from_bytes(data[:2], "big")
        assert len(data) >= 2 + size, "it ends within an entry"
        envelopes.append(data[2 : 2 + size])
        data = data[2 + size :]
    return envelopes
