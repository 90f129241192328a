"""Answers that take long, and hold a place while they do."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send


class HeldStream(StreamingResponse):
    """Gives its place back however it ends, even when it never began."""

    def __init__(
        self,
        pieces: AsyncIterator[str] | AsyncIterator[bytes],
        *,
        headers: Mapping[str, str],
        media_type: str,
        release: Callable[[], None],
    ) -> None:
        super().__init__(pieces, headers=headers, media_type=media_type)
        self._release = release

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the pieces, and give the place back."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._release()
