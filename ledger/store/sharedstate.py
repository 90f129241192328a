"""Whether anybody has written into a database file, told without asking SQLite.

The index of a WAL is in memory that all processes share, the file `-shm`. Its header differs after
each commit of any of them (https://www.sqlite.org/walformat.html, section 2.1). To compare it costs
no system call; to read one row costs six, and pages that are read anew after every commit.

Whatever descriptor of a file a process closes, it loses all its locks on that file, SQLite's too.
So each file is opened once in a process, and closed after SQLite has closed it.
"""

from __future__ import annotations

import mmap
import os
import threading
from pathlib import Path

HEADER_BYTES = 48


class _Map:
    """The header of one file's index."""

    def __init__(self, path: Path) -> None:
        self.users = 0
        self._descriptor = os.open(path, os.O_RDONLY)
        self.memory = mmap.mmap(self._descriptor, HEADER_BYTES, access=mmap.ACCESS_READ)

    def close(self) -> None:
        self.memory.close()
        os.close(self._descriptor)


_lock = threading.Lock()
_maps: dict[tuple[int, int], _Map] = {}
"""By device and number of the file."""


class SharedState:
    """The state of one database file that SQLite has open in this process, as a WAL."""

    def __init__(self, path: Path) -> None:
        shared = path.with_name(path.name + "-shm")
        found = shared.stat()
        self._name = found.st_dev, found.st_ino
        with _lock:
            known = _maps.get(self._name) or _Map(shared)
            _maps[self._name] = known
            known.users += 1
        self._memory = known.memory

    def read(self) -> bytes:
        """Return bytes that are others after each commit."""
        return self._memory[:HEADER_BYTES]

    def close(self) -> None:
        """Let go of it, once SQLite has closed the file."""
        with _lock:
            known = _maps[self._name]
            known.users -= 1
            if not known.users:
                del _maps[self._name]
                known.close()
