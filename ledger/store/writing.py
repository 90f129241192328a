"""The one thread of a process that writes into a database: group commit.

All works that wait share one transaction and one fsync, and are answered after it. A work that
raises before it has changed anything just changed nothing. One that raises later has the whole
batch rolled back and done again, each work in a savepoint of its own, so that it is rolled back
alone: savepoints cost more than most works, and this is rare. So a work may run twice, and must
have no effect but on its connection until it is answered. How a transaction begins and ends, and
what is done if the store fails, is the session's (`sessions.py`).
"""

from __future__ import annotations

import contextlib
import logging
import queue
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, NamedTuple, TypeVar

from ledger.store.sessions import Session
from ledger.store.threadname import show_name

T = TypeVar("T")
Work = Callable[[Any], T]
"""Gets the connection: one of SQLite's, or of the market's engine."""
Reply = Callable[[Any, Exception | None], None]
"""Is told what a work returned, or None and what it raised."""
Post = Callable[..., object]
"""Calls its first argument with the others, later and elsewhere, as `call_soon_threadsafe` does."""

MAX_BATCH = 512
GATHER_S = 0.001
"""How long a batch waits for company, if the one before had some. Fewer commits, and no delay for
one who writes alone."""

_Answer = tuple[Any, Exception | None]

logger = logging.getLogger(__name__)


class Item(NamedTuple):
    """A work that waits, and who is told: a future in the writer's thread, or a reply by post."""

    work: Work[Any]
    future: Future[Any] | None = None
    reply: Reply = lambda _result, _error: None
    post: Post | None = None


class _HalfDoneError(Exception):
    """A work raised after it had changed something."""


class Writer:
    """Does what waits, batch by batch. Everything but `version` belongs to its thread."""

    def __init__(self, session: Session, waiting: queue.SimpleQueue[Item | None]) -> None:
        self.version = 0
        """Grows with each commit, before anybody is told of it; odd while others may see what it
        stores or not yet."""
        self._session = session
        self._waiting = waiting

    def run(self) -> None:
        """Do what waits until None comes."""
        show_name()
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
            self._do(batch)
            has_company = len(batch) > 1
            if last:
                return

    def _do(self, batch: list[Item]) -> None:
        # From here on none of them can be cancelled, so each has to be answered.
        batch = [i for i in batch if i.future is None or i.future.set_running_or_notify_cancel()]
        session, tries, answers = self._session, 0, None
        while answers is None:
            try:
                answers = self._commit(batch)
            except Exception as error:
                session.roll_back()
                tries += 1
                if not session.recover(error, tries=tries):
                    failure = session.describe(error)
                    failure.__cause__ = error
                    answers = [(None, failure)] * len(batch)
        _tell(batch, answers)

    def _commit(self, batch: list[Item]) -> list[_Answer]:
        """Return what each work returned or raised. Raises what the store is to blame for."""
        session = self._session
        session.begin()
        try:
            answers = [self._run_one(item.work) for item in batch]
        except _HalfDoneError:
            session.roll_back()
            session.begin()
            answers = [self._run_apart(item.work) for item in batch]
        self.version += 1
        try:
            session.commit()
        finally:
            self.version += 1
        return answers

    def _run_one(self, work: Work[Any]) -> _Answer:
        session = self._session
        changes = session.count_changes()
        try:
            return work(session.connection), None
        except Exception as error:
            if session.blames_store(error):
                raise
            if session.count_changes() != changes:
                raise _HalfDoneError from error
            return None, error

    def _run_apart(self, work: Work[Any]) -> _Answer:
        answer: _Answer
        session = self._session
        session.connection.execute("SAVEPOINT work")
        try:
            answer = work(session.connection), None
        except Exception as error:
            if session.blames_store(error):
                raise
            session.connection.execute("ROLLBACK TO work")
            answer = None, error
        session.connection.execute("RELEASE work")
        return answer


def _tell(batch: list[Item], answers: list[_Answer]) -> None:
    """Answer futures here, and everything that goes to one place by one letter."""
    letters: dict[Post, list[tuple[Reply, Any, Exception | None]]] = {}
    for item, (result, error) in zip(batch, answers, strict=True):
        if item.post is not None:
            letters.setdefault(item.post, []).append((item.reply, result, error))
        elif item.future is not None and error is not None:
            item.future.set_exception(error)
        elif item.future is not None:
            item.future.set_result(result)
    for post, letter in letters.items():
        with contextlib.suppress(RuntimeError):  # an event loop that has closed: nobody waits there
            post(_read_letter, letter)


def _read_letter(letter: list[tuple[Reply, Any, Exception | None]]) -> None:
    for reply, result, error in letter:
        try:
            reply(result, error)
        except Exception:
            logger.exception("what follows a write failed")
