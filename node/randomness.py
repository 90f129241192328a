"""Random bytes of the operating system, fetched for many uses at once.

Each fetch is a system call that lets other threads run first, which under load costs a request more
than all its own work on ids and salts.
"""

from __future__ import annotations

import os

POOL_BYTES = 4096


class RandomPool:
    """Hands out each byte once. For one thread."""

    def __init__(self) -> None:
        self._pool = b""
        self._used = 0

    def take(self, size: int) -> bytes:
        """Return `size` random bytes, at most POOL_BYTES."""
        end = self._used + size
        if end > len(self._pool):
            self._pool, self._used, end = os.urandom(POOL_BYTES), 0, size
        taken = self._pool[self._used : end]
        assert len(taken) == size, "a pool is larger than what is taken"
        self._used = end
        return taken
