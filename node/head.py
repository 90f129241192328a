"""The newest final block, for whoever waits for the next one."""

from __future__ import annotations

from explorer_ui import ClosingError
from node.signal import Signal


class HeadWatch:
    """Tells the explorer and the block stream about new blocks, and about the end."""

    def __init__(self, height: int) -> None:
        self.height = height
        self.signal = Signal()
        self.is_closing = False

    def note(self, height: int) -> None:
        """Say that the block at `height` is final, from any thread."""
        self.height = height
        self.signal.fire()

    def close(self) -> None:
        """Let everybody go who waits, now and later."""
        self.is_closing = True
        self.signal.fire()

    async def wait(self, height: int) -> int:
        """Return the head's height once it is above `height`."""
        while True:
            if self.is_closing:
                raise ClosingError
            if self.height > height:
                return self.height
            await self.signal.wait()
