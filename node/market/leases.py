"""The leases of the market: what a miner does with a job."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from msgspec.structs import replace

from ledger.errors import MarketError
from ledger.hashing import encode_tokens, hash_text
from ledger.jobs import (
    MAX_ATTEMPTS,
    Caller,
    Claim,
    Job,
    Lease,
    Miner,
    Report,
    check_claimable,
    check_completable,
    check_held,
    check_not_draining,
    parse_job_id,
)
from ledger.store import jobs as job_store
from ledger.store import registry
from ledger.store.queue import take_turn
from ledger.store.sessions import Connection
from ledger.views import ReceiptView, view_pending
from node.market.audits import AuditDesk
from node.market.miners import load_miner

MAX_BEATS_PER_JOB = 4
"""Heartbeats of one job that wait at once; one more is answered at once."""


class LeaseDesk(AuditDesk):
    """What miners do with a job."""

    async def deregister(self, caller: Caller, miner_id: str) -> None:
        """Forget a miner; what it runs goes back to the queue at once. Its receipts stay."""
        self._miner(caller, miner_id)

        def deregister(connection: Connection) -> tuple[list[Job], bool]:
            registry.drain_miner(connection, miner_id)
            held = job_store.list_held_jobs(connection, miner_id)
            for job in held:
                self._try_again(connection, job)
            # Another miner that takes this name has lost nothing, and delivers nothing late.
            is_done = not held and not job_store.forgive_losses(connection, miner_id)
            if is_done:
                registry.delete_miner(connection, miner_id)
            return held, is_done

        is_done = False
        while not is_done:  # a draining miner gets no more, so this ends
            held, is_done = await self._write(deregister, then=self.job_waiting.fire)
            for job in held:
                self._end_attempt(job.id)
            self.note_events()

    async def claim(self, caller: Caller, job_id: str, miner_id: str, *, heartbeat: bool) -> Claim:
        """Give the job to this miner, under a lease. The same miner again gets the same lease."""
        self._check_standing()
        await self._seen(self._miner(caller, miner_id))
        offered = self._offers.find(parse_job_id(job_id))

        def take(connection: Connection, job: Job, miner: Miner) -> Job:
            check_not_draining(miner)
            now_ms = self._clock_ms()
            lasting_ms = (
                self._settings.lease_ms if heartbeat else self._settings.execution_timeout_ms
            )
            claimed = job_store.claim_job(
                connection,
                job,
                miner_id=miner_id,
                provider=miner.account or miner.miner_id,
                claimed_by=caller.key,
                now_ms=now_ms,
                lease_expires_at_ms=now_ms + lasting_ms,
                heartbeat=heartbeat,
            )
            take_turn(connection, job, miner)
            self._move("claimed")
            return claimed

        def claim(connection: Connection) -> Job:
            miner = load_miner(connection, miner_id)
            if offered is not None:
                with contextlib.suppress(MarketError):  # somebody was faster, in few cases
                    return take(connection, offered, miner)
            job = job_store.load_job(connection, parse_job_id(job_id))
            check_claimable(job, miner_id)
            return job if job.state == "running" else take(connection, job, miner)

        job = await self._write(claim, then=lambda: self._note(job_id))
        self._offers.forget(job.id)
        self._claims.keep(job)
        return Claim(job=job, lease=self._lease(job), terms=self._issuer.build_terms(job))

    async def heartbeat(
        self, caller: Caller, job_id: str, miner_id: str, *, wait_ms: int = 0
    ) -> Lease:
        """Renew the lease, as long as the attempt may run at all.

        With `wait_ms` the answer comes that much later, or as soon as the miner no longer holds the
        job: so it hears of a cancelled job at once.
        """
        await self._seen(self._miner(caller, miner_id))
        job = self.job(job_id)
        check_held(job, miner_id)
        if not (wait_ms and self._is_fresh(job)):
            job = await self._renew(job, miner_id)
        if wait_ms and self._beats[job.id] < MAX_BEATS_PER_JOB:
            self._beats[job.id] += 1
            try:
                await self._watch_lease(job, miner_id, wait_ms)
            finally:
                self._beats[job.id] -= 1
                if not self._beats[job.id]:
                    del self._beats[job.id]
        return self._lease(job)

    def _is_fresh(self, job: Job) -> bool:
        """Tell whether a lease has just begun: a miner waits right after it claimed a job."""
        left_ms = (job.lease_expires_at_ms or 0) - self._clock_ms()
        return left_ms > self._settings.lease_ms - self._settings.heartbeat_interval_ms // 4

    async def _renew(self, job: Job, miner_id: str) -> Job:
        def renew(connection: Connection) -> Job:
            now = job_store.load_job(connection, job.id)
            check_held(now, miner_id)
            expires_at_ms = min(
                self._clock_ms() + self._settings.lease_ms, self._execution_deadline_ms(now)
            )
            if now.heartbeat:
                job_store.renew_lease(connection, now, lease_expires_at_ms=expires_at_ms)
            return job_store.load_job(connection, job.id)

        return await self._write(renew)

    async def _watch_lease(self, job: Job, miner_id: str, wait_ms: int) -> None:
        """Return after `wait_ms`; raise as soon as the job is no longer this miner's."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait_ms / 1000
        with self.feed.watch(job.id) as watch:
            while True:
                check_held(self.job(job.job_id), miner_id)
                left_s = deadline - loop.time()
                if left_s <= 0 or not await watch.wait(left_s):
                    return

    async def tell(
        self, caller: Caller, job_id: str, miner_id: str, *, offset: int, text: str
    ) -> int:
        """Take a piece of the answer of a running job; returns how many characters are known.

        Nothing durable: it is shown to who waits, and the result counts.
        """
        self._miner(caller, miner_id)
        job = self.job(job_id)
        check_held(job, miner_id)
        return self.feed.append(job.id, job.attempt, offset=offset, text=text, teller=caller.key)

    async def release(self, caller: Caller, job_id: str, miner_id: str) -> Job:
        """Put the job back at the head of the queue."""
        return await self._give_up(caller, job_id, miner_id, self._try_again)

    async def fail(
        self, caller: Caller, job_id: str, miner_id: str, *, reason: str, retryable: bool
    ) -> Job:
        """Give up an attempt, or the whole job. `reason` is shown to the job's owner."""

        def fail(connection: Connection, job: Job) -> None:
            if retryable:
                self._try_again(connection, job, error=reason)
            else:
                self._fail_job(connection, job, "miner_error", error=reason)

        return await self._give_up(caller, job_id, miner_id, fail)

    async def complete(self, caller: Caller, job_id: str, report: Report) -> ReceiptView:
        """Store result and receipt in one transaction; the same report again is harmless."""
        miner = self._miner(caller, report.miner_id)
        job = self._claims.find(parse_job_id(job_id))
        if job is None or job.miner_id != report.miner_id:
            job = self.job(job_id)
        if job.state == "completed" and job.miner_id == report.miner_id:
            return self._repeated(job, report)
        check_completable(job, report.miner_id)
        self._check_standing()
        now_ms = self._clock_ms()
        transaction = self._issuer.issue(job, report, now_ms=now_ms)

        def deliver(connection: Connection, known: Job) -> int:
            seq = job_store.complete_job(
                connection,
                known,
                miner_id=report.miner_id,
                claimed_by=caller.key,
                result=report.result,
                output_token_ids=_pack(report),
                finish_reason=report.finish_reason,
                transaction=transaction,
                now_ms=now_ms,
            )
            self._draw(connection, job, report, miner=miner, caller=caller, now_ms=now_ms)
            self._move("completed")
            return seq

        def complete(connection: Connection) -> int | None:
            with contextlib.suppress(MarketError):  # it has changed since it was read, in few cases
                return deliver(connection, job)
            now = job_store.load_job(connection, job.id)
            if now.state == "completed" and now.miner_id == report.miner_id:
                return None  # the same request was faster
            check_completable(now, report.miner_id)
            # The lease may have run out since; only another attempt makes this receipt wrong.
            return deliver(connection, replace(job, state=now.state))

        def follow_up() -> None:
            self._receipt_waiting()
            self._end_attempt(job.id)
            self.note_events()

        seq = await self._write(complete, then=follow_up)
        if seq is None:
            return self._repeated(self.job(job_id), report)
        return ReceiptView(
            transaction=view_pending(transaction, seq=seq, received_at_ms=now_ms),
            miner_id=report.miner_id,
        )

    def _lease(self, job: Job) -> Lease:
        assert job.lease_expires_at_ms is not None, "only a running job has a lease"
        interval_ms = self._settings.heartbeat_interval_ms if job.heartbeat else 0
        return Lease(
            attempt=job.attempt,
            expires_at_ms=job.lease_expires_at_ms,
            expires_in_ms=max(job.lease_expires_at_ms - self._clock_ms(), 0),
            run_ends_in_ms=max(self._execution_deadline_ms(job) - self._clock_ms(), 0),
            heartbeat_interval_ms=interval_ms,
        )

    def _execution_deadline_ms(self, job: Job) -> int:
        assert job.started_at_ms is not None, "only a running job has a deadline"
        return job.started_at_ms + self._settings.execution_timeout_ms

    async def _give_up(
        self,
        caller: Caller,
        job_id: str,
        miner_id: str,
        end_attempt: Callable[[Connection, Job], None],
    ) -> Job:
        self._miner(caller, miner_id)

        def give_up(connection: Connection) -> Job:
            job = job_store.load_job(connection, parse_job_id(job_id))
            check_held(job, miner_id)
            end_attempt(connection, job)
            return job_store.load_job(connection, job.id)

        def follow_up() -> None:
            self.job_waiting.fire()
            self._end(job_id)

        return await self._write(give_up, then=follow_up)

    def _note(self, job_id: str) -> None:
        if name := parse_job_id(job_id):
            self.feed.note(name)

    def _repeated(self, job: Job, report: Report) -> ReceiptView:
        assert job.receipt_id is not None, "a completed job has a receipt"
        receipt = self._views.receipt(job.receipt_id)
        if receipt is None:  # it left the mempool for a block that this process has not fetched
            raise MarketError("SYSTEM_OVERLOADED", "this node's ledger is behind; ask again")
        # The result itself may have been purged; its salted digest stays.
        if hash_text(job.result_salt, report.result).hex() != receipt.payload.result_digest:
            raise MarketError(
                "JOB_RESULT_CONFLICT", f"job {job.job_id} was completed with another result"
            )
        return receipt

    def _try_again(self, connection: Connection, job: Job, *, error: str | None = None) -> None:
        """Give the job back to the queue, unless it had all its attempts."""
        if job.attempt < MAX_ATTEMPTS:
            job_store.requeue_job(connection, job, reason="requeued")
            self._move("requeued")
        else:
            self._fail_job(connection, job, "max_attempts", error=error)

    def _fail_job(
        self, connection: Connection, job: Job, reason: str, *, error: str | None = None
    ) -> None:
        job_store.end_job(
            connection, job, state="failed", reason=reason, now_ms=self._clock_ms(), error=error
        )
        self._move("failed", reason)


def _pack(report: Report) -> bytes | None:
    ids = report.output_token_ids
    return None if ids is None else encode_tokens(ids)
