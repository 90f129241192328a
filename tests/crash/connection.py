"""What our stores use of `sqlite3`, said with APSW."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator
from typing import Any

import apsw

_ERRORS = {
    apsw.ConstraintError: sqlite3.IntegrityError,
    apsw.CorruptError: sqlite3.DatabaseError,
    apsw.NotADBError: sqlite3.DatabaseError,
}


class Row(tuple):
    """A row whose columns have names, too."""

    __slots__ = ()
    _names: tuple[str, ...] = ()

    def __getitem__(self, place):
        return super().__getitem__(self._names.index(place) if isinstance(place, str) else place)

    def keys(self) -> list[str]:
        return list(self._names)


class Cursor:
    """All rows of one statement, which has ended."""

    def __init__(self, rows: list[Any], names: tuple[str, ...], changed: int, last: int) -> None:
        self.description = [(name,) for name in names] or None
        self.rowcount = changed
        self.lastrowid = last
        self._rows = iter(rows)

    def __iter__(self) -> Iterator[Any]:
        return self._rows

    def fetchone(self) -> Any:
        return next(self._rows, None)

    def fetchall(self) -> list[Any]:
        return list(self._rows)

    def fetchmany(self, size: int) -> list[Any]:
        return [row for row, _ in zip(self._rows, range(size), strict=False)]


class Connection:
    """One connection without transactions of its own making, as with `isolation_level=None`."""

    isolation_level = None

    def __init__(self, target: str, *, uri: bool, layer: str) -> None:
        flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE
        self.row_factory: Any = None
        with _translated():
            self._inner = apsw.Connection(
                target, flags=flags | (apsw.SQLITE_OPEN_URI if uri else 0), vfs=layer
            )

    @property
    def in_transaction(self) -> bool:
        return self._inner.in_transaction

    @property
    def total_changes(self) -> int:
        return self._inner.total_changes()

    def execute(self, sql: str, parameters: Any = ()) -> Cursor:
        with _translated():
            before = self._inner.total_changes()
            cursor = self._inner.cursor()
            names: tuple[str, ...] = ()

            def note_names(prepared: apsw.Cursor, _sql: str, _parameters: object) -> bool:
                nonlocal names  # it does not tell them once there are no more rows
                names = tuple(column[0] for column in prepared.get_description())
                return True

            cursor.exec_trace = note_names
            rows: list[Any] = cursor.execute(sql, parameters).fetchall()
            if self.row_factory is sqlite3.Row:
                kind = type("NamedRow", (Row,), {"_names": names, "__slots__": ()})
                rows = [kind(row) for row in rows]
            changed = self._inner.changes() if self._inner.total_changes() != before else 0
            return Cursor(rows, names, changed, self._inner.last_insert_rowid())

    def executemany(self, sql: str, many: Iterable[Any]) -> None:
        for parameters in many:
            self.execute(sql, parameters)

    def close(self) -> None:
        with _translated():
            self._inner.close()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self.in_transaction:
            self.execute("COMMIT" if kind is None else "ROLLBACK")


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except apsw.Error as error:
        kind = _ERRORS.get(type(error), sqlite3.OperationalError)
        translated = kind(str(error))
        translated.sqlite_errorcode = getattr(error, "extendedresult", apsw.SQLITE_ERROR)
        raise translated from error
