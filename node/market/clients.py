"""The clients' part of the market: submit, read, wait, cancel."""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Sequence
from contextlib import AbstractContextManager

from ledger.encoding import MAX_INTEGER
from ledger.errors import MarketError
from ledger.hashing import SALT_BYTES
from ledger.jobs import (
    Caller,
    Job,
    JobOrder,
    JobState,
    Progress,
    Queue,
    build_job_id,
    check_cancellable,
    parse_job_id,
)
from ledger.store import jobs as job_store
from ledger.store import registry
from ledger.views import ReceiptView, TransactionView
from ledger.views.reader import ACTIVE_MINER_MS
from node.market.desk import Desk
from node.market.feed import BLOCKS, JobWatch
from node.submissions import parse_submission, store_submission, verify_submission

_SEED_BITS = 53


class ClientDesk(Desk):
    """What those do who want answers."""

    async def submit(self, caller: Caller, order: JobOrder) -> Job:
        """Store a pending job; it is durable when this returns."""
        self._check_standing()
        now_ms = self._clock_ms()
        job = Job(
            id=build_job_id(now_ms=now_ms, entropy=secrets.token_bytes(10)),
            state="pending",
            status_reason="queued",
            client=caller.client,
            owner=caller.key,
            order=order,
            seed=order.seed if order.seed is not None else secrets.randbits(_SEED_BITS),
            prompt_salt=secrets.token_bytes(SALT_BYTES),
            result_salt=secrets.token_bytes(SALT_BYTES),
            prices=self._settings.prices,
            created_at_ms=now_ms,
        )
        assert job.seed <= MAX_INTEGER
        limit = self._settings.max_pending_per_key

        def store(connection: sqlite3.Connection) -> None:
            if job_store.count_pending(connection, caller.key, limit) >= limit:
                raise MarketError(
                    "RATE_LIMIT_EXCEEDED",
                    f"this key has {limit} pending jobs; wait for some to run, or cancel them",
                )
            job_store.insert_job(connection, job)
            self._move("submitted")

        await self._write(store, then=self.job_waiting.fire)
        return job

    async def cancel(self, caller: Caller, job_id: str) -> Job:
        """Cancel a pending or running job; a second time changes nothing."""

        def cancel(connection: sqlite3.Connection) -> Job:
            job = job_store.load_job(connection, parse_job_id(job_id))
            # Without a key nobody gets this far but in dev mode, where cancelling is open.
            if caller.role is not None and not caller.is_admin and job.owner != caller.key:
                raise MarketError(
                    "AUTH_INSUFFICIENT_SCOPE", "only the key that submitted a job cancels it"
                )
            check_cancellable(job)
            if job.state != "cancelled":
                job_store.end_job(
                    connection,
                    job,
                    state="cancelled",
                    reason="cancelled_by_client",
                    now_ms=self._clock_ms(),
                )
                self._move("cancelled")
            return job_store.load_job(connection, job.id)

        return await self._write(cancel, then=lambda: self._end(job_id))

    def jobs(
        self, *, owner: str | None, state: JobState | None, limit: int, offset: int
    ) -> Sequence[Job]:
        """Return jobs, newest first; `owner` (an API key's prefix) narrows the list."""
        return job_store.list_jobs(
            self._store.reader, owner=owner, state=state, limit=limit, offset=offset
        )

    def queue(self, job: Job) -> Queue:
        """Return where a pending job stands."""
        reader = self._store.reader
        eligible = registry.count_eligible_miners(
            reader, job.order.model, self._clock_ms() - ACTIVE_MINER_MS
        )
        return Queue(position=job_store.count_ahead(reader, job) + 1, eligible_miners=eligible)

    def progress(self, job_id: str) -> Progress:
        """Return a job with the text that its miner has told. Raises MarketError JOB_NOT_FOUND."""
        job = self.job(job_id)
        text = self.feed.text(job.id, job.attempt) if job.state == "running" else job.result
        return Progress(job=job, text=text or "")

    def watch(self, job_id: str, *, text: bool = True) -> AbstractContextManager[JobWatch]:
        """Let the caller wait for news of a job, within the context.

        Raises:
            MarketError: JOB_NOT_FOUND, this is no job's id.
        """
        return self.feed.watch(self.job(job_id).id, text=text)

    def watch_blocks(self) -> AbstractContextManager[JobWatch]:
        """Let the caller wait for new blocks, within the context."""
        return self.feed.watch(BLOCKS)

    def receipt(self, receipt_id: str) -> ReceiptView | None:
        """Return a receipt, pending or final."""
        return self._views.receipt(receipt_id)

    async def submit_transaction(self, envelope: bytes) -> TransactionView:
        """Let a change of the authority set, or evidence, wait for a block.

        Durable when this returns. What is known already, waiting or final, is returned as it is.

        Raises:
            MarketError: TRANSACTION_INVALID, TRANSACTION_TYPE_REFUSED, RATE_LIMIT_EXCEEDED.
        """
        transaction = parse_submission(envelope)
        if known := self._views.transaction(transaction.id.hex()):
            return known
        verify_submission(transaction, self._chain.tip())
        now_ms = self._clock_ms()
        await self._write(
            lambda c: store_submission(c, transaction, now_ms=now_ms), then=self._receipt_waiting
        )
        stored = self._views.transaction(transaction.id.hex())
        if stored is None:
            raise MarketError("TRANSACTION_INVALID", "another change has made this one void")
        return stored
