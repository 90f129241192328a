"""How often and how long a miner tries things, and how it waits."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from miner.errors import MinerError, UnreachableError

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How often and how long things are tried."""

    poll_wait_s: int = 20
    """How long the node may hold a question for work."""
    partial_wait_s: int = 1
    """The same while some of the models have no free slot."""
    first_retry_s: float = 0.5
    longest_retry_s: float = 30.0
    """Retries double from the first to the longest."""
    attempts: int = 40
    """Of a call that must get through. About 18 minutes: longer than a node's restart."""
    last_attempts: int = 3
    """Attempts of anything once the worker was asked to stop."""
    tell_interval_s: float = 0.15
    """Between two pieces of text of a running job; the first goes at once."""
    lost_races: int = 10
    """Jobs in a row that others claimed first, before the miner rests between questions."""


class Backoff:
    """Pauses that double until something succeeds."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._next_s = pace.first_retry_s

    def pause_s(self, error: MinerError | None = None) -> float:
        """How long to pause now: as the node asked, else twice as long as the last time."""
        now_s = self._next_s
        self._next_s = min(now_s * 2, self._pace.longest_retry_s)
        asked_s = error.retry_after_s if isinstance(error, UnreachableError) else None
        return asked_s or now_s

    def reset(self) -> None:
        """Begin with the shortest pause again."""
        self._next_s = self._pace.first_retry_s


class Patience:
    """Waits that end when the worker is asked to stop."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self.stopping = asyncio.Event()

    async def persist(self, call: Callable[[], Awaitable[T]]) -> T:
        """Repeat a call that may be repeated until the node answers it.

        Raises:
            RefusedError: the node answered no.
            UnreachableError: it never answered.
        """
        backoff = Backoff(self._pace)
        attempt = 1
        while True:
            try:
                return await call()
            except UnreachableError as error:
                stopping = self.stopping.is_set()
                limit = self._pace.last_attempts if stopping else self._pace.attempts
                if attempt >= limit:
                    raise
                log.warning("%s; attempt %d of %d", error, attempt, limit)
                # Somebody waits for a worker that stops: as long as the node asks is too long.
                pause_s = backoff.pause_s(None if stopping else error)
                await (asyncio.sleep(pause_s) if stopping else self.rest(pause_s))
            attempt += 1

    async def rest(self, seconds: float) -> None:
        """Sleep, but wake up at once when asked to stop."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self.stopping.wait(), seconds)

    async def unless_stopping(self, call: Awaitable[T]) -> T | None:
        """The call's result, or None if asked to stop meanwhile."""
        task = asyncio.ensure_future(call)
        stopping = asyncio.ensure_future(self.stopping.wait())
        try:
            await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() else None
        finally:
            for future in (task, stopping):
                future.cancel()
            await asyncio.gather(task, stopping, return_exceptions=True)
