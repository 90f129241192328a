"""Connections to PostgreSQL, and what this process knows of the server behind them.

A connection looks like SQLite's (`sessions.Connection`). Nothing waits for a lost server for long:
what waits is bounded in time by the settings below, and while the server is known to be lost,
reads are refused without asking it. One thread alone tries whether it is back (`listening.py`).
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any

import psycopg
from psycopg import conninfo
from psycopg.types.numeric import Int8BinaryDumper
from psycopg.types.string import StrDumperUnknown

from ledger.errors import StoreError
from ledger.store.postgres.dialect import translate
from ledger.store.writequeue import DatabaseLostError

SCHEMES = ("postgresql://", "postgres://")
LEAST_VERSION = 130_000
READ_TIMEOUT_MS = 5_000
WRITE_TIMEOUT_MS = 10_000
"""Also how long one process waits for its turn to write."""
IDLE_TIMEOUT_MS = 5_000
"""A process that stops in the middle of a transaction holds up all others for so long."""

# What the URL may change.
_DEFAULTS = {
    "connect_timeout": "3",
    "tcp_user_timeout": "5000",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "2",
    "application_name": "aitbc",
}
_PREPARE_AFTER = 2

logger = logging.getLogger(__name__)


class ServerAddress:
    """Where the database is. Its password is never shown, nor is anything else of the URL."""

    def __init__(self, url: str) -> None:
        """Raises StoreError: it is no URL of a database."""
        if not url.startswith(SCHEMES):
            raise StoreError("--database: expected postgresql://USER@HOST/NAME")
        try:
            given = conninfo.conninfo_to_dict(url)
        except psycopg.Error:
            # What the library says quotes the URL.
            raise StoreError(
                "--database: is not a URL that PostgreSQL understands; see "
                "https://www.postgresql.org/docs/current/libpq-connect.html"
            ) from None
        self._parameters: dict[str, Any] = {**_DEFAULTS, **given, "client_encoding": "utf8"}
        self.name = f"{given.get('dbname', 'database')} on {given.get('host', 'this machine')}"

    def __repr__(self) -> str:
        return f"ServerAddress({self.name!r})"

    def connect(self, *, timeout_ms: int, read_only: bool) -> psycopg.Connection[Any]:
        """Open a connection whose statements end by themselves. Raises psycopg.Error."""
        raw: psycopg.Connection[Any] = psycopg.connect(
            autocommit=True,
            prepare_threshold=_PREPARE_AFTER,
            cursor_factory=_Cursor,
            **self._parameters,
        )
        raw.adapters.register_dumper(int, Int8BinaryDumper)
        raw.adapters.register_dumper(bool, Int8BinaryDumper)
        raw.adapters.register_dumper(str, _TextDumper)
        settings = {
            "statement_timeout": timeout_ms,
            "lock_timeout": timeout_ms,
            "idle_in_transaction_session_timeout": IDLE_TIMEOUT_MS,
            "synchronous_commit": "on",
            "default_transaction_read_only": "on" if read_only else "off",
        }
        raw.execute("; ".join(f"SET {name} = {value}" for name, value in settings.items()).encode())
        return raw


class _TextDumper(StrDumperUnknown):
    """A name with a NUL, which no column can hold, is another name that none holds either."""

    def dump(self, obj: str) -> Any:
        return super().dump(obj.replace("\0", "\ufffd") if "\0" in obj else obj)


class _Row(tuple[Any, ...]):
    """A row; subclasses know the places of their columns."""

    __slots__ = ()
    places: dict[str, int]

    def __getitem__(self, key: Any, /) -> Any:
        return tuple.__getitem__(self, self.places[key] if key.__class__ is str else key)


@lru_cache(maxsize=1_000)
def _row_type(columns: tuple[str, ...]) -> type[_Row]:
    places = {name: place for place, name in enumerate(columns)}
    return type("_NamedRow", (_Row,), {"__slots__": (), "places": places})


@lru_cache(maxsize=2_000)
def _remember_rows(_statement: bytes) -> list[type[_Row]]:
    """A place for the type of a statement's rows, which costs more to find than to remember."""
    return []


def _make_rows(cursor: Any) -> Callable[[Sequence[Any]], _Row]:
    known = _remember_rows(cursor.statement)
    if not known:
        known.append(_row_type(tuple(column.name for column in cursor.description or ())))
    return known[0]


