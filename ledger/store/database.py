"""One SQLite file: one writing connection in one thread, readers that cannot write.

Every write is a function that gets the connection. The writer runs all functions that wait in one
transaction (group commit, `writing.py`) and answers them after the commit: what is answered is
durable, and rests on nothing that is not. One that raises is rolled back alone; if the file fails,
all of them fail.

What is deleted or replaced is overwritten in the file (`secure_delete`); older versions of a page
are in the WAL until `forget_versions`.

The file is WAL with synchronous=FULL; both are read back when it is opened, since SQLite ignores
a pragma it cannot honour without a word.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import sqlite_utils
from sqlite_utils.migrations import Migrations

from ledger.errors import StoreError
from ledger.store.marketstore import Hear
from ledger.store.ownwrites import WatchedSession, WatchedState
from ledger.store.sessions import FileSession
from ledger.store.sharedstate import SharedState
from ledger.store.writequeue import WriteQueue

PAGE_SIZE_BYTES = 8192
BUSY_TIMEOUT_MS = 5_000
EMPTYING_TIMEOUT_MS = 100
"""How long whoever empties the WAL holds up others to wait for readers of it."""
_SYNCHRONOUS_FULL = 2
_PRIVATE_FILE = 0o600
_CODE = "SELECT type, name, sql FROM sqlite_schema WHERE type IN ('trigger', 'view')"


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


def find_foreign_code(
    connection: sqlite3.Connection, migrations: Migrations
) -> tuple[str, str] | None:
    """Return type and name of a trigger or view that no migration makes, if there is one.

    A trigger acts on what a node writes, and a view stands for a table: in a file from elsewhere
    they would be somebody else's code.
    """
    with contextlib.closing(sqlite3.connect(":memory:")) as scratch:
        migrations.apply(sqlite_utils.Database(scratch))
        own = {tuple(row) for row in scratch.execute(_CODE)}
    for row in connection.execute(_CODE):
        if tuple(row) not in own:
            return row[0], row[1]
    return None


def _configure(path: Path, connection: sqlite3.Connection) -> None:
    connection.execute(f"PRAGMA page_size = {PAGE_SIZE_BYTES}")
    connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA secure_delete = ON")
    connection.execute("PRAGMA temp_store = MEMORY")
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


class Database(WriteQueue):
    """A database file with group commit. Close it to stop its thread."""

    def __init__(self, path: Path, migrations: Migrations, *, watched: str = "") -> None:
        """The rows of the statement `watched` differ after each change that `state` tells of."""
        self.path = path
        self._connection = open_writer(path, migrations)
        self._shared = SharedState(path)
        self._state = WatchedState(self._shared)
        self._readers = threading.local()
        self._open_readers: list[sqlite3.Connection] = []
        session = FileSession(path.name, self._connection)
        if watched:
            session = WatchedSession(path.name, self._connection, self._state, watched)
        super().__init__(path.name, session)

    @property
    def state(self) -> bytes:
        """Stands for the state of what is watched: another one after each change of it.

        After commits of other processes too, whatever they have changed.
        """
        return self._state.read()

    @property
    def is_lost(self) -> bool:
        """A file is always there."""
        return False

    def listen(self, hear: Hear) -> None:
        """Tell nothing: one node writes into a file, and `state` tells of its commands."""

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

    def forget_versions(self) -> bool:
        """Bring the WAL into the file and cut it to nothing. Blocks shortly; not for the loop.

        Returns False if somebody else was in the way; try again later then.
        """
        with contextlib.closing(sqlite3.connect(self.path, isolation_level=None)) as connection:
            connection.execute(f"PRAGMA busy_timeout = {EMPTYING_TIMEOUT_MS}")
            busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return not busy

    def close(self) -> None:
        """Finish the writes that wait, then close every connection."""
        if not self.end_writes():
            return
        for connection in self._open_readers:
            connection.close()
        self._connection.close()
        self._shared.close()


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
