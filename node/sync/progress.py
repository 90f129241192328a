"""How far a node is with catching up, for people: `/health`, the terminal, the explorer."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Literal

SyncState = Literal["idle", "stalled", "syncing"]
"""idle: nothing is known that is not here. stalled: no source can be used at the moment."""

WINDOW_S = 10.0
"""Rates are those of this long."""
MAX_SAMPLES = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncProgress:
    """One look at a syncer."""

    state: SyncState
    height: int
    target_height: int
    """What a source says its newest final height is; at least `height`."""
    blocks_per_s: float
    receipts_per_s: float
    eta_s: int | None
    """Seconds until the target is reached at this rate; None if that cannot be told."""
    source: str | None
    """Address of the source in use."""
    last_error: str | None
    """Why a source could not be used; None once one was used without a fault."""

    def describe(self) -> str:
        """Return one line for the terminal and the log."""
        if self.state == "stalled":
            return f"block {self.height:,}; no source can be used: {self.last_error}"
        if self.state == "idle":
            return f"block {self.height:,}; up to date"
        left = "" if self.eta_s is None else f", about {self.eta_s} s left"
        return (
            f"block {self.height:,} of {self.target_height:,}, "
            f"{self.receipts_per_s:,.0f} receipts/s{left}"
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
