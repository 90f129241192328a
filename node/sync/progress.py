"""How far a node is with catching up, for people: `/health`, the terminal, the explorer."""

from __future__ import annotations

from collections import deque

from ledger.views import SyncProgress

WINDOW_S = 10.0
"""Rates are those of this long."""
MAX_SAMPLES = 1024


def describe_progress(progress: SyncProgress) -> str:
    """Return one line for the terminal and the log."""
    if progress.state == "stalled":
        return f"block {progress.height:,}; no source can be used: {progress.last_error}"
    if progress.state == "idle":
        return f"block {progress.height:,}; up to date"
    left = "" if progress.eta_s is None else f", about {progress.eta_s} s left"
    return (
        f"block {progress.height:,} of {progress.target_height:,}, "
        f"{progress.receipts_per_s:,.0f} receipts/s{left}"
    )


class RateMeter:
    """Rates over the last seconds, from totals noted as they grow."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int, int]] = deque(maxlen=MAX_SAMPLES)

    def restart(self, now_s: float, height: int, tree_size: int) -> None:
        """Begin anew: what was idle time is no part of a rate."""
        self._samples.clear()
        self._samples.append((now_s, height, tree_size))

    def note(self, now_s: float, height: int, tree_size: int) -> None:
        """Take the totals of a moment."""
        while len(self._samples) > 1 and self._samples[0][0] < now_s - WINDOW_S:
            self._samples.popleft()
        self._samples.append((now_s, height, tree_size))

    def rates(self) -> tuple[float, float]:
        """Return blocks and transactions per second."""
        if len(self._samples) < 2:
            return 0.0, 0.0
        (began, height, size), (now, new_height, new_size) = self._samples[0], self._samples[-1]
        elapsed = now - began
        if elapsed <= 0:
            return 0.0, 0.0
        return (new_height - height) / elapsed, (new_size - size) / elapsed
