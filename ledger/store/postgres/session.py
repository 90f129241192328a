"""Transactions of a writer on PostgreSQL.

Each begins with a lock that one transaction of all processes holds at a time, as BEGIN IMMEDIATE
does for a file: the rules of the market check rows that another statement has written (quotas,
turns, repeated requests, places in the mempool), and so hold as they do there. What a process reads
after it has the lock, it reads as the transaction before has left it.

A server that is lost is waited for, a while. If it was lost during COMMIT, the server is asked
afterwards what became of the transaction, by its number: so nothing is stored twice, and nothing is
answered that was not stored.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

import psycopg

from ledger.errors import StoreError
from ledger.store.postgres.connecting import Link, ServerConnection
from ledger.store.writequeue import DatabaseLostError

WAIT_FOR_SERVER_S = 5.0
"""How long writes wait for a server that is lost, before they are refused."""
RETRY_S = 0.1
MAX_TRIES = 4
_SLOW = (psycopg.errors.QueryCanceled, psycopg.errors.LockNotAvailable)
_FINAL = (*_SLOW, psycopg.errors.DiskFull)
"""What is not tried again: it has taken its time, or would end alike."""
_BEGIN = (
    # One message: each way to the server and back lets all others wait who want the lock.
    "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SELECT pg_current_xact_id()::text FROM"
    " pg_advisory_xact_lock(hashtextextended('aitbc ' || current_schema(), 0))"
)


class _UnknownOutcomeError(Exception):
    """Nobody can be asked what became of a transaction."""


class ServerSession:
    """The writing connection of this process."""

    def __init__(
        self, name: str, open_connection: Callable[[], ServerConnection], link: Link
    ) -> None:
        self._open = open_connection
        self.connection = open_connection()
        self.process = self.connection.process
        """The server's process for this connection; another thread may ask."""
        self._name = name
        self._link = link
        self._transaction = ""
        self.known_version = 0
        """Grows after each commit that may have changed keys or miners, before it is answered."""

    def begin(self) -> None:
        """Begin a transaction in which nobody else writes."""
        if self.connection.is_lost and not self._reconnect():
            raise psycopg.OperationalError("the server does not answer")
        begun = self.connection.execute(_BEGIN)
        self.connection.changes_known = False
        begun.nextset()
        (self._transaction,) = begun.fetchone()

    def commit(self) -> None:
        """Make it durable."""
        changes_known = self.connection.changes_known
        self._commit()
        self.known_version += changes_known

    def _commit(self) -> None:
        try:
            done = self.connection.execute("COMMIT").statusmessage
        except psycopg.Error:
            if not self.connection.is_lost or not self._was_committed():
                raise
        else:
            if done != "COMMIT":
                raise psycopg.InternalError("a statement failed that nobody heard of")

    def _was_committed(self) -> bool:
        if not self._reconnect():
            raise _UnknownOutcomeError
        # Right after the loss the server may be at it still.
        while True:
            row = self.connection.execute(
                "SELECT pg_xact_status(CAST(? AS xid8))", (self._transaction,)
            ).fetchone()
            if row[0] != "in progress":
                return bool(row[0] == "committed")
            time.sleep(RETRY_S)
            if self._link.lost_for_s() > WAIT_FOR_SERVER_S:
                raise _UnknownOutcomeError

    def roll_back(self) -> None:
        """Undo it."""
        with contextlib.suppress(psycopg.Error):
            self.connection.execute("ROLLBACK")

    def count_changes(self) -> int:
        """Return how many statements may have changed something."""
        return self.connection.changes

    def blames_store(self, error: Exception) -> bool:
        """Tell whether an error is the server's: lost, full, too slow, or somebody in the way."""
        return self.connection.is_lost or isinstance(error, psycopg.OperationalError)

    def recover(self, error: Exception, *, tries: int) -> bool:
        """Get ready to do a batch again."""
        if tries >= MAX_TRIES or not isinstance(error, psycopg.Error):
            return False
        if self.connection.is_lost:
            return self._reconnect()
        return isinstance(error, psycopg.OperationalError) and not isinstance(error, _FINAL)

    def describe(self, error: Exception) -> StoreError:
        """Return what those are told whose batch failed."""
        if isinstance(error, _UnknownOutcomeError):
            return DatabaseLostError(f"{self._name}: was lost before it said what it stored")
        if self.connection.is_lost or isinstance(error, _SLOW):
            return DatabaseLostError(f"{self._name}: does not answer, nothing was stored")
        return StoreError(f"{self._name}: write failed, nothing was stored: {error}")

    def _reconnect(self) -> bool:
        """Connect again, for as long as writes may wait. Returns whether it worked."""
        self._link.note_loss()
        # Past that time the listener alone tries, so that nobody waits for a connection in vain.
        while self._link.lost_for_s() <= WAIT_FOR_SERVER_S:
            with contextlib.suppress(psycopg.Error):
                connection = self._open()
                self.connection.close()
                self.connection, self.process = connection, connection.process
                self._link.note_answer()
                return True
            time.sleep(RETRY_S)
        return False
