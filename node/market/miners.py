"""The miners' part of the market: who they are, and asking for work."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from ledger.errors import InvalidFieldError, InvalidKeyError, InvalidSignatureError, MarketError
from ledger.jobs import (
    Caller,
    Job,
    Miner,
    MinerStanding,
    Registration,
    build_registration_message,
    normalize_model,
)
from ledger.keys import ACCOUNT_PREFIX, verify_signature
from ledger.store import jobs as job_store
from ledger.store import queue, registry
from ledger.store.sessions import Connection
from ledger.views.reader import ACTIVE_MINER_MS
from node.market.desk import Desk

MAX_POLLS = 1_000
"""Long polls that wait at once; one more is answered at once."""
MAX_POLLS_PER_MINER = 4
"""A miner needs one; those of a connection it gave up wait on for their time."""
MAX_MINERS_PER_KEY = 1_000
"""Registered ones; those without a key count as of one. What they can do is read often."""
TOUCH_INTERVAL_MS = 10_000
"""A miner that polls is noted as seen no more often than this."""


class MinerDesk(Desk):
    """What miners do before they have a job."""

    async def register_miner(self, caller: Caller, registration: Registration) -> Miner:
        """Store or replace a miner's description."""
        self._check_registration(registration)
        now_ms = self._clock_ms()
        miner = Miner(
            miner_id=registration.miner_id,
            account=registration.account,
            capabilities=registration.capabilities,
            gpu_name=registration.gpu_name,
            gpu_memory=registration.gpu_memory,
            owner=caller.key,
            audits=registration.audits,
            registered_at_ms=now_ms,
            last_seen_at_ms=now_ms,
        )

        def register(connection: Connection) -> Miner:
            known = registry.find_miner(connection, miner.miner_id)
            if known is not None and not _acts_for(caller, known):
                raise MarketError(
                    "MINER_ALREADY_REGISTERED",
                    f"miner {miner.miner_id} belongs to another key; choose another miner_id",
                )
            if known is None:
                self._make_place(connection, caller)
            # An admin who changes a miner does not take it from its key.
            owner = known.owner if known is not None and caller.is_admin else miner.owner
            registry.upsert_miner(connection, replace(miner, owner=owner))
            return registry.find_miner(connection, miner.miner_id) or miner

        return await self._write(register)

    def _make_place(self, connection: Connection, caller: Caller) -> None:
        """Forget the miner of a key that was away for longest, if it has as many as it may."""
        if registry.count_own_miners(connection, caller.key) < MAX_MINERS_PER_KEY:
            return
        idle = registry.find_idle_miner(connection, caller.key, self._active_since_ms())
        if idle is None:
            raise MarketError(
                "MINER_LIMIT_REACHED",
                f"this key has {MAX_MINERS_PER_KEY} active miners; deregister one first",
            )
        while job_store.forgive_losses(connection, idle):
            pass
        registry.delete_miner(connection, idle)

    async def miner_heartbeat(self, caller: Caller, miner_id: str) -> Miner:
        """Note that a miner is alive."""
        miner = self._miner(caller, miner_id)
        now_ms = self._clock_ms()
        await self._write(lambda c: registry.touch_miner(c, miner_id, now_ms))
        self._known.note_seen(miner_id, now_ms)
        return replace(miner, last_seen_at_ms=now_ms)

    async def available(
        self, caller: Caller, miner_id: str, wait_ms: int, models: Sequence[str] = ()
    ) -> Job | None:
        """Return the job that is next for this miner, waiting up to `wait_ms` for one.

        With `models` only jobs for these count, of those that the miner serves.
        """
        miner = await self._seen(self._miner(caller, miner_id))
        if self._polls.total() >= MAX_POLLS or self._polls[miner_id] >= MAX_POLLS_PER_MINER:
            wait_ms = 0
        self._polls[miner_id] += 1
        try:
            wanted = frozenset(map(normalize_model, models))
            return await self._wait_for_job(miner, wait_ms, wanted)
        finally:
            self._polls[miner_id] -= 1
            if not self._polls[miner_id]:
                del self._polls[miner_id]

    async def _wait_for_job(self, miner: Miner, wait_ms: int, wanted: frozenset[str]) -> Job | None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait_ms / 1000
        while True:
            # Read anew: it may drain, or be gone, since it began to wait.
            miner = self._known_miner(miner.miner_id)
            job = None
            if not miner.draining:
                job = queue.find_available(self._store.reader, miner, wanted)
            left_s = deadline - loop.time()
            if job is not None and not job.attempt:
                self._offers.keep(job)
            if job is not None or left_s <= 0 or self.feed.is_closing:
                return job
            await self.job_waiting.wait(left_s)

    async def drain(self, caller: Caller, miner_id: str) -> MinerStanding:
        """Offer a miner nothing more; what it runs goes on. Registering again ends it."""
        self._miner(caller, miner_id)
        await self._write(lambda c: registry.drain_miner(c, miner_id))
        return self.miner(miner_id)

    def miner(self, miner_id: str) -> MinerStanding:
        """Return what everybody may see of a miner. Raises MarketError MINER_NOT_FOUND."""
        known = load_miner(self._store.reader, miner_id)
        return registry.view_miner(self._store.reader, known, self._active_since_ms())

    def miners(self, *, after: str, limit: int) -> Sequence[MinerStanding]:
        """Return miners in the order of their names, above `after`."""
        return registry.list_miners(
            self._store.reader, after=after, limit=limit, active_since_ms=self._active_since_ms()
        )

    def count_miners(self) -> int | None:
        """Return how many miners there are, None if there are too many to count."""
        return registry.count_miners(self._store.reader)

    def _active_since_ms(self) -> int:
        return self._clock_ms() - ACTIVE_MINER_MS

    def _known_miner(self, miner_id: str) -> Miner:
        return check_registered(self._known.find_miner(miner_id), miner_id)

    def _miner(self, caller: Caller, miner_id: str) -> Miner:
        miner = self._known_miner(miner_id)
        if not _acts_for(caller, miner):
            raise MarketError("AUTH_INSUFFICIENT_SCOPE", f"miner {miner_id} belongs to another key")
        return miner

    async def _seen(self, miner: Miner) -> Miner:
        now_ms = self._clock_ms()
        if now_ms - miner.last_seen_at_ms >= TOUCH_INTERVAL_MS:
            await self._write(lambda c: registry.touch_miner(c, miner.miner_id, now_ms))
            self._known.note_seen(miner.miner_id, now_ms)
        return miner

    def _check_registration(self, registration: Registration) -> None:
        if registration.miner_id.startswith(ACCOUNT_PREFIX + "1"):
            raise InvalidFieldError("miner_id", "must not look like an account; use public_key")
        if registration.account is None:
            return
        message = build_registration_message(
            genesis_hash=self._genesis_hash,
            miner_id=registration.miner_id,
            account=registration.account,
        )
        try:
            verify_signature(registration.account, message, registration.proof or "")
        except (InvalidKeyError, InvalidSignatureError) as error:
            raise InvalidFieldError(
                "proof", f"expected a signature over {message!r}: {error}"
            ) from error


def load_miner(connection: Connection, miner_id: str) -> Miner:
    """Return a registered miner. Raises MarketError MINER_NOT_FOUND."""
    return check_registered(registry.find_miner(connection, miner_id), miner_id)


def check_registered(miner: Miner | None, miner_id: str) -> Miner:
    """Return a miner that was found. Raises MarketError MINER_NOT_FOUND."""
    if miner is None:
        raise MarketError("MINER_NOT_FOUND", f"miner {miner_id} is not registered on this node")
    return miner


def _acts_for(caller: Caller, miner: Miner) -> bool:
    """A miner registered without a key is anybody's; else it answers to its key and to admins."""
    return caller.is_admin or not miner.owner or miner.owner == caller.key
