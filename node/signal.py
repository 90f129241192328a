"""Signals fired from any thread: one for any number of waiters, and a latch for a single one."""

from __future__ import annotations

import asyncio
import contextlib
import threading


class Signal:
    """Wakes everybody who waits. What it stands for is read by the waiters themselves."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        """Of the loop."""
        self._event = asyncio.Event()
        self._is_due = False
        """Whether the loop has been asked to wake all, and has not done so yet."""
        self.waiting = 0
        """How many wait now."""

    def bind(self) -> None:
        """Let `fire` reach waiters of the running loop."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._is_due = False

    def fire(self) -> None:
        """Wake all waiters, from any thread. Without a running loop nobody waits."""
        if self._thread == threading.get_ident():
            self._wake()
        # Whoever is woken reads later than this, so one wake-up stands for all that came before it.
        elif self._loop is not None and not self._is_due:
            self._is_due = True
            with contextlib.suppress(RuntimeError):  # the loop has closed, at the end of the node
                self._loop.call_soon_threadsafe(self._wake)

    async def wait(self, timeout_s: float | None = None) -> None:
        """Return when the signal is fired next, or after `timeout_s`.

        Read the state you wait for, and call this before anything else is awaited: a signal that
        fires in between is not missed, since both happen in one turn of the loop.
        """
        event = self._event
        self.waiting += 1
        try:
            async with asyncio.timeout(timeout_s):
                await event.wait()
        except TimeoutError:
            return
        finally:
            self.waiting -= 1

    def _wake(self) -> None:
        self._is_due = False
        if self.waiting:
            event, self._event = self._event, asyncio.Event()
            event.set()


class Latch:
    """Wakes the one who waits, and remembers having been set while nobody did."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._event = asyncio.Event()

    def bind(self) -> None:
        """Let `set` reach the waiter of the running loop."""
        self._loop = asyncio.get_running_loop()

    def set(self) -> None:
        """Wake the waiter, now or as soon as it waits. Without a running loop nobody does."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has closed, at the end of the node
                self._loop.call_soon_threadsafe(self._event.set)

    async def wait(self, timeout_s: float) -> None:
        """Return once it has been set since the last call, or after `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._event.wait()
        except TimeoutError:
            return
        finally:
            self._event.clear()
