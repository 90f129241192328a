"""The clients' part of the market: submit, read, wait, cancel."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

from ledger.encoding import MAX_INTEGER
from ledger.errors import InvalidFieldError, MarketError
from ledger.hashing import SALT_BYTES
from ledger.jobs import (
    Caller,
    Job,
    JobOrder,
    JobState,
    Progress,
    Queue,
    Submission,
    build_job_id,
    check_cancellable,
    parse_job_id,
)
from ledger.quotas import DAY_MS, KeyStanding, check_quota, find_day
from ledger.store import jobs as job_store
from ledger.store import limits, lists, queue, repeats
from ledger.store.sessions import Connection
from ledger.views import ReceiptView, TransactionView
from ledger.views.reader import ACTIVE_MINER_MS
from node.market.desk import Desk
from node.market.feed import BLOCKS, JobWatch
from node.submissions import parse_submission, store_submission, verify_submission

_ENTROPY_BYTES = 10
_SEED_BYTES = 7


class ClientDesk(Desk):
    """What those do who want answers."""

    async def submit(
        self, caller: Caller, order: JobOrder, *, idempotency_key: str | None = None
    ) -> Job:
        """Store a pending job; it is durable when this returns. See `submit_all`."""
        made = await self.submit_all(caller, [order], idempotency_key=idempotency_key)
        return made.jobs[0]

    async def submit_all(
        self, caller: Caller, orders: Sequence[JobOrder], *, idempotency_key: str | None = None
    ) -> Submission:
        """Store pending jobs, all or none; they are durable when this returns.

        With an idempotency key the same orders of the same API key make no other jobs for 24 h:
        those of the first time are returned as they are now, and nothing is counted.

        Raises:
            MarketError: IDEMPOTENCY_MISMATCH, QUOTA_EXCEEDED, RATE_LIMIT_EXCEEDED,
                VALIDATION_FAILED (more than the key may ever submit), NODE_IS_FOLLOWER.
        """
        now_ms = self._clock_ms()

        def find_repeat(connection: Connection) -> Submission | None:
            if idempotency_key is None:
                return None
            known = repeats.find_repeat(
                connection, caller.key, idempotency_key, orders, now_ms=now_ms
            )
            return Submission(jobs=known, is_replay=True) if known else None

        if known := find_repeat(self._store.reader):
            return known
        self._check_standing()
        eligible = self._count_eligible(orders[0].model)
        jobs = tuple(self._build_job(caller, order, now_ms) for order in orders)

        def store(connection: Connection) -> Submission:
            if known := find_repeat(connection):  # the same request was faster
                return known
            self._use_quota(connection, caller, orders, now_ms)
            places = [job_store.insert_job(connection, job) for job in jobs]
            if idempotency_key is not None:
                repeats.remember(connection, caller.key, idempotency_key, jobs, first_seq=places[0])
            for _ in jobs:
                self._move("submitted")
            # Read here, where the writer's thread has the pages at hand.
            place = _find_place(connection, jobs[0], eligible) if len(jobs) == 1 else None
            return Submission(jobs=jobs, queue=place)

        made = await self._write(store, then=self.job_waiting.fire)
        if not made.is_replay:
            for job in made.jobs:
                self._offers.keep(job)
        return made

    def _build_job(self, caller: Caller, order: JobOrder, now_ms: int) -> Job:
        draw = self._random.take
        job = Job(
            id=build_job_id(now_ms=now_ms, entropy=draw(_ENTROPY_BYTES)),
            state="pending",
            status_reason="queued",
            client=caller.client,
            owner=caller.key,
            order=order,
            seed=order.seed if order.seed is not None else _build_seed(draw(_SEED_BYTES)),
            prompt_salt=draw(SALT_BYTES),
            result_salt=draw(SALT_BYTES),
            prices=self._settings.prices,
            created_at_ms=now_ms,
        )
        assert job.seed <= MAX_INTEGER
        return job

    def _use_quota(
        self,
        connection: Connection,
        caller: Caller,
        orders: Sequence[JobOrder],
        now_ms: int,
    ) -> None:
        day = find_day(now_ms)
        own, usage = limits.load_standing(connection, caller.key, day)
        check_quota(
            own,
            usage,
            orders,
            max_pending=self._settings.max_pending_per_key,
            now_ms=now_ms,
        )
        tokens = sum(order.max_tokens for order in orders)
        limits.add_usage(connection, caller.key, day, jobs=len(orders), tokens=tokens)

    def key_standing(self, caller: Caller) -> KeyStanding:
        """Return what a key may submit, and what it has submitted."""
        day = find_day(self._clock_ms())
        own, usage = limits.load_standing(self._store.reader, caller.key, day)
        if own.max_pending is None:
            own = replace(own, max_pending=self._settings.max_pending_per_key)
        return KeyStanding(
            limits=own,
            usage=usage,
            resets_at_ms=(day + 1) * DAY_MS,
        )

    async def cancel(self, caller: Caller, job_id: str) -> Job:
        """Cancel a pending or running job; a second time changes nothing."""

        def cancel(connection: Connection) -> Job:
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
        self,
        *,
        owner: str | None,
        state: JobState | None,
        limit: int,
        offset: int = 0,
        before: str | None = None,
        after: str | None = None,
    ) -> Sequence[Job]:
        """Return jobs, newest first; `owner` (an API key's prefix) narrows the list.

        `before` and `after` are job ids: only jobs submitted before, or the first ones after.

        Raises:
            MarketError: VALIDATION_FAILED, there is no such job to begin at.
        """
        reader = self._store.reader
        return lists.list_jobs(
            reader,
            lists.JobPage(
                owner=owner,
                state=state,
                before=self._find_cursor("before", before),
                after=self._find_cursor("after", after),
                limit=limit,
                offset=offset,
            ),
        )

    def _find_cursor(self, name: str, job_id: str | None) -> bytes | None:
        cursor = None if job_id is None else parse_job_id(job_id) or b""
        if cursor is not None and not lists.knows_job(self._store.reader, cursor):
            raise InvalidFieldError(name, "no job with this id on this node")
        return cursor

    def count_jobs(self, *, owner: str | None, state: JobState | None) -> int:
        """Return how many jobs `jobs` would list in all."""
        return lists.count_jobs(self._store.reader, owner=owner, state=state)

    def queue(self, job: Job) -> Queue:
        """Return where a pending job stands."""
        return _find_place(self._store.reader, job, self._count_eligible(job.order.model))

    def _count_eligible(self, model: str) -> int:
        return self._known.count_eligible(model, self._clock_ms() - ACTIVE_MINER_MS)

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


def _find_place(connection: Connection, job: Job, eligible_miners: int) -> Queue:
    position = queue.count_ahead(connection, job) + 1
    return Queue(position=position, eligible_miners=eligible_miners)


def _build_seed(random: bytes) -> int:
    return int.from_bytes(random, "big") & MAX_INTEGER