class _Cursor(psycopg.RawCursor[Any]):
    """What came of a statement, whose rows have their columns by name too."""

    statement = b""


class ServerConnection:
    """A connection as `sessions.Connection`, for one thread."""

    def __init__(self, raw: psycopg.Connection[Any]) -> None:
        self.raw = raw
        self.changes = 0
        """Grows with every statement that may have changed something, and every error."""
        self.changes_known = False
        """Whether keys or miners may have changed, since somebody has set it to False."""
        raw.row_factory = _make_rows

    def execute(self, statement: str, values: Sequence[Any] = (), /) -> Any:
        """Run one statement."""
        return self._run(statement, lambda cursor, text: cursor.execute(text, values or None))

    def executemany(self, statement: str, values: Iterable[Sequence[Any]], /) -> Any:
        """Run one statement for each of several values."""
        return self._run(statement, lambda cursor, text: cursor.executemany(text, values))

    def _run(self, statement: str, run: Callable[[Any, bytes], object]) -> Any:
        cursor: Any = self.raw.cursor()
        cursor.statement = text = translate(statement)
        try:
            run(cursor, text)
        except psycopg.Error:
            self.changes += 1  # the transaction is void, whatever was in it
            raise
        if not text.startswith(b"SELECT"):
            self.changes += 1
            self.changes_known |= b"miners" in text or b"api_keys" in text
        return cursor

    @property
    def process(self) -> int:
        """The server's process at the other end."""
        return self.raw.info.backend_pid

    @property
    def is_lost(self) -> bool:
        """Whether the server is gone."""
        return self.raw.closed

    def close(self) -> None:
        """End it."""
        self.raw.close()


class Link:
    """Whether the server answers, as far as this process knows. For all threads."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lost_at: float | None = None
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self.is_heard = False
        """Whether what other processes store is heard of."""

    @property
    def is_lost(self) -> bool:
        """Whether it does not answer."""
        return self._lost_at is not None

    def lost_for_s(self) -> float:
        """Return for how long it has not answered, 0 while it does."""
        since = self._lost_at
        return 0.0 if since is None else time.monotonic() - since

    def note_answer(self) -> None:
        """Say that it has answered."""
        if self._lost_at is not None:
            logger.warning("%s answers again", self._name)
        self._lost_at = None

    def note_loss(self) -> None:
        """Say that it did not."""
        with self._lock:
            if self._lost_at is None:
                logger.error("%s does not answer; what needs it is refused", self._name)
                self._lost_at = time.monotonic()

    def draw_number(self) -> int:
        """Return a number that was never returned before."""
        return next(self._numbers)


class ServerReader:
    """The reading connection of one thread, which comes back by itself when the server does."""

    def __init__(self, address: ServerAddress, link: Link) -> None:
        self._address = address
        self._link = link
        self._connection: ServerConnection | None = None

    def execute(self, statement: str, values: Sequence[Any] = (), /) -> Any:
        """Run one statement that changes nothing.

        Raises:
            DatabaseLostError: the server does not answer.
        """
        try:
            return self._connect().execute(statement, values)
        except psycopg.OperationalError:
            if self._connection is not None and not self._connection.is_lost:
                raise DatabaseLostError(f"{self._address.name}: took too long to answer") from None
        # The server has closed an idle connection, perhaps: it may be there all the same.
        self.close()
        try:
            return self._connect().execute(statement, values)
        except psycopg.OperationalError:
            self._link.note_loss()
            raise DatabaseLostError(f"{self._address.name}: does not answer") from None

    def executemany(self, statement: str, values: Iterable[Sequence[Any]], /) -> Any:
        """Refuse: nothing is written here."""
        raise AssertionError(f"a reader was asked to write: {statement} {values}")

    def _connect(self) -> ServerConnection:
        if self._link.is_lost:
            raise DatabaseLostError(f"{self._address.name}: does not answer")
        if self._connection is None:
            raw = self._address.connect(timeout_ms=READ_TIMEOUT_MS, read_only=True)
            self._connection = ServerConnection(raw)
        return self._connection

    def close(self) -> None:
        """End the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(psycopg.Error):
                connection.close()

    def __del__(self) -> None:
        self.close()  # of a thread that has ended
