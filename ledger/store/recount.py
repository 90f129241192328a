"""What ledger.db adds up from its blocks, added up once more and compared.

The second count is made in a file of SQLite's own that vanishes with its connection, so memory
does not grow with the chain.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from itertools import zip_longest

from ledger.block import Block, Tip
from ledger.errors import StoreError
from ledger.store import accounts, rollups
from ledger.store.rows import receipt_figures

_TABLES = {
    "accounts": "account",
    "usage_rollups": "span_ms, model, start_ms",
    "pace_rollups": "span_ms, start_ms",
}
"""Each with the columns that order it."""


class Recount:
    """Sums over blocks; begin one with `begin_recount`."""

    def __init__(self, scratch: sqlite3.Connection) -> None:
        self._scratch = scratch
        for statement in (accounts.SCHEMA, *rollups.SCHEMA):
            scratch.execute(statement)

    def add(self, block: Block, tip: Tip) -> None:
        """Count a block that follows `tip`, as the store did when it entered."""
        receipts = receipt_figures(block)
        accounts.add_to_accounts(self._scratch, receipts)
        rollups.add_usage(self._scratch, receipts)
        rollups.add_pace(self._scratch, rollups.find_block_time(block.header.time_ms, tip))

    def compare(self, ledger: sqlite3.Connection) -> None:
        """Check that the file has the same sums.

        Raises:
            StoreError: a row is missing, wrong or too many.
        """
        for table, order in _TABLES.items():
            statement = f"SELECT * FROM {table} ORDER BY {order}"  # noqa: S608 - named above
            both = zip_longest(self._scratch.execute(statement), ledger.execute(statement))
            for counted, stored in both:
                if stored is None or counted != tuple(stored):
                    raise StoreError(
                        f"ledger.db: {table}: expected {counted}, got {stored and tuple(stored)}"
                    )


@contextlib.contextmanager
def begin_recount() -> Iterator[Recount]:
    """Yield a count of nothing yet."""
    with contextlib.closing(sqlite3.connect("", isolation_level=None)) as scratch:
        scratch.execute("BEGIN")
        yield Recount(scratch)
