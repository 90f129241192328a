"""Tiles: the tree and its entries as files that never change. Source: C2SP tlog-tiles.

A tile of level L holds up to 256 hashes of full subtrees of level 8·L, so its own hash, once it is
full, is one hash in a tile of level L + 1. An entry bundle holds the envelopes under a tile of
level 0. The last tile of a level may be partial; its address then ends in its width:

    tile/<L>/<N>[.p/<W>]    tile/entries/<N>[.p/<W>]

N is written in groups of three digits, all but the last one marked: 1234067 is `x001/x234/067`.
Every address has one spelling.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

TILE_WIDTH = 256
TILE_HEIGHT = 8
MAX_LEAVES = 2**53 - 1

_LENGTH_BYTES = 2
"""They can say up to 65,535, and no envelope is longer."""
_LEVEL = re.compile(r"0|[1-9][0-9]?")
_MAX_LEVEL = 63
# 2^53 leaves make less than 10^15 tiles: five groups.
_PLACE = re.compile(r"((?:x[0-9]{3}/){0,4}[0-9]{3})(?:\.p/([1-9][0-9]{0,2}))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class TilePlace:
    """Where a tile or an entry bundle stands in its row."""

    index: int
    width: int = TILE_WIDTH
    """Hashes or entries in it, 1..256; below 256 it is partial."""

    def __str__(self) -> str:
        """Return the place as addresses spell it."""
        groups = [f"{self.index % 1000:03}"]
        rest = self.index // 1000
        while rest:
            groups.insert(0, f"x{rest % 1000:03}")
            rest //= 1000
        return "/".join(groups) + (f".p/{self.width}" if self.width < TILE_WIDTH else "")


def parse_place(text: str) -> TilePlace | None:
    """Return the place that an address names; None if it is not the spelling of one."""
    match = _PLACE.fullmatch(text)
    if match is None:
        return None
    place = TilePlace(
        index=int(match[1].replace("x", "").replace("/", "")),
        width=int(match[2]) if match[2] else TILE_WIDTH,
    )
    return place if place.width <= TILE_WIDTH and str(place) == text else None


def parse_level(text: str) -> int | None:
    """Return the level that an address names; None if it is not the spelling of one."""
    return int(text) if _LEVEL.fullmatch(text) and int(text) <= _MAX_LEVEL else None


def fits_tree(level: int, place: TilePlace) -> bool:
    """Tell whether any tree of at most 2^53 - 1 leaves has this tile."""
    last_leaf = (place.index * TILE_WIDTH + place.width) << (TILE_HEIGHT * level)
    return last_leaf <= MAX_LEAVES


def encode_entries(envelopes: Sequence[bytes]) -> bytes:
    """Return the entry bundle of some envelopes."""
    return b"".join(
        len(envelope).to_bytes(_LENGTH_BYTES, "big") + envelope for envelope in envelopes
    )
