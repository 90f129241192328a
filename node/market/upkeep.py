"""Upkeep of the market: what ends because its time is over, and what is forgotten."""

from __future__ import annotations

import asyncio

from ledger.jobs import Job
from ledger.store import jobs as job_store
from ledger.store.repeats import forget_old_repeats
from ledger.store.sessions import Connection
from ledger.store.texts import purge_texts
from node.market.leases import LeaseDesk

MAX_PURGES = 20
"""Transactions of one sweep that purge texts."""


class UpkeepDesk(LeaseDesk):
    """What is done every second."""

    _is_wal_old = True
    """Whether the WAL may hold purged texts; so it may after a start."""

    async def sweep(self) -> int:
        """End what has run out: leases, attempts, places in the queue. Returns how many.

        Texts and idempotency keys that are older than they should be go, too.
        """
        now_ms = self._clock_ms()

        is_audit_waiting = False

        def sweep(connection: Connection) -> list[Job]:
            nonlocal is_audit_waiting
            expired = job_store.list_expired_leases(connection, now_ms)
            for job in expired:
                self._end_lease(connection, job, now_ms)
            stale = job_store.list_stale_jobs(connection, now_ms - self._settings.queue_timeout_ms)
            for job in stale:
                self._fail_job(connection, job, "queue_timeout")
            forget_old_repeats(connection, now_ms)
            is_audit_waiting = self._sweep_audits(connection, now_ms)
            return expired + stale

        swept = await self._write(sweep)
        if is_audit_waiting:
            self.audit_waiting.fire()
        for job in swept:
            self._end_attempt(job.id)
        if swept:
            self.job_waiting.fire()
            self.note_events()
        await self._purge(now_ms)
        return len(swept)

    async def _purge(self, now_ms: int) -> None:
        if not self._settings.text_retention_ms:
            return
        ended_before_ms = now_ms - self._settings.text_retention_ms
        for _ in range(MAX_PURGES):
            purged = await self._write(
                lambda c: purge_texts(c, ended_before_ms=ended_before_ms, now_ms=now_ms)
            )
            if not purged:
                break
            self._is_wal_old = True
        if self._is_wal_old:
            self._is_wal_old = not await asyncio.to_thread(self._store.forget_versions)

    def _end_lease(self, connection: Connection, job: Job, now_ms: int) -> None:
        if job.heartbeat and now_ms >= self._execution_deadline_ms(job):
            self._fail_job(connection, job, "execution_timeout")
        else:
            self._try_again(connection, job)
