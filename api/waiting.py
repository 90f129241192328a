"""Waiting callers: how many at once, and that nobody waits for one who has left."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from api.errors import ClientGoneError, RequestError
from api.ports import JobWatch
from api.requests import Request
from ledger.jobs import Caller


class Places:
    """A bounded number of places for those who wait."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.taken = 0

    def take(self, caller: Caller) -> Callable[[], None]:
        """Take a place; call what is returned once to give it back.

        Raises:
            RequestError: SYSTEM_OVERLOADED, there is none. Strangers cannot take those of callers
                with a key.
        """
        room = self._limit if caller.key else self._limit // 2
        if self.taken >= room:
            raise RequestError("SYSTEM_OVERLOADED", "too many callers wait here; try again later")
        self.taken += 1
        return self._free

    def _free(self) -> None:
        self.taken -= 1

    @contextlib.contextmanager
    def hold(self, caller: Caller) -> Iterator[None]:
        """Take a place for as long as the context lasts."""
        free = self.take(caller)
        try:
            yield
        finally:
            free()


async def wait_for_news(watch: JobWatch, request: Request, timeout_s: float) -> bool:
    """Wait as `watch` does.

    Raises:
        ClientGoneError: the client hung up.
    """
    news = asyncio.ensure_future(watch.wait(timeout_s))
    gone = asyncio.ensure_future(request.wait_until_gone())
    either: set[asyncio.Future[Any]] = {news, gone}
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not news.done():
            raise ClientGoneError
        return news.result()
    finally:
        for future in either:
            future.cancel()
        await asyncio.wait(either)
