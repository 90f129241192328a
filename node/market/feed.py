"""News of jobs: who waits for one, and what its miner has told of its text so far.

Blocks are news too: whoever waits for one hears of every new one. Nothing here is durable. A job's
state is read from node.db; the text of a running job is only a preview, which its miner repeats if
this process forgot it. Text is kept while somebody may want it: until the attempt is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator

from ledger.errors import MarketError

MAX_TEXT_CHARS = 32 << 20
"""Of all running jobs together; of those that one API key tells, half of it."""
MAX_JOB_TEXT_CHARS = 4 << 20
"""Of one job; a result has at most as many bytes."""
PIECE_CHARS = 4_096
"""Shorter pieces are joined as they come, so that text told by the letter costs no more to hold."""
BLOCKS = b""
"""Stands for all blocks where others stand for a job."""


class JobWatch:
    """One who waits for news of one job. Made before the job is read, so that no news is missed."""

    __slots__ = ("_ends_at", "_feed", "_has_news", "_timer", "_waiter", "wants_text")

    def __init__(self, feed: JobFeed, *, text: bool) -> None:
        self._feed = feed
        self._has_news = False
        self._waiter: asyncio.Future[None] | None = None
        self._ends_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self.wants_text = text
        """Whether text alone is news."""

    def wake(self) -> None:
        """Say that there is news."""
        self._has_news = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self, timeout_s: float) -> bool:
        """Return once there is news since the last call, or after `timeout_s`.

        False at the end of the node.
        """
        if not self._has_news:
            loop = asyncio.get_running_loop()
            self._ends_at = loop.time() + timeout_s
            # One timer lasts for many waits: each event of each follower would make one.
            if self._timer is None or self._timer.when() > self._ends_at:
                self._stop_timer()
                self._timer = loop.call_at(self._ends_at, self._look)
            self._waiter = loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        self._has_news = False
        return not self._feed.is_closing

    def end(self) -> None:
        """Wait no more."""
        self._stop_timer()

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = None
        if self._waiter is None:
            return
        if loop.time() >= self._ends_at:
            self.wake()
        else:
            self._timer = loop.call_at(self._ends_at, self._look)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _Text:
    """What is known of the text of one attempt."""

    def __init__(self, attempt: int, teller: str) -> None:
        self.attempt = attempt
        self.teller = teller
        self.chars = 0
        self._pieces: list[str] = []

    def add(self, text: str) -> None:
        if self._pieces and len(self._pieces[-1]) < PIECE_CHARS:
            self._pieces[-1] += text
        else:
            self._pieces.append(text)
        self.chars += len(text)

    def whole(self) -> str:
        if len(self._pieces) > 1:
            self._pieces = ["".join(self._pieces)]
        return self._pieces[0] if self._pieces else ""


class JobFeed:
    """Wakes whoever waits for a job, or for blocks.

    `note`, `note_all` and `end` may be called from any thread, the rest in the loop.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        """Of the loop."""
        self._watches: dict[bytes, set[JobWatch]] = {}
        self._texts: dict[bytes, _Text] = {}
        self._chars = 0
        self._chars_of: Counter[str] = Counter()
        self.waiting = 0
        """How many wait now."""
        self.is_closing = False

    def bind(self) -> None:
        """Let `note` and `end` reach the running loop."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()

    def close(self) -> None:
        """Wake everybody, now and later."""
        self.is_closing = True
        self._wake_all()

    def note(self, job_id: bytes) -> None:
        """Say that a job has changed, after the change can be read."""
        # Whoever begins to watch after this look reads the job later still, and sees the change.
        if job_id in self._watches:
            self._call(self._wake, job_id)

    def note_all(self) -> None:
        """Say that any job may have changed."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has closed, at the end of the node
                self._loop.call_soon_threadsafe(self._wake_all)

    def end(self, job_id: bytes) -> None:
        """Say that an attempt is over, after that can be read, and drop its text."""
        # No look here: the loop may be about to add text to a job that it has read as running.
        self._call(self._end, job_id)

    def _call(self, action: Callable[[bytes], None], job_id: bytes) -> None:
        if self._thread == threading.get_ident():
            action(job_id)
        elif self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has closed, at the end of the node
                self._loop.call_soon_threadsafe(action, job_id)

    @contextlib.contextmanager
    def watch(self, job_id: bytes, *, text: bool = False) -> Iterator[JobWatch]:
        """Let somebody wait for news of a job, with `text` of its text too, within the context."""
        watch = JobWatch(self, text=text)
        if self.is_closing:
            watch.wake()
        watches = self._watches.setdefault(job_id, set())
        watches.add(watch)
        self.waiting += 1
        try:
            yield watch
        finally:
            self.waiting -= 1
            watch.end()
            watches.discard(watch)
            if not watches:
                self._watches.pop(job_id, None)

    def _wake(self, job_id: bytes) -> None:
        for watch in self._watches.get(job_id, ()):
            watch.wake()

    def _wake_all(self) -> None:
        for job_id in self._watches:
            self._wake(job_id)

    def _end(self, job_id: bytes) -> None:
        self._forget(job_id)
        self._wake(job_id)

    # --- text -----------------------------------------------------------------------------------

    def text(self, job_id: bytes, attempt: int) -> str:
        """Return what the miner of this attempt has told so far."""
        known = self._texts.get(job_id)
        if known is None or known.attempt != attempt:
            return ""
        return known.whole()

    def append(
        self, job_id: bytes, attempt: int, *, offset: int, text: str, teller: str = ""
    ) -> int:
        """Add text that begins `offset` characters into the answer; returns how many are known.

        What is known already is skipped. Text beyond a gap is not taken: the answer tells the miner
        from where to repeat. `teller` is the API key of the miner, empty without one.

        Raises:
            MarketError: SYSTEM_OVERLOADED, too much text is held for running jobs.
        """
        known = self._texts.get(job_id)
        if known is None or known.attempt != attempt:
            self._forget(job_id)
            known = self._texts[job_id] = _Text(attempt, teller)
        if offset > known.chars:
            return known.chars
        fresh = text[known.chars - offset :]
        if fresh:
            self._check_room(known, len(fresh))
            known.add(fresh)
            self._chars += len(fresh)
            self._chars_of[known.teller] += len(fresh)
            for watch in self._watches.get(job_id, ()):
                if watch.wants_text:
                    watch.wake()
        return known.chars

    def _check_room(self, known: _Text, chars: int) -> None:
        own = self._chars_of[known.teller] + chars if known.teller else 0
        is_full = self._chars + chars > MAX_TEXT_CHARS or 2 * own > MAX_TEXT_CHARS
        if is_full or known.chars + chars > MAX_JOB_TEXT_CHARS:
            raise MarketError("SYSTEM_OVERLOADED", "no room for more text of running jobs")

    def _forget(self, job_id: bytes) -> None:
        known = self._texts.pop(job_id, None)
        if known is not None:
            self._chars -= known.chars
            self._chars_of[known.teller] -= known.chars
            if not self._chars_of[known.teller]:
                del self._chars_of[known.teller]
