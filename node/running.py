"""What every process of a network is to its server: an authority, a front-end, a follower."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.applications import Starlette

from node.coordinator import Coordinator
from node.head import HeadWatch


@dataclass(kw_only=True)
class Running:
    """A process with its files open."""

    app: Starlette
    head: HeadWatch
    coordinator: Coordinator | None = None
    failure: BaseException | None = None
    """Why it had to stop by itself."""

    def begin_shutdown(self) -> None:
        """Answer whoever waits for a job or a block, so that the server can close."""
        if self.coordinator is not None:
            self.coordinator.close()
        self.head.close()
