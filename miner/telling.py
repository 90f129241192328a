"""Telling a job's text while it is generated, for those who wait for it.

A courtesy: the result counts. So it never holds up the inference, one request is on its way at a
time, and whatever goes wrong with it ends the telling at most, never the job.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable

from miner.errors import CoordinatorError, UnreachableError
from miner.retry import Backoff, Pace

log = logging.getLogger(__name__)

MAX_PIECE_CHARS = 64 << 10
"""Of one request. In JSON a character takes 6 bytes at most, and a node reads 1 MiB."""


class Teller:
    """Sends the text of one job, a batch at a time."""

    def __init__(self, send: Callable[[int, str], Awaitable[int]], pace: Pace) -> None:
        """Made in the event loop.

        Args:
            send: tells a piece of text that begins so many characters into the answer; returns how
                many characters the node knows then.
            pace: how often.
        """
        self._send = send
        self._pace = pace
        self._loop = asyncio.get_running_loop()
        self._fresh: deque[str] = deque()
        self._news = asyncio.Event()
        self._is_idle = False
        """Whether the loop wants to hear of a piece; else it looks by itself."""
        self._text = ""

    def add(self, piece: str) -> None:
        """Take the next piece, from any thread; returns at once."""
        self._fresh.append(piece)
        if self._is_idle:
            self._is_idle = False
            self._loop.call_soon_threadsafe(self._news.set)

    async def run(self) -> None:
        """Send what comes until cancelled, or until the node does not want it."""
        backoff = Backoff(self._pace)
        known = 0
        while True:
            await self._gather(known)
            pause_s = self._pace.tell_interval_s
            try:
                # A node that was restarted knows less than before, and says so.
                told = self._text[known : known + MAX_PIECE_CHARS]
                known = min(await self._send(known, told), len(self._text))
                backoff.reset()
            except UnreachableError as error:
                if error.is_refusal:
                    log.info("the text is told no further: %s", error)
                    return
                pause_s = backoff.pause_s(error)
            except CoordinatorError as error:  # a heartbeat says the same if the job is lost
                log.info("the text is told no further: %s", error)
                return
            await asyncio.sleep(pause_s)

    async def _gather(self, known: int) -> None:
        """Take all pieces that are there, waiting for one if there is nothing to send."""
        self._news.clear()
        self._is_idle = True  # before the look: a piece that comes after it rings
        if not self._fresh and known >= len(self._text):
            await self._news.wait()
        self._is_idle = False
        # One by one: the other thread may be adding to what is taken.
        self._text += "".join(self._fresh.popleft() for _ in range(len(self._fresh)))
