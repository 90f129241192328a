"""When the blocks of a market's months are sealed, and how many receipts each has."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from functools import cache
from itertools import accumulate

from scripts.generating.draws import Choices, draw, scale

HOUR_MS, DAY_HOURS = 3_600_000, 24

_BLOCK_SIZES = Choices(
    (1, 2, 3, 5, 8, 13, 21, 34, 55, 89), (60, 80, 100, 120, 140, 160, 140, 100, 70, 30)
)
"""Receipts of a block: 17 on average."""
_DAY = (
    34,
    28,
    24,
    22,
    22,
    26,
    34,
    48,
    66,
    82,
    92,
    96,
    94,
    96,
    100,
    100,
    97,
    92,
    84,
    76,
    68,
    60,
    50,
    42,
)
"""How busy each hour of a day is."""
_WEEK = (100, 104, 106, 103, 92, 58, 54)
_OUTAGE = (62, 65)
"""Hundredths of the time between which little works."""


class Calendar:
    """A block is sealed when the market has done as many jobs as there are up to its end."""

    def __init__(self, *, seed: int, receipts: int, days: int, created_ms: int) -> None:
        self._receipts = receipts
        self._created_ms = created_ms
        self._ends = list_block_ends(seed, receipts)
        self._hours = list(accumulate(_weigh_hours(seed, days)))

    def list_receipts(self, number: int) -> range:
        """Return the numbers of the receipts in a block."""
        return range(self._ends[number - 1] if number else 0, self._ends[number])

    def find_time(self, number: int) -> int:
        """Return when a block is sealed: when the market had done that many jobs."""
        done = self._ends[number] * self._hours[-1]
        hour = bisect_left(self._hours, done // self._receipts)
        before = self._hours[hour - 1] if hour else 0
        passed = done - before * self._receipts
        weight = (self._hours[hour] - before) * self._receipts
        return self._created_ms + hour * HOUR_MS + passed * HOUR_MS // weight


@cache
def list_block_ends(seed: int, receipts: int) -> list[int]:
    """Return for each block how many receipts there are up to its end."""
    ends: list[int] = []
    end = 0
    while end < receipts:
        (number,) = draw(f"block {seed} {len(ends)}", 1)
        end = min(end + _BLOCK_SIZES.choose(number), receipts)
        ends.append(end)
    return ends


def _weigh_hours(seed: int, days: int) -> Iterator[int]:
    """Yield how much is done in each hour."""
    for day in range(days):
        growth = 350 + 650 * day // days
        is_out = _OUTAGE[0] * days <= day * 100 < _OUTAGE[1] * days
        noise = draw(f"day {seed} {day}", DAY_HOURS)
        for hour in range(DAY_HOURS):
            weight = growth * _WEEK[day % 7] * _DAY[hour] * scale(noise[hour], 80, 120)
            yield weight // 40 if is_out else weight
