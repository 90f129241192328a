"""One SQLite file: one writing connection in one thread, readers that cannot write.

Every write is a function that gets the connection. The writer runs all functions that wait in one
transaction (group commit), each in a savepoint of its own, and answers them after the commit:
what is answered is durable, and rests on nothing that is not. One that raises is rolled back alone;
if the file fails, all of them fail.

What is deleted or replaced is overwritten in the file (`secure_delete`); older versions of a page
are in the WAL until `empty_wal`.

The file is WAL with synchronous=FULL; both are read back when it is opened, since SQLite ignores
a pragma it cannot honour without a word.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import sqlite_utils
from sqlite_utils.migrations import Migrations

from ledger.errors import StoreError

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]

PAGE_SIZE_BYTES = 8192
BUSY_TIMEOUT_MS = 5_000
EMPTYING_TIMEOUT_MS = 100
"""How long whoever empties the WAL holds up others to wait for readers of it."""
MAX_WAITING_WRITES = 10_000
MAX_BATCH = 512
GATHER_S = 0.001
"""How long a batch waits for company, if the one before had some. Fewer commits, and no delay for
one who writes alone."""
_JOIN_TIMEOUT_S = 60
_SYNCHRONOUS_FULL = 2
_PRIVATE_FILE = 0o600

# What SQLite refuses because of what was asked. Everything else (full, unreadable, damaged) is the
# file's fault, and then nothing of the batch can be relied on.
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

_Item = tuple[Work[Any], "Future[Any]"]


class DatabaseBusyError(StoreError):
    """Too many writes wait for the disk; the caller should try again later."""


def open_writer(path: Path, migrations: Migrations) -> sqlite3.Connection:
    """Open or create a database file for its one writer, and bring its schema up to date.

    Raises:
        StoreError: not a database, not writable, newer than this release, or not durable.
    """
    try:
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    except sqlite3.Error as error:
        raise StoreError(f"{path}: cannot be opened: {error}") from error
    try:
        _configure(path, connection)
        apply_schema(path, connection, migrations)
    except sqlite3.Error as error:
        connection.close()
        raise StoreError(f"{path}: cannot be opened as a database: {error}") from error
    except StoreError:
        connection.close()
        raise
    return connection


def apply_schema(path: Path, connection: sqlite3.Connection, migrations: Migrations) -> None:
    """Bring the schema of an open connection up to date.

    Raises:
        StoreError: the database is newer than this release.
    """
    database = sqlite_utils.Database(connection)
    _refuse_newer_schema(path, database, migrations)
    migrations.apply(database)
    connection.row_factory = sqlite3.Row


def require_schema(path: Path, connection: sqlite3.Connection, migrations: Migrations) -> None:
    """Check that the schema of an open database, which may be read-only, is this release's.

    Raises:
        StoreError: it is newer or older.
    """
    database = sqlite_utils.Database(connection)
    _refuse_newer_schema(path, database, migrations)
    if migrations.pending(database):
        raise StoreError(
            f"{path}: was written by an older release; start this node once, which brings it up "
            "to date"
        )


def _configure(path: Path, connection: sqlite3.Connection) -> None:
    connection.execute(f"PRAGMA page_size = {PAGE_SIZE_BYTES}")
    connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA secure_delete = ON")
    (synchronous,) = connection.execute("PRAGMA synchronous").fetchone()
    if mode != "wal" or synchronous != _SYNCHRONOUS_FULL:
        raise StoreError(
            f"{path}: expected journal_mode wal and synchronous {_SYNCHRONOUS_FULL}, "
            f"got {mode} and {synchronous}; put the data directory on a local file system"
        )


def _refuse_newer_schema(
    path: Path, database: sqlite_utils.Database, migrations: Migrations
) -> None:
    # All names the file has seen must be known here: an older release must not write a newer file.
    known = {migration.name for migration in migrations.pending(sqlite_utils.Database(memory=True))}
    unknown = sorted({migration.name for migration in migrations.applied(database)} - known)
    if unknown:
        raise StoreError(
            f"{path}: was written by a newer release ({', '.join(unknown)}); upgrade this node"
        )


class Database:
    """A database file with group commit. Close it to stop its thread."""

    def __init__(self, path: Path, migrations: Migrations) -> None:
        self.path = path
        self.commits = 0
        """Grows with each commit of this writer, before anybody is told of it."""
        self._writer = open_writer(path, migrations)
        self._waiting: queue.Queue[_Item | None] = queue.Queue(MAX_WAITING_WRITES)
        self._readers = threading.local()
        self._open_readers: list[sqlite3.Connection] = []
        self._closed = False
        self._closing = threading.Lock()
        self._thread = threading.Thread(target=self._run, name=f"writer {path.name}", daemon=True)
        self._thread.start()

    def write(self, work: Work[T]) -> Future[T]:
        """Queue one write. The future resolves after the commit, with what `work` returned.

        Raises:
            DatabaseBusyError: too many writes wait already.
            StoreError: the database is closed.
        """
        future: Future[T] = Future()
        # Under the lock nothing can queue up behind the end, where nobody would answer it.
        with self._closing:
            if self._closed:
                raise StoreError(f"{self.path}: is closed")
            try:
                self._waiting.put_nowait((work, future))
            except queue.Full:
                raise DatabaseBusyError(f"{self.path.name}: too many writes wait") from None
        return future

    @property
    def waiting_writes(self) -> int:
        """How many writes wait, roughly: others come and go."""
        return self._waiting.qsize()

    @property
    def reader(self) -> sqlite3.Connection:
        """The calling thread's read-only connection."""
        connection: sqlite3.Connection | None = getattr(self._readers, "connection", None)
        if connection is None:
            connection = open_reader(self.path)
            self._readers.connection = connection
            self._open_readers.append(connection)
        return connection

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[sqlite3.Connection]:
        """Let several reads of the calling thread see one state of the file."""
        connection = self.reader
        if connection.in_transaction:
            yield connection
            return
        connection.execute("BEGIN")
        try:
            yield connection
        finally:
            connection.execute("COMMIT")

    def empty_wal(self) -> bool:
        """Bring the WAL into the file and cut it to nothing. Blocks shortly; not for the loop.

        Returns False if somebody else was in the way; try again later then.
        """
        with contextlib.closing(sqlite3.connect(self.path, isolation_level=None)) as connection:
            connection.execute(f"PRAGMA busy_timeout = {EMPTYING_TIMEOUT_MS}")
            busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return not busy

    def close(self) -> None:
        """Finish the writes that wait, then close every connection."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
        self._waiting.put(None)
        self._thread.join(_JOIN_TIMEOUT_S)
        for connection in self._open_readers:
            connection.close()
        self._writer.close()

    def _run(self) -> None:
        has_company = False
        while (first := self._waiting.get()) is not None:
            if has_company:
                time.sleep(GATHER_S)
            batch, last = [first], False
            with contextlib.suppress(queue.Empty):
                while len(batch) < MAX_BATCH and not last:
                    item = self._waiting.get_nowait()
                    if item is None:
                        last = True
                    else:
                        batch.append(item)
            self._commit(batch)
            has_company = len(batch) > 1
            if last:
                return

    def _commit(self, batch: list[_Item]) -> None:
        # From here on none of them can be cancelled, so each has to be answered.
        batch = [item for item in batch if item[1].set_running_or_notify_cancel()]
        try:
            self._writer.execute("BEGIN IMMEDIATE")
            answers = [self._run_one(work) for work, _ in batch]
            self._writer.execute("COMMIT")
            self.commits += 1
        except sqlite3.Error as error:
            self._roll_back()
            failure = StoreError(f"{self.path.name}: write failed, nothing was stored: {error}")
            failure.__cause__ = error
            for _, future in batch:
                future.set_exception(failure)
            return
        for (_, future), (result, refusal) in zip(batch, answers, strict=True):
            if refusal is None:
                future.set_result(result)
            else:
                future.set_exception(refusal)

    def _roll_back(self) -> None:
        # SQLite has done it by itself after some errors; if it cannot now, the next BEGIN tells.
        with contextlib.suppress(sqlite3.Error):
            self._writer.execute("ROLLBACK")

    def _run_one(self, work: Work[Any]) -> tuple[Any, Exception | None]:
        """Return what `work` returned, or what it raised. Raises what the file is to blame for."""
        answer: tuple[Any, Exception | None]
        self._writer.execute("SAVEPOINT work")
        try:
            answer = work(self._writer), None
        except Exception as error:
            if _is_fault_of_file(error):
                raise
            self._writer.execute("ROLLBACK TO work")
            answer = None, error
        self._writer.execute("RELEASE work")
        return answer


def _is_fault_of_file(error: Exception) -> bool:
    # An error of Python's own module, such as a missing parameter, has no code.
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & _PRIMARY_CODE not in _FAULTS_OF_THE_WORK


def make_private(path: Path) -> None:
    """Let a database file that is about to be made belong to its owner alone.

    SQLite gives the files it puts beside it the same mode.
    """
    path.touch(_PRIVATE_FILE)


@contextlib.contextmanager
def create_private(path: Path, migrations: Migrations) -> Iterator[sqlite3.Connection]:
    """Make the file of a new key, filled in the context; it appears whole or not at all.

    Raises:
        StoreError: there is one already, or the disk refuses.
    """
    if path.exists():
        raise StoreError(f"{path}: exists already; a new key needs a {path.name} of its own")
    draft = path.with_name(path.name + ".draft")
    try:
        for end in ("", "-wal", "-shm"):  # what a creation that was cut off has left
            draft.with_name(draft.name + end).unlink(missing_ok=True)
        make_private(draft)
        with contextlib.closing(open_writer(draft, migrations)) as connection:
            yield connection
        draft.rename(path)
        sync_directory(path.parent)
    except (OSError, sqlite3.Error) as error:
        raise StoreError(f"{path}: cannot be created: {error}") from error


def sync_directory(path: Path) -> None:
    """Make renames and new files in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_reader(path: Path) -> sqlite3.Connection:
    """Open a connection that cannot write, for the calling thread or one that takes it over."""
    connection = sqlite3.connect(
        f"{path.resolve().as_uri()}?mode=ro",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
    )
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA query_only = ON")
    connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    return connection
