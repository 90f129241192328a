"""Which blocks and leaves a period has. Block times ascend, so its ends are found by halving."""

from __future__ import annotations

import sqlite3
from bisect import bisect_left
from dataclasses import dataclass

from ledger.store.reading import require_history
from ledger.views.bundles import count_leaves, load_figures


@dataclass(frozen=True, slots=True, kw_only=True)
class Period:
    """The blocks and leaves of a period."""

    first_height: int
    """Lowest height in it; one above `last_height` where there is none."""
    last_height: int
    first_leaf: int
    end_leaf: int
    """Tree size after its last block."""


def find_period(ledger: sqlite3.Connection, from_ms: int, to_ms: int) -> Period:
    """Return the blocks with times in [from_ms, to_ms).

    Raises:
        HistoryMissingError: blocks are missing.
    """
    require_history(ledger)
    (tip,) = ledger.execute("SELECT coalesce(max(height), 0) FROM blocks").fetchone()
    first = _find_height(ledger, tip, from_ms)
    end = max(first, _find_height(ledger, tip, to_ms))
    return Period(
        first_height=first,
        last_height=end - 1,
        first_leaf=count_leaves(ledger, first - 1),
        end_leaf=count_leaves(ledger, end - 1),
    )


def _find_height(ledger: sqlite3.Connection, tip: int, time_ms: int) -> int:
    """Return the lowest height whose block has this time or a later one; tip + 1 if none has."""
    heights = range(1, tip + 1)
    return 1 + bisect_left(
        heights, time_ms, key=lambda height: load_figures(ledger, height)["time_ms"]
    )
