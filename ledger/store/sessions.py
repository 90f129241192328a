"""What the market's tables are read and written through, whichever engine holds them.

Statements are written once, for SQLite. PostgreSQL understands most of them as they are, and the
rest after `postgres/dialect.py`; so whoever writes one keeps to what both have:

- values by `?`, or by `?1` where one is used twice; counts and flags are integers
- `INSERT … ON CONFLICT … DO UPDATE`, with old columns by the name of their table; `RETURNING`
- a name for every subquery in FROM; `CASE` instead of a `min`, `max` or `iif` of two values
- no order but by columns, and no place of a row but `seq`
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

from ledger.errors import StoreError

Value = str | bytes | int | float | None


class Row(Protocol):
    """A row; its columns by place or by name."""

    def __getitem__(self, key: int | str, /) -> Any:
        """Return a column."""

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the columns."""


class Cursor(Protocol):
    """What came of a statement."""

    @property
    def rowcount(self) -> int:
        """How many rows it changed."""

    def fetchone(self) -> Any:
        """Return the next row, None after the last."""

    def fetchall(self) -> list[Any]:
        """Return all rows that are left."""

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the rows that are left."""


class Connection(Protocol):
    """Runs statements. `sqlite3.Connection` is one."""

    def execute(self, statement: str, values: Sequence[Any] = ..., /) -> Cursor:
        """Run one statement."""

    def executemany(self, statement: str, values: Iterable[Sequence[Any]], /) -> Cursor:
        """Run one statement for each of several values."""


def insert_row(connection: Connection, insert: str, values: Sequence[Any]) -> int:
    """Insert one row; returns its `seq`.

    SQLite knows it anyway, and makes a table of its own for RETURNING, which costs as much as the
    row.
    """
    if isinstance(connection, sqlite3.Connection):
        return connection.execute(insert, values).lastrowid or 0
    (seq,) = connection.execute(f"{insert} RETURNING seq", values).fetchone()
    return int(seq)


class Session(Protocol):
    """The one connection of a writer (`writing.py`), for its thread."""

    @property
    def connection(self) -> Any:
        """What works get."""

    def begin(self) -> None:
        """Begin a transaction in which nobody else writes."""

    def commit(self) -> None:
        """Make it durable."""

    def roll_back(self) -> None:
        """Undo it. Never raises: if it cannot now, the next `begin` tells."""

    def count_changes(self) -> int:
        """Return a number that grows with what is changed."""

    def blames_store(self, error: Exception) -> bool:
        """Tell whether an error is the store's fault: then nothing of the batch can be relied on.

        Else it is the fault of what was asked.
        """

    def recover(self, error: Exception, *, tries: int) -> bool:
        """Make ready to do a batch again that failed `tries` times; False if that is no use."""

    def describe(self, error: Exception) -> StoreError:
        """Return what those are told whose batch failed for good."""


# What SQLite refuses because of what was asked. Everything else (full, unreadable, damaged) is the
# file's fault.
_FAULTS_OF_THE_WORK = frozenset(
    {
        sqlite3.SQLITE_ERROR,
        sqlite3.SQLITE_CONSTRAINT,
        sqlite3.SQLITE_MISMATCH,
        sqlite3.SQLITE_RANGE,
        sqlite3.SQLITE_TOOBIG,
    }
)
_PRIMARY_CODE = 0xFF


class FileSession:
    """The writing connection of one SQLite file."""

    def __init__(self, name: str, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self._name = name

    def begin(self) -> None:
        """Begin a transaction in which nobody else writes."""
        self.connection.execute("BEGIN IMMEDIATE")

    def commit(self) -> None:
        """Make it durable."""
        self.connection.execute("COMMIT")

    def roll_back(self) -> None:
        """Undo it."""
        # SQLite has done it by itself after some errors.
        with contextlib.suppress(sqlite3.Error):
            self.connection.execute("ROLLBACK")

    def count_changes(self) -> int:
        """Return how many rows were ever changed."""
        return self.connection.total_changes

    def blames_store(self, error: Exception) -> bool:
        """Tell whether an error is the file's fault."""
        # An error of Python's own module, such as a missing parameter, has no code.
        code = getattr(error, "sqlite_errorcode", None)
        return code is not None and code & _PRIMARY_CODE not in _FAULTS_OF_THE_WORK

    def recover(self, error: Exception, *, tries: int) -> bool:
        """Tell that a file that refused once is not tried again: its answer would not differ."""
        del error, tries
        return False

    def describe(self, error: Exception) -> StoreError:
        """Return what those are told whose batch failed."""
        return StoreError(f"{self._name}: write failed, nothing was stored: {error}")
