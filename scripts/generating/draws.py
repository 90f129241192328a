"""Numbers that look random and are the same on every machine: the digest of what they are for."""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Generic, TypeVar

from blake3 import blake3

T = TypeVar("T")

_RANGE = 1 << 32


def draw(label: str, count: int) -> tuple[int, ...]:
    """Return `count` numbers of 32 bits for a label."""
    return struct.unpack(f"<{count}I", blake3(label.encode()).digest(length=4 * count))


def scale(number: int, low: int, high: int) -> int:
    """Return a number of [low, high] for one of 32 bits."""
    return low + number * (high - low + 1) // _RANGE


def is_among(number: int, per_thousand: int) -> bool:
    """Tell whether a number of 32 bits is one of so many in a thousand."""
    return number * 1000 < per_thousand * _RANGE


class Choices(Generic[T]):
    """Things to choose from, some more often than others."""

    def __init__(self, things: Sequence[T], weights: Sequence[int]) -> None:
        self._things = things
        self._ends = list(accumulate(weights))
        assert len(things) == len(weights), "every thing has a weight"
        assert self._ends[-1] > 0, "there must be something to choose"

    def choose(self, number: int) -> T:
        """Return the thing for a number of 32 bits."""
        return self._things[bisect_right(self._ends, number * self._ends[-1] // _RANGE)]
