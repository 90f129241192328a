"""Names of threads, for the system's own tools: `top -H`, a profiler, `make bench`."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

_COMM = Path("/proc/thread-self/comm")
"""Linux; fifteen bytes of a name are kept there."""


def show_name() -> None:
    """Let the system show the calling thread under the name that it has in Python."""
    with contextlib.suppress(OSError):
        _COMM.write_text(threading.current_thread().name)
