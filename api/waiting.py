"""Waiting callers: how many at once, and that nobody waits for one who has left."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from api.errors import ClientGoneError, RequestError
from api.ports import JobWatch
from api.requests import Request
from ledger.jobs import Caller


class Places:
    """A bounded number of places for those who wait.

    Strangers take half of them at most, and one key, or one address without a key, half of those
    that are open to it: so nobody alone keeps all others from waiting.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken_by: Counter[str] = Counter()
        self.taken = 0

    def take(self, caller: Caller, payer: str) -> Callable[[], None]:
        """Take a place; call what is returned once to give it back.

        Raises:
            RequestError: SYSTEM_OVERLOADED, there is none for this caller.
        """
        room = self._limit if caller.key else self._limit // 2
        if self.taken >= room or self._taken_by[payer] >= (room + 1) // 2:
            raise RequestError("SYSTEM_OVERLOADED", "too many callers wait here; try again later")
        self.taken += 1
        self._taken_by[payer] += 1
        return lambda: self._free(payer)

    def _free(self, payer: str) -> None:
        self.taken -= 1
        self._taken_by[payer] -= 1
        if not self._taken_by[payer]:
            del self._taken_by[payer]

    @contextlib.contextmanager
    def hold(self, caller: Caller, payer: str) -> Iterator[None]:
        """Take a place for as long as the context lasts."""
        free = self.take(caller, payer)
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
