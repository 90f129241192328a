"""From frames to stored blocks: verified on all cores, applied in order, in batches.

    feed    takes frames from the network, hands groups of them to the pool
    drain   takes the verdicts in order, checks that block follows block, applies batches

Both are coroutines of one thread. Frames that were taken and are not applied yet have a bounded
size, so whatever a peer sends, memory has an end: `feed` waits, and the peer's connection with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Any

from ledger.authorities import hash_authority_set
from ledger.block import Tip, VerifiedBlock, advance_tip
from ledger.errors import InvalidBlockError, LedgerError
from node.sync.verify import Verdict, verify_frames

MAX_IN_FLIGHT_BYTES = 32 << 20
"""Frames taken and not applied; a single one may be larger."""
GROUP_BYTES = 128 * 1024
"""Small frames are judged together up to this size: a task costs as much as a verification."""
BATCH_BYTES = 8 << 20
"""Frames that are applied together, in one transaction of ledger.db."""

Apply = Callable[[Sequence[VerifiedBlock]], "Future[Any]"]
"""Stores verified blocks that follow the tip, all or none; resolves when they are durable."""


@dataclass(frozen=True, slots=True)
class _Group:
    frames: list[bytes]
    size_bytes: int
    verdict: asyncio.Future[Verdict]


class Pipeline:
    """Carries the blocks of one answer into the chain."""

    def __init__(
        self, *, tip: Tip, pool: Executor, apply: Apply, applied: Callable[[Tip], None]
    ) -> None:
        """`applied(tip)` is told of every batch that is stored."""
        self._tip = tip
        self._pool = pool
        self._apply = apply
        self._applied = applied
        self._set = tip.authority_set
        self._set_hash = hash_authority_set(tip.authority_set)
        self._groups: asyncio.Queue[_Group | None] = asyncio.Queue()
        self._in_flight_bytes = 0
        self._room = asyncio.Event()
        self._batch: list[VerifiedBlock] = []
        self._batch_bytes = 0

    async def run(self, frames: AsyncIterator[list[bytes]]) -> None:
        """Apply all frames.

        Raises:
            LedgerError: the first thing that is wrong with them; what comes before it may be
                applied. A StoreError is not theirs.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._feed(frames))
                tasks.create_task(self._drain())
        except BaseExceptionGroup as group:
            # The first that failed; the other one was cancelled for it.
            raise group.exceptions[0] from None

    async def _feed(self, arriving: AsyncIterator[list[bytes]]) -> None:
        waiting: list[bytes] = []
        waiting_bytes = 0
        async for frames in arriving:
            for frame in frames:
                waiting.append(frame)
                waiting_bytes += len(frame)
                if waiting_bytes >= GROUP_BYTES:
                    await self._submit(waiting, waiting_bytes)
                    waiting, waiting_bytes = [], 0
            if waiting and self._groups.empty():
                await self._submit(waiting, waiting_bytes)
                waiting, waiting_bytes = [], 0
        if waiting:
            await self._submit(waiting, waiting_bytes)
        await self._groups.put(None)

    async def _submit(self, frames: list[bytes], size_bytes: int) -> None:
        while self._in_flight_bytes and self._in_flight_bytes + size_bytes > MAX_IN_FLIGHT_BYTES:
            self._room.clear()
            await self._room.wait()
        self._in_flight_bytes += size_bytes
        await self._groups.put(_Group(frames, size_bytes, self._judge(frames)))

    def _judge(self, frames: Sequence[bytes]) -> asyncio.Future[Verdict]:
        return asyncio.wrap_future(self._pool.submit(verify_frames, frames, self._tip))

    async def _drain(self) -> None:
        while group := await self._groups.get():
            try:
                await self._take(group)
            except LedgerError:
                await self._apply_batch()  # what came before it is right
                raise
            if self._groups.empty() or self._batch_bytes >= BATCH_BYTES:
                await self._apply_batch()
        await self._apply_batch()

    async def _take(self, group: _Group) -> None:
        """Put a group's blocks into the batch, each judged under the set of its height."""
        verdict, taken = await group.verdict, 0
        while True:
            taken += self._follow_all(verdict)
            if taken == len(group.frames):
                break
            if verdict.set_hash == self._set_hash:
                assert verdict.error is not None
                raise verdict.error
            # The set changed after the group was handed in: the rest is judged again.
            verdict = await self._judge(group.frames[taken:])
        self._batch_bytes += group.size_bytes

    def _follow_all(self, verdict: Verdict) -> int:
        """Follow a verdict's blocks as far as they were judged under the right set."""
        for count, verified in enumerate(verdict.blocks):
            if verdict.set_hash != self._set_hash:
                return count
            self._follow(verified)
        return len(verdict.blocks)

    def _follow(self, verified: VerifiedBlock) -> None:
        header = verified.block.header
        if header.height != self._tip.height + 1 or header.prev_hash != self._tip.hash.hex():
            raise InvalidBlockError(
                f"block: expected {self._tip.height + 1} on {self._tip.hash.hex()[:16]}…, "
                f"got {header.height} on {header.prev_hash[:16]}…"
            )
        self._tip = advance_tip(self._tip, verified.block)
        if self._tip.authority_set is not self._set:
            self._set = self._tip.authority_set
            self._set_hash = hash_authority_set(self._set)
        self._batch.append(verified)

    async def _apply_batch(self) -> None:
        if not self._batch:
            return
        batch, size_bytes, tip = self._batch, self._batch_bytes, self._tip
        self._batch, self._batch_bytes = [], 0
        await asyncio.wrap_future(self._apply(batch))
        self._applied(tip)
        self._in_flight_bytes -= size_bytes
        self._room.set()
