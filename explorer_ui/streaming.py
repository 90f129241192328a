"""Answers that take long, and the places that they hold while they do."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

READER_TIMEOUT_S = 60.0
"""A client that takes nothing for so long loses its place."""


logger = logging.getLogger(__name__)


class _ReaderGoneError(Exception):
    """The client of a stream takes nothing any more; the server closes the connection."""


class Places:
    """Places for so many answers at once, of which one client address has only some."""

    def __init__(self, *, total: int, per_client: int) -> None:
        self._total = total
        self._per_client = per_client
        self._taken: Counter[str] = Counter()

    def take(self, request: Request) -> Callable[[], None] | None:
        """Take a place; returns what gives it back, None where there is none."""
        client = request.client.host if request.client else ""
        if self._taken[client] >= self._per_client or self._taken.total() >= self._total:
            return None
        self._taken[client] += 1
        return lambda: self._give_back(client)

    def _give_back(self, client: str) -> None:
        self._taken[client] -= 1
        if not self._taken[client]:
            del self._taken[client]


class HeldStream(StreamingResponse):
    """Gives its place back however it ends, even when it never began."""

    def __init__(
        self,
        pieces: AsyncIterator[str] | AsyncIterator[bytes],
        *,
        headers: Mapping[str, str],
        media_type: str,
        give_back: Callable[[], None],
    ) -> None:
        super().__init__(pieces, headers=headers, media_type=media_type)
        self._give_back = give_back

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the pieces, and give the place back."""

        async def send_in_time(message: Message) -> None:
            try:
                async with asyncio.timeout(READER_TIMEOUT_S):
                    await send(message)
            except TimeoutError:
                raise _ReaderGoneError from None

        try:
            await super().__call__(scope, receive, send_in_time)
        except _ReaderGoneError:
            logger.info("%s: the client stopped reading", scope.get("path", ""))
        finally:
            self._give_back()
