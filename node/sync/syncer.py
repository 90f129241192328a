"""The syncer: fetches final blocks from other nodes, verifies them and has them stored.

It runs in a thread with an event loop of its own. As a follower it asks for ever, and waits at a
source for the next block. Otherwise it rests until `request` says that others have decided more
than this node knows, and fetches that. Where it goes on is only ever the tip of the chain, so it
may be killed at any point.

Storing is the owner's part (`apply`): an authority's tip must not move under the engine's feet.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import httpx2

from ledger.block import Tip
from ledger.errors import LedgerError, StoreError
from ledger.store.writequeue import DatabaseBusyError
from ledger.views import SyncProgress, SyncState
from node.p2p.address import PeerError
from node.p2p.blocks import MAX_BLOCKS
from node.sync.pipeline import Apply, Pipeline
from node.sync.progress import RateMeter, describe_progress
from node.sync.source import (
    MAX_ERROR_LENGTH,
    SyncSource,
    ask_for_blocks,
)

POLL_WAIT_MS = 10_000
"""A follower waits at one source for the next block this long; then it asks the next source."""
MIN_POLL_S = 1.0
"""An empty answer is not asked for more often, whatever the source does."""
BUSY_PAUSE_S = 0.5
REPORT_INTERVAL_S = 10.0
"""The log tells of progress this often."""
MAX_SOURCES = 100
CONNECT_TIMEOUT_S = 5.0
_JOIN_TIMEOUT_S = 60

logger = logging.getLogger(__name__)


class Syncer:
    """Keeps a chain level with other nodes as long as it runs."""

    def __init__(
        self,
        *,
        tip: Callable[[], Tip],
        apply: Apply,
        sources: Callable[[], Sequence[str]],
        follow: Callable[[], bool],
        failed: Callable[[BaseException], None],
        shown: Callable[[SyncProgress], None] = lambda _progress: None,
        workers: int | None = None,
    ) -> None:
        """Arguments that are called are called from the syncer's thread.

        Args:
            tip: returns the chain's tip.
            apply: stores verified blocks that follow the tip.
            sources: returns the addresses of other nodes, in the order of preference; they may
                change at any time.
            follow: tells whether to go on for ever; otherwise only what `request` asks for is
                fetched. The answer may change with a block; `request` wakes whoever rests.
            failed: told when this side cannot go on, such as for a full disk.
            shown: told of progress after every batch.
            workers: threads that verify; one a core by default.
        """
        self._read_tip = tip
        self._apply = apply
        self._follow = follow
        self._failed = failed
        self._shown = shown
        self._list_sources = sources
        self._sources: list[SyncSource] = []
        self._unusable: set[str] = set()
        """Addresses that are none."""
        self._preferred: str | None = None
        self._workers = workers or os.cpu_count() or 1
        self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="sync verify")
        self._meter = RateMeter()
        self._wanted = 0
        self._fruitless = 0
        self._wake = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._began = threading.Event()
        self._thread = threading.Thread(target=self._run, name="syncer", daemon=True)
        self._reported_at_s = 0.0
        self._target = 0
        self._source: str | None = None
        self._error: str | None = None
        self._show(tip().height)

    @property
    def progress(self) -> SyncProgress:
        """How far it is. Any thread may ask."""
        return self._progress

    def start(self) -> None:
        """Begin, in a thread of its own."""
        self._thread.start()
        self._began.wait()

    def stop(self) -> None:
        """Give up what is under way and end the thread. What is stored stays."""
        if self._loop is not None and self._task is not None:
            with contextlib.suppress(RuntimeError):  # it has ended by itself
                self._loop.call_soon_threadsafe(self._task.cancel)
            self._thread.join(_JOIN_TIMEOUT_S)
        self._pool.shutdown(wait=True, cancel_futures=True)

    def request(self, height: int, url: str | None = None) -> None:
        """Say that the block at `height` is final elsewhere, at `url` perhaps. Any thread may.

        An address that is no source is not asked: messages must not choose whom this node calls.
        """
        self._call(lambda: self._note_request(height, url))

    def _call(self, work: Callable[[], None]) -> None:
        if self._loop is None:
            work()
            return
        with contextlib.suppress(RuntimeError):  # the loop has closed, at the end of the node
            self._loop.call_soon_threadsafe(work)

    def _note_request(self, height: int, url: str | None) -> None:
        if height > self._wanted:
            self._wanted, self._fruitless = height, 0
        if url is not None and url in self._list_sources():
            self._preferred = url.rstrip("/")
        self._wake.set()

    def _refresh_sources(self) -> None:
        """Take the sources of now; those that are known keep the order they have earned."""
        urls = [url.rstrip("/") for url in self._list_sources()[:MAX_SOURCES]]
        kept = [source for source in self._sources if source.url in urls]
        self._unusable &= set(urls)
        for url in urls:
            if url in self._unusable or any(source.url == url for source in kept):
                continue
            try:
                kept.append(SyncSource(url))
            except PeerError as error:
                self._unusable.add(url)
                logger.warning("%s", error)
        kept.sort(key=lambda source: source.url != self._preferred)
        self._preferred = None
        self._sources = kept

    # --- the thread -----------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except asyncio.CancelledError:
            return
        except Exception as error:
            logger.exception("the syncer stops")
            self._failed(error)
        finally:
            self._began.set()

    async def _main(self) -> None:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        self._began.set()
        # Deadlines are kept by whoever waits; a single one in the client would not stop a trickle.
        timeout = httpx2.Timeout(None, connect=CONNECT_TIMEOUT_S)
        headers = {"accept-encoding": "identity"}
        async with httpx2.AsyncClient(timeout=timeout, headers=headers, trust_env=False) as client:
            while True:
                await self._rest()
                source = self._choose()
                if source is not None:
                    await self._visit(client, source)

    async def _rest(self) -> None:
        """Wait until there is something to fetch and a source to fetch it from."""
        while True:
            self._wake.clear()
            self._refresh_sources()
            height = self._read_tip().height
            if not self._follow() and self._fruitless >= len(self._sources):
                self._wanted = height  # nobody has it, and whoever does will say so again
            if not self._follow() and self._wanted <= height:
                self._target = height
                self._show(height)
                await self._wake.wait()
            elif self._choose() is None:
                self._show(height, is_stalled=True)
                await self._wait_for_source()
            else:
                return

    async def _wait_for_source(self) -> None:
        now = asyncio.get_running_loop().time()
        soonest = min((source.retry_at_s for source in self._sources), default=now + MIN_POLL_S)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(soonest - now, 0)):
                await self._wake.wait()

    def _choose(self) -> SyncSource | None:
        now = asyncio.get_running_loop().time()
        return next((source for source in self._sources if source.retry_at_s <= now), None)

    async def _visit(self, client: httpx2.AsyncClient, source: SyncSource) -> None:
        """Fetch what a source has; leave it first in the list only if that was something."""
        now, before = asyncio.get_running_loop().time, self._read_tip()
        began, was_known = now(), source.is_known
        self._meter.restart(began, before.height, before.tree_size)
        try:
            await self._fetch(client, source, before)
        except DatabaseBusyError:
            await asyncio.sleep(BUSY_PAUSE_S)
            return
        except StoreError:
            raise
        except LedgerError as error:
            self._note_fault(source, error)
            return
        source.note_success()
        if self._read_tip().height > before.height:
            self._fruitless = 0
            return
        if self._follow() and not was_known:
            return  # now that it is, it is asked to wait
        self._fruitless += 1
        self._put_last(source)
        if self._follow():
            await asyncio.sleep(max(began + MIN_POLL_S - now(), 0))

    async def _fetch(self, client: httpx2.AsyncClient, source: SyncSource, tip: Tip) -> None:
        """Ask for the blocks above the tip, and have all that come stored."""
        request = ask_for_blocks(
            client,
            source,
            first=tip.height + 1,
            # A stranger is not waited for: what is wrong with it shows in its first answer.
            wait_ms=POLL_WAIT_MS if self._follow() and source.is_known else 0,
            limit=MAX_BLOCKS if self._follow() else min(self._wanted - tip.height, MAX_BLOCKS),
            genesis_hash=tip.genesis_hash,
            limits=tip.limits,
        )
        async with request as answer:
            self._source = source.url
            self._target = answer.height if self._follow() else self._wanted
            self._show(tip.height)
            pipeline = Pipeline(
                tip=tip, pool=self._pool, apply=self._apply, applied=self._note_applied
            )
            await pipeline.run(answer.frames())
        if self._read_tip().height == tip.height and answer.height > tip.height:
            raise PeerError(f"it claims block {answer.height} and sends none above {tip.height}")
        self._error = None
        self._show(self._read_tip().height)

    def _put_last(self, source: SyncSource) -> None:
        if source in self._sources:
            self._sources.remove(source)
            self._sources.append(source)

    def _note_fault(self, source: SyncSource, error: LedgerError) -> None:
        self._error = f"{source.url}: {error}"[:MAX_ERROR_LENGTH]
        logger.warning("%s", self._error)
        source.note_fault(asyncio.get_running_loop().time())
        self._fruitless += 1
        self._put_last(source)
        height = self._read_tip().height
        self._target = height  # what such a source claims counts for nothing
        self._show(height, is_stalled=self._choose() is None)

    # --- progress -------------------------------------------------------------------------------

    def _note_applied(self, tip: Tip) -> None:
        now_s = asyncio.get_running_loop().time()
        self._fruitless = 0
        self._meter.note(now_s, tip.height, tip.tree_size)
        self._show(tip.height)
        if self._progress.state == "syncing" and now_s >= self._reported_at_s + REPORT_INTERVAL_S:
            self._reported_at_s = now_s
            logger.info("%s", describe_progress(self._progress))

    def _show(self, height: int, *, is_stalled: bool = False) -> None:
        blocks_per_s, receipts_per_s = self._meter.rates()
        target = max(self._target, self._wanted, height)
        left = target - height
        state: SyncState = "stalled" if is_stalled else "syncing" if left else "idle"
        self._progress = SyncProgress(
            state=state,
            height=height,
            target_height=target,
            blocks_per_s=blocks_per_s if state == "syncing" else 0.0,
            receipts_per_s=receipts_per_s if state == "syncing" else 0.0,
            eta_s=round(left / blocks_per_s) if left and blocks_per_s else None,
            source=self._source,
            last_error=self._error,
        )
        self._shown(self._progress)
