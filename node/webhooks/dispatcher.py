"""The dispatcher: takes what is due from node.db, sends it, and notes how that went.

It runs beside the server in the event loop, and does nothing there but short reads; sending is
waiting. Webhooks take turns, and each has few attempts under way, so one with thousands of events,
or a receiver that hangs, holds nobody else up. What is sent is noted afterwards: a crash in between
sends it again under the same message id, and none is ever lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from functools import lru_cache

import httpx2

from ledger.store.deliveries import (
    Delivery,
    describe_attempt,
    disable_webhook,
    hasten,
    is_ping,
    list_next,
    list_waiting,
    load_standing,
    note_delivered,
    note_failure,
)
from ledger.store.marketstore import MarketStore
from ledger.store.sessions import Connection
from ledger.store.writequeue import DatabaseLostError
from node.signal import Latch
from node.webhooks.guard import Reach
from node.webhooks.schedule import judge_failure
from node.webhooks.sender import Outcome, Sender
from node.webhooks.transport import CheckedTransport, Resolver

MAX_AT_ONCE = 8
MAX_PER_HOST = 2
MAX_LOOKED_AT = 32
"""Webhooks that are looked at in one turn of the event loop."""
GATHER_S = 0.02
"""Between two looks: every job that ends says that there may be something, and few have any."""
MAX_SLEEP_S = 30.0
"""It looks again after so long, whatever it was told."""
STORE_PAUSE_MS = 5_000
"""After the disk has refused a note: without it the same event would be sent over and over."""

logger = logging.getLogger(__name__)


class Dispatcher:
    """Delivers as long as it runs."""

    def __init__(
        self,
        *,
        store: MarketStore,
        sender: Sender,
        news: Latch,
        clock_ms: Callable[[], int],
        draw: Callable[[], float],
    ) -> None:
        """`news` is set when there may be something new; `draw()` is random, in [0, 1)."""
        self._store = store
        self._sender = sender
        self._news = news
        self._clock_ms = clock_ms
        self._draw = draw
        self._under_way: dict[int, str] = {}
        """Hosts by the place of the delivery that is being sent there."""
        self.tasks: set[asyncio.Task[None]] = set()
        """Attempts under way."""
        self._turn = 0
        """Place of the webhook that was looked at last."""
        self._paused_until_ms = 0

    async def run(self) -> None:
        """Deliver until cancelled; attempts under way are broken off then, and made again later."""
        self._news.bind()
        try:
            while True:
                await self._news.wait(await self._look())
                await asyncio.sleep(GATHER_S)
        finally:
            for task in self.tasks:
                task.cancel()
            await asyncio.gather(*self.tasks, return_exceptions=True)

    async def _look(self) -> float:
        """Start what can be; returns for how many seconds there is nothing to do."""
        try:
            due_ms = await self.start_due()
        except DatabaseLostError:  # the log has said so
            return STORE_PAUSE_MS / 1000
        except Exception:  # whatever it is, the next look may do
            logger.exception("what webhooks are to hear cannot be read; it is tried again")
            return STORE_PAUSE_MS / 1000
        if due_ms is None:
            return MAX_SLEEP_S
        return min(max((due_ms - self._clock_ms()) / 1000, 0), MAX_SLEEP_S)

    async def start_due(self) -> int | None:
        """Begin as many attempts as may be under way at once.

        Returns when the next one falls due; None while there is none, or no room for it.
        """
        times: list[int] = []
        async with contextlib.aclosing(self._walk()) as webhooks:
            async for place, url, held_until_ms in webhooks:
                now_ms = self._clock_ms()
                if now_ms < self._paused_until_ms:
                    return self._paused_until_ms
                if len(self._under_way) >= MAX_AT_ONCE:
                    return None  # whichever ends next tells
                self._turn = place
                times += self._start_for(place, url, held_until_ms, now_ms)
        return min(times, default=None)

    async def _walk(self) -> AsyncGenerator[tuple[int, str, int], None]:
        """Yield each webhook that waits, those first that come after the last one looked at."""
        last = self._turn
        for above, is_round in ((last, False), (0, True)):
            place = above
            while page := list_waiting(self._store.reader, above=place, limit=MAX_LOOKED_AT):
                for row in page:
                    place = row[0]
                    if is_round and place > last:
                        return
                    yield row
                await asyncio.sleep(0)  # others want the loop too

    def _start_for(self, webhook: int, url: str, held_until_ms: int, now_ms: int) -> list[int]:
        """Begin what is due for one webhook; returns when the rest falls due."""
        host = _find_host(url)
        at_host = sum(other == host for other in self._under_way.values())
        room = min(MAX_PER_HOST - at_host, MAX_AT_ONCE - len(self._under_way))
        later = []
        # Those under way are due first too, so this finds all that there is room for.
        for delivery in list_next(self._store.reader, webhook, limit=2 * MAX_PER_HOST + 1):
            if delivery.seq in self._under_way:
                continue
            # A test event is a question whether things are well again, so it is never held back.
            hold_ms = 0 if is_ping(delivery) else held_until_ms
            due_ms = max(delivery.due_at_ms, hold_ms)
            if due_ms > now_ms:
                later.append(due_ms)
            elif room > 0:
                room -= 1
                self._start(delivery, host)
        return later

    def _start(self, delivery: Delivery, host: str) -> None:
        self._under_way[delivery.seq] = host
        task = asyncio.get_running_loop().create_task(self._deliver(delivery))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _deliver(self, delivery: Delivery) -> None:
        try:
            await self._attempt(delivery)
        except Exception as error:
            # Not its message: that might be a receiver's words.
            logger.error(  # noqa: TRY400
                "webhook delivery %s is not noted (%s); it is made again",
                delivery.message_id,
                type(error).__name__,
            )
            self._paused_until_ms = self._clock_ms() + STORE_PAUSE_MS
        finally:
            del self._under_way[delivery.seq]
            self._news.set()

    async def _attempt(self, delivery: Delivery) -> None:
        standing = load_standing(self._store.reader, delivery.webhook)
        if standing is None:
            return  # deleted or disabled since
        if standing.is_revoked:
            await self._write(lambda c: disable_webhook(c, standing.seq, "key_revoked"))
            return
        outcome = await self._sender.send(
            standing.url, standing.secret, delivery.message_id, delivery.payload
        )
        chance = self._draw()
        await self._write(lambda c: self._note(c, delivery, outcome, chance))

    async def _write(self, work: Callable[[Connection], None]) -> None:
        await asyncio.wrap_future(self._store.write(work))

    def _note(
        self, connection: Connection, delivery: Delivery, outcome: Outcome, chance: float
    ) -> None:
        now_ms = self._clock_ms()
        last = describe_attempt(
            delivery,
            now_ms=now_ms,
            delivered=outcome.is_delivered,
            http_status=outcome.status,
            error=outcome.error,
        )
        if outcome.is_delivered:
            note_delivered(connection, delivery, last)
            if is_ping(delivery):
                hasten(connection, delivery.webhook, now_ms)
            return
        standing = load_standing(connection, delivery.webhook)
        if standing is None:
            return
        sentence = judge_failure(outcome, delivery, standing, now_ms=now_ms, chance=chance)
        note_failure(
            connection,
            delivery,
            last,
            now_ms=now_ms,
            retry_at_ms=sentence.retry_at_ms,
            held_until_ms=sentence.held_until_ms,
        )
        if sentence.disabled_reason is not None:
            disable_webhook(connection, standing.seq, sentence.disabled_reason)


@lru_cache(maxsize=1024)
def _find_host(url: str) -> str:
    return httpx2.URL(url).host


@contextlib.asynccontextmanager
async def run_webhooks(
    store: MarketStore, *, news: Latch, reach: Reach, clock_ms: Callable[[], int]
) -> AsyncIterator[None]:
    """Deliver what waits in node.db, within the context."""
    tls = httpx2.create_ssl_context()
    async with CheckedTransport(reach, resolve=Resolver(), tls=tls) as transport:
        dispatcher = Dispatcher(
            store=store,
            sender=Sender(transport, clock_ms),
            news=news,
            clock_ms=clock_ms,
            draw=random.random,
        )
        task = asyncio.create_task(dispatcher.run())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
