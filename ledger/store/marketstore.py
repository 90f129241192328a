"""What holds the market: jobs, miners, keys, receipts on their way. One interface, two engines.

`database.Database` is node.db, a SQLite file for one node; `postgres.market.PostgresMarket` is what
several processes share. A store answers writes once they are
durable, and runs each alone: no write of whatever process comes between the statements of another.
So what a write has checked still holds when it changes something, and places in a table are in the
order in which they became readable.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Literal, Protocol, TypeVar

from ledger.store.sessions import Connection
from ledger.store.writing import Post, Reply, Work

T = TypeVar("T")

NewsKind = Literal[
    "job_waiting",
    "audit_waiting",
    "transaction_waiting",
    "event_waiting",
    "job_changed",
    "attempt_ended",
    "anything",
]
"""What another process has stored. Two name a job; `anything` is said when it is not known."""
Hear = Callable[[NewsKind, bytes], None]
"""Is told what it was, and the job's id or b""."""


class MarketStore(Protocol):
    """Where a coordinator keeps its market."""

    def write(self, work: Work[T]) -> Future[T]:
        """Queue one write. The future resolves after the commit, with what `work` returned.

        `work` may run twice.

        Raises:
            DatabaseBusyError: too many writes wait already.
            StoreError: the store is closed.
        """

    def send(self, work: Work[Any], reply: Reply, post: Post) -> None:
        """Queue one write as `write` does; `post(function, argument)` brings the reply."""

    @property
    def reader(self) -> Connection:
        """The calling thread's connection that cannot write, for short reads."""

    @property
    def state(self) -> bytes:
        """Stands for the API keys and miners that are stored: another one after each change."""

    @property
    def waiting_writes(self) -> int:
        """How many writes of this process wait, roughly."""

    @property
    def is_lost(self) -> bool:
        """Whether it does not answer at the moment."""

    def listen(self, hear: Hear) -> None:
        """Tell `hear`, from a thread of the store, what other processes have stored.

        Only a store that processes share has anything to tell.
        """

    def forget_versions(self) -> bool:
        """Remove what was replaced or deleted wherever older versions of it are kept.

        Blocks shortly; not for the loop. False if somebody was in the way; try again later then.
        """

    def close(self) -> None:
        """Finish the writes that wait, then close every connection."""
