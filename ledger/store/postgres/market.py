"""The market in PostgreSQL, as this process sees it."""

from __future__ import annotations

import logging
import threading
import weakref
from concurrent.futures import Future
from typing import Any

import psycopg

from ledger.errors import StoreError
from ledger.store.marketstore import Hear
from ledger.store.postgres.connecting import (
    LEAST_VERSION,
    READ_TIMEOUT_MS,
    WRITE_TIMEOUT_MS,
    Link,
    ServerAddress,
    ServerConnection,
    ServerReader,
)
from ledger.store.postgres.listening import Listener
from ledger.store.postgres.schema import apply_schema
from ledger.store.postgres.session import ServerSession
from ledger.store.sessions import Connection
from ledger.store.writequeue import WriteQueue

logger = logging.getLogger(__name__)


class PostgresMarket(WriteQueue):
    """A market that several processes share. Close it to stop its threads."""

    def __init__(self, address: ServerAddress) -> None:
        """Raises StoreError: the server cannot be used."""
        self._address = address
        self._link = Link(address.name)
        self._readers = threading.local()
        self._open_readers: weakref.WeakSet[ServerReader] = weakref.WeakSet()
        try:
            self._session = ServerSession(address.name, self._open_writer, self._link)
        except psycopg.Error as error:
            raise StoreError(f"{address.name}: cannot be opened: {_shorten(error)}") from error
        super().__init__(address.name, self._session)
        self._listener = Listener(
            address.name,
            lambda: address.connect(timeout_ms=READ_TIMEOUT_MS, read_only=True),
            self._link,
            lambda process: process == self._session.process,
        )

    def _open_writer(self) -> ServerConnection:
        raw = self._address.connect(timeout_ms=WRITE_TIMEOUT_MS, read_only=False)
        return ServerConnection(raw)

    def listen(self, hear: Hear) -> None:
        """Tell `hear`, from a thread of ours, what other processes have stored."""
        self._listener.listen(hear)

    @property
    def is_lost(self) -> bool:
        """Whether the server does not answer."""
        return self._link.is_lost

    @property
    def state(self) -> bytes:
        """Stands for the keys and miners that are stored; never the same while nobody is heard."""
        unheard = 0 if self._link.is_heard else self._link.draw_number()
        return f"{self._session.known_version} {self._listener.changes} {unheard}".encode()

    @property
    def reader(self) -> Connection:
        """The calling thread's connection that cannot write."""
        reader: ServerReader | None = getattr(self._readers, "reader", None)
        if reader is None:
            reader = self._readers.reader = ServerReader(self._address, self._link)
            self._open_readers.add(reader)
        return reader

    def forget_versions(self) -> bool:
        """Let the server remove the rows that updates have left behind."""
        with self._address.connect(timeout_ms=WRITE_TIMEOUT_MS, read_only=False) as raw:
            raw.execute(b"VACUUM (SKIP_LOCKED) jobs")
        return True

    def close(self) -> None:
        """Finish the writes that wait, then close every connection."""
        if not self.end_writes():
            return
        self._listener.stop()
        for reader in list(self._open_readers):
            reader.close()
        self._session.connection.close()


def _shorten(error: psycopg.Error) -> str:
    """Return what the server says, without the library's advice below it."""
    return str(error).partition("\n")[0]


def open_shared_market(
    url: str, genesis_hash: bytes, *, coordinator: str | None = None
) -> PostgresMarket:
    """Open the market of one coordinator in PostgreSQL, or make it in an empty database.

    `coordinator` is the account whose jobs it holds, None if that does not matter.

    Raises:
        StoreError: the server cannot be used, or the database is somebody else's.
    """
    address = ServerAddress(url)
    store = PostgresMarket(address)

    def adopt(connection: Any) -> None:
        _check_server(address.name, connection.raw)
        apply_schema(connection)
        _check_owner(address.name, connection, genesis_hash, coordinator)

    try:
        done: Future[None] = store.write(adopt)
        done.result()
    except (StoreError, psycopg.Error) as error:
        store.close()
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"{address.name}: cannot be opened: {_shorten(error)}") from error
    return store


def _check_server(name: str, raw: psycopg.Connection[Any]) -> None:
    if raw.info.server_version < LEAST_VERSION:
        raise StoreError(f"{name}: expected PostgreSQL 13 or newer")
    if raw.info.parameter_status("server_encoding") != "UTF8":
        raise StoreError(f"{name}: expected a database in UTF8: CREATE DATABASE … ENCODING 'UTF8'")
    for setting in ("fsync", "full_page_writes"):
        row = raw.execute(f"SHOW {setting}".encode()).fetchone()
        if row is not None and row[0] != "on":
            logger.warning("%s: %s is off, so a crash of its machine loses jobs", name, setting)


def _check_owner(
    name: str, connection: Connection, genesis_hash: bytes, coordinator: str | None
) -> None:
    connection.execute(
        "INSERT INTO node VALUES (1, ?, ?) ON CONFLICT DO NOTHING", (genesis_hash, coordinator)
    )
    if coordinator is not None:
        connection.execute(
            "UPDATE node SET coordinator = ? WHERE coordinator IS NULL", (coordinator,)
        )
    network, owner = connection.execute("SELECT genesis_hash, coordinator FROM node").fetchone()
    if network != genesis_hash:
        raise StoreError(
            f"{name}: belongs to network {network.hex()[:16]}…, genesis.json names "
            f"{genesis_hash.hex()[:16]}…; use another database"
        )
    if coordinator is not None and owner != coordinator:
        raise StoreError(
            f"{name}: holds the jobs of coordinator {owner}, this key is of {coordinator}; each "
            "coordinator has a database of its own"
        )
