"""Writes that wait for one writer thread (`writing.py`), and its end."""

from __future__ import annotations

import queue
import threading
from concurrent.futures import Future
from typing import Any, TypeVar

from ledger.errors import StoreError
from ledger.store.sessions import Session
from ledger.store.writing import Item, Post, Reply, Work, Writer

T = TypeVar("T")

MAX_WAITING_WRITES = 10_000
JOIN_TIMEOUT_S = 60


class DatabaseBusyError(StoreError):
    """Too many writes wait for the disk; the caller should try again later."""


class DatabaseLostError(DatabaseBusyError):
    """The database's server does not answer; the caller should try again later."""


class WriteQueue:
    """What a store does with writes. `end_writes` stops its thread."""

    def __init__(self, name: str, session: Session) -> None:
        self._name = name
        self._waiting: queue.SimpleQueue[Item | None] = queue.SimpleQueue()
        self._writer = Writer(session, self._waiting)
        self._closed = False
        self._closing = threading.Lock()
        self._thread = threading.Thread(target=self._writer.run, name=f"writer {name}", daemon=True)
        self._thread.start()

    def write(self, work: Work[T]) -> Future[T]:
        """Queue one write. The future resolves after the commit, with what `work` returned.

        `work` may run twice (see `writing.py`).

        Raises:
            DatabaseBusyError: too many writes wait already.
            StoreError: the database is closed.
        """
        future: Future[T] = Future()
        self._put(Item(work, future))
        return future

    def send(self, work: Work[Any], reply: Reply, post: Post) -> None:
        """Queue one write as `write` does; `post(function, argument)` brings the reply.

        Replies of one batch come by one call of `post`, which costs an event loop a wake-up.
        """
        self._put(Item(work, None, reply, post))

    def _put(self, item: Item) -> None:
        # Under the lock nothing can queue up behind the end, where nobody would answer it.
        with self._closing:
            if self._closed:
                raise StoreError(f"{self._name}: is closed")
            if self._waiting.qsize() >= MAX_WAITING_WRITES:
                raise DatabaseBusyError(f"{self._name}: too many writes wait")
            self._waiting.put(item)

    @property
    def version(self) -> int:
        """Grows with each commit of this writer, before anybody is told of it.

        Odd while others may see what it stores or not yet: then nothing read may be remembered.
        """
        return self._writer.version

    @property
    def waiting_writes(self) -> int:
        """How many writes wait, roughly: others come and go."""
        return self._waiting.qsize()

    def end_writes(self) -> bool:
        """Finish the writes that wait. Returns False if that was done before."""
        with self._closing:
            if self._closed:
                return False
            self._closed = True
        self._waiting.put(None)
        self._thread.join(JOIN_TIMEOUT_S)
        return True
