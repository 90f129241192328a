"""The time, read where a process begins and handed on from there."""

from __future__ import annotations

import time


def read_clock_ms() -> int:
    """Return Unix time in milliseconds."""
    return time.time_ns() // 1_000_000
