"""Tells commits of our own that changed nothing of interest from all others.

Most commits are of this process, and most of those change no API key and no miner: then what is
known of them (`known.py`) need not be looked at again. Whether a transaction did is seen by its
writer, as long as nobody else can write. That it is the last one is seen by everybody: each commit
of whatever process counts on in the header of the WAL's index.
"""

from __future__ import annotations

import sqlite3
import sys
from typing import Any, NamedTuple

from ledger.store.sessions import FileSession
from ledger.store.sharedstate import SharedState

_COUNT = slice(8, 12)
"""Where the header counts transactions (`iChange`)."""


class _Own(NamedTuple):
    """What the newest commits of our own have changed nothing about."""

    token: bytes = b""
    """The state before the first of them, for which the others stand too."""
    header: bytes | None = None
    """Since the last one."""
    before: bytes | None = None
    """The header while one is under way."""


_NOTHING = _Own()


class WatchedState:
    """The state of a file. Any thread may read it; the writer's thread says what it does."""

    def __init__(self, shared: SharedState) -> None:
        self._shared = shared
        self._own = _NOTHING

    def read(self) -> bytes:
        """Return bytes that are others after each commit that may have changed something."""
        header, own = self._shared.read(), self._own
        is_own = header == own.header or (
            own.before is not None and _is_next(header, own.before, steps=(0, 1))
        )
        return own.token if is_own else header

    def begin_commit(self, *, is_harmless: bool) -> None:
        """Say, while nobody else can write, what is about to become durable."""
        before, own = self._shared.read(), self._own
        token = own.token if before == own.header else before
        self._own = _Own(token, None, before) if is_harmless else _NOTHING

    def end_commit(self) -> None:
        """Say that it is. Somebody else may have written since."""
        header, own = self._shared.read(), self._own
        is_last = own.before is not None and _is_next(header, own.before, steps=(1,))
        self._own = _Own(own.token, header) if is_last else _NOTHING

    def forget(self) -> None:
        """Say that nothing came of it."""
        self._own = _NOTHING


def _is_next(header: bytes, before: bytes, *, steps: tuple[int, ...]) -> bool:
    counts = [int.from_bytes(each[_COUNT], sys.byteorder) for each in (header, before)]
    return (counts[0] - counts[1]) % (1 << 32) in steps


class WatchedSession(FileSession):
    """The writing connection of a file, of which some rows are watched."""

    def __init__(
        self, name: str, connection: sqlite3.Connection, state: WatchedState, watched: str
    ) -> None:
        """`watched` is a statement whose rows tell whether anything of interest has changed."""
        super().__init__(name, connection)
        self._state = state
        self._watched = watched
        self._rows: list[Any] | None = None
        """As the last commit has left them; None if that is not known."""

    def commit(self) -> None:
        """Make it durable."""
        rows = [tuple(row) for row in self.connection.execute(self._watched)]
        self._state.begin_commit(is_harmless=rows == self._rows)
        self._rows = rows
        super().commit()
        self._state.end_commit()

    def roll_back(self) -> None:
        """Undo it."""
        super().roll_back()
        self._state.forget()
        self._rows = None
