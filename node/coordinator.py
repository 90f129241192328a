"""The job market of one node: every write of the REST API, decided by `ledger.jobs`.

Each method reads the job, lets the pure rules decide, and stores the outcome in one conditional
update of node.db; it returns when that is durable. Completing a job stores the result and the
receipt's envelope together, and wakes the sealer, which makes the receipt final.
"""

from __future__ import annotations

import asyncio
import secrets
import sqlite3
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from ledger.encoding import MAX_INTEGER
from ledger.errors import (
    InvalidKeyError,
    InvalidSignatureError,
    MarketError,
)
from ledger.hashing import SALT_BYTES
from ledger.jobs import (
    MAX_ATTEMPTS,
    Caller,
    Claim,
    Job,
    JobOrder,
    JobState,
    Lease,
    Miner,
    Prices,
    Queue,
    Registration,
    Report,
    build_job_id,
    build_registration_message,
    check_cancellable,
    check_claimable,
    check_completable,
    check_held,
    parse_job_id,
)
from ledger.keys import ACCOUNT_PREFIX, KeyPair, verify_signature
from ledger.store import jobs as job_store
from ledger.store import registry
from ledger.store.chain import ChainStore
from ledger.store.database import Database
from ledger.views import LedgerViews, ReceiptView, TransactionView, view_pending
from ledger.views.reader import ACTIVE_MINER_MS
from node import apikeys
from node.issuer import ReceiptIssuer
from node.signal import Signal
from node.submissions import parse_submission, store_submission, verify_submission

T = TypeVar("T")

MAX_POLLS = 1_000
"""Long polls that wait at once; one more is answered at once."""
MAX_POLLS_PER_MINER = 4
"""A miner needs one; those of a connection it gave up wait on for their time."""
TOUCH_INTERVAL_MS = 10_000
"""A miner that polls is noted as seen no more often than this."""
_SEED_BITS = 53


@dataclass(frozen=True, slots=True, kw_only=True)
class MarketSettings:
    """What an operator decides about the market. Times in milliseconds, prices in micros."""

    prices: Prices
    lease_ms: int = 60_000
    heartbeat_interval_ms: int = 20_000
    execution_timeout_ms: int = 600_000
    """Longest run of one attempt, and the lease of a miner without heartbeats."""
    queue_timeout_ms: int = 3_600_000
    max_pending_per_key: int = 100


class Coordinator:
    """Fulfils `api.ports.Market` on node.db and the chain."""

    def __init__(
        self,
        *,
        chain: ChainStore,
        store: Database,
        key: KeyPair,
        settings: MarketSettings,
        clock_ms: Callable[[], int],
        receipt_waiting: Callable[[], None],
    ) -> None:
        self._chain = chain
        self._store = store
        self._issuer = ReceiptIssuer(chain=chain, key=key)
        self._settings = settings
        self._clock_ms = clock_ms
        self._receipt_waiting = receipt_waiting
        self._genesis_hash = chain.tip().genesis_hash
        self._views = LedgerViews(chain, store)
        self.job_waiting = Signal()
        self._closing = False
        self._polls: Counter[str] = Counter()

    def close(self) -> None:
        """Answer everybody who waits for a job, now and later, with none."""
        self._closing = True
        self.job_waiting.fire()

    # --- clients --------------------------------------------------------------------------------

    def authenticate(self, secret: str) -> Caller | None:
        """Return whose API key this is, or None for an unknown or revoked one."""
        return apikeys.authenticate(self._store.reader, secret, genesis_hash=self._genesis_hash)

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

        await self._write(store, then=self.job_waiting.fire)
        return job

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

    def job(self, job_id: str) -> Job:
        """Return a job. Raises MarketError JOB_NOT_FOUND."""
        return job_store.load_job(self._store.reader, parse_job_id(job_id))

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
            return job_store.load_job(connection, job.id)

        return await self._write(cancel)

    # --- miners ---------------------------------------------------------------------------------

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
            registered_at_ms=now_ms,
            last_seen_at_ms=now_ms,
        )

        def register(connection: sqlite3.Connection) -> Miner:
            known = registry.find_miner(connection, miner.miner_id)
            if known is not None and not _acts_for(caller, known):
                raise MarketError(
                    "MINER_ALREADY_REGISTERED",
                    f"miner {miner.miner_id} belongs to another key; choose another miner_id",
                )
            # An admin who changes a miner does not take it from its key.
            owner = known.owner if known is not None and caller.is_admin else miner.owner
            registry.upsert_miner(connection, replace(miner, owner=owner))
            return registry.find_miner(connection, miner.miner_id) or miner

        return await self._write(register)

    async def miner_heartbeat(self, caller: Caller, miner_id: str) -> Miner:
        """Note that a miner is alive."""
        miner = self._miner(caller, miner_id)
        now_ms = self._clock_ms()
        await self._write(lambda c: registry.touch_miner(c, miner_id, now_ms))
        return replace(miner, last_seen_at_ms=now_ms)

    async def available(self, caller: Caller, miner_id: str, wait_ms: int) -> Job | None:
        """Return the oldest job for this miner, waiting up to `wait_ms` for one."""
        miner = await self._seen(self._miner(caller, miner_id))
        if self._polls.total() >= MAX_POLLS or self._polls[miner_id] >= MAX_POLLS_PER_MINER:
            wait_ms = 0
        self._polls[miner_id] += 1
        try:
            return await self._wait_for_job(miner, wait_ms)
        finally:
            self._polls[miner_id] -= 1
            if not self._polls[miner_id]:
                del self._polls[miner_id]

    async def _wait_for_job(self, miner: Miner, wait_ms: int) -> Job | None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait_ms / 1000
        while True:
            job = job_store.find_available(self._store.reader, miner)
            left_s = deadline - loop.time()
            if job is not None or left_s <= 0 or self._closing:
                return job
            await self.job_waiting.wait(left_s)

    async def claim(self, caller: Caller, job_id: str, miner_id: str, *, heartbeat: bool) -> Claim:
        """Give the job to this miner, under a lease. The same miner again gets the same lease."""
        self._check_standing()
        miner = await self._seen(self._miner(caller, miner_id))

        def claim(connection: sqlite3.Connection) -> Job:
            job = job_store.load_job(connection, parse_job_id(job_id))
            check_claimable(job, miner_id)
            if job.state == "pending":
                now_ms = self._clock_ms()
                lasting_ms = (
                    self._settings.lease_ms if heartbeat else self._settings.execution_timeout_ms
                )
                job_store.claim_job(
                    connection,
                    job,
                    miner_id=miner_id,
                    provider=miner.account or miner.miner_id,
                    claimed_by=caller.key,
                    now_ms=now_ms,
                    lease_expires_at_ms=now_ms + lasting_ms,
                    heartbeat=heartbeat,
                )
            return job_store.load_job(connection, job.id)

        job = await self._write(claim)
        return Claim(job=job, lease=self._lease(job), terms=self._issuer.build_terms(job))

    async def heartbeat(self, caller: Caller, job_id: str, miner_id: str) -> Lease:
        """Renew the lease, as long as the attempt may run at all."""
        await self._seen(self._miner(caller, miner_id))

        def renew(connection: sqlite3.Connection) -> Job:
            job = job_store.load_job(connection, parse_job_id(job_id))
            check_held(job, miner_id)
            expires_at_ms = min(
                self._clock_ms() + self._settings.lease_ms, self._execution_deadline_ms(job)
            )
            if job.heartbeat:
                job_store.renew_lease(connection, job, lease_expires_at_ms=expires_at_ms)
            return job_store.load_job(connection, job.id)

        return self._lease(await self._write(renew))

    async def release(self, caller: Caller, job_id: str, miner_id: str) -> Job:
        """Put the job back at the head of the queue."""
        return await self._give_up(caller, job_id, miner_id, self._try_again)

    async def fail(
        self, caller: Caller, job_id: str, miner_id: str, *, reason: str, retryable: bool
    ) -> Job:
        """Give up an attempt, or the whole job. `reason` is shown to the job's owner."""

        def fail(connection: sqlite3.Connection, job: Job) -> None:
            if retryable:
                self._try_again(connection, job, error=reason)
            else:
                self._fail_job(connection, job, "miner_error", error=reason)

        return await self._give_up(caller, job_id, miner_id, fail)

    async def complete(self, caller: Caller, job_id: str, report: Report) -> ReceiptView:
        """Store result and receipt in one transaction; the same report again is harmless."""
        self._miner(caller, report.miner_id)
        job = self.job(job_id)
        if job.state == "completed" and job.miner_id == report.miner_id:
            return self._repeated(job, report)
        check_completable(job, report.miner_id)
        self._check_standing()
        now_ms = self._clock_ms()
        transaction = self._issuer.issue(job, report, now_ms=now_ms)

        def complete(connection: sqlite3.Connection) -> int | None:
            now = job_store.load_job(connection, job.id)
            if now.state == "completed" and now.miner_id == report.miner_id:
                return None  # the same request was faster
            check_completable(now, report.miner_id)
            # The lease may have run out since; only another attempt makes this receipt wrong.
            return job_store.complete_job(
                connection,
                replace(job, state=now.state),
                miner_id=report.miner_id,
                claimed_by=caller.key,
                result=report.result,
                transaction=transaction,
                now_ms=now_ms,
            )

        seq = await self._write(complete, then=self._receipt_waiting)
        if seq is None:
            return self._repeated(self.job(job_id), report)
        return ReceiptView(
            transaction=view_pending(transaction, seq=seq, received_at_ms=now_ms),
            miner_id=report.miner_id,
        )

    # --- upkeep ---------------------------------------------------------------------------------

    async def sweep(self) -> int:
        """End what has run out: leases, attempts, places in the queue. Returns how many."""
        now_ms = self._clock_ms()

        def sweep(connection: sqlite3.Connection) -> int:
            expired = job_store.list_expired_leases(connection, now_ms)
            for job in expired:
                self._end_attempt(connection, job, now_ms)
            stale = job_store.list_stale_jobs(connection, now_ms - self._settings.queue_timeout_ms)
            for job in stale:
                self._fail_job(connection, job, "queue_timeout")
            return len(expired) + len(stale)

        swept = await self._write(sweep)
        if swept:
            self.job_waiting.fire()
        return swept

    def _end_attempt(self, connection: sqlite3.Connection, job: Job, now_ms: int) -> None:
        if job.heartbeat and now_ms >= self._execution_deadline_ms(job):
            self._fail_job(connection, job, "execution_timeout")
        else:
            self._try_again(connection, job)

    def _try_again(
        self, connection: sqlite3.Connection, job: Job, *, error: str | None = None
    ) -> None:
        """Give the job back to the queue, unless it had all its attempts."""
        if job.attempt < MAX_ATTEMPTS:
            job_store.requeue_job(connection, job, reason="requeued")
        else:
            self._fail_job(connection, job, "max_attempts", error=error)

    def _fail_job(
        self, connection: sqlite3.Connection, job: Job, reason: str, *, error: str | None = None
    ) -> None:
        job_store.end_job(
            connection, job, state="failed", reason=reason, now_ms=self._clock_ms(), error=error
        )

    # --- parts ----------------------------------------------------------------------------------

    async def _write(
        self, work: Callable[[sqlite3.Connection], T], *, then: Callable[[], None] | None = None
    ) -> T:
        """Do it durably. `then` follows even if whoever waits for the answer is gone by then."""
        future = self._store.write(work)
        if then is not None:
            future.add_done_callback(lambda _: then())
        return await asyncio.wrap_future(future)

    def _miner(self, caller: Caller, miner_id: str) -> Miner:
        miner = registry.find_miner(self._store.reader, miner_id)
        if miner is None:
            raise MarketError("MINER_NOT_FOUND", f"miner {miner_id} is not registered on this node")
        if not _acts_for(caller, miner):
            raise MarketError("AUTH_INSUFFICIENT_SCOPE", f"miner {miner_id} belongs to another key")
        return miner

    async def _seen(self, miner: Miner) -> Miner:
        now_ms = self._clock_ms()
        if now_ms - miner.last_seen_at_ms >= TOUCH_INTERVAL_MS:
            await self._write(lambda c: registry.touch_miner(c, miner.miner_id, now_ms))
        return miner

    def _check_standing(self) -> None:
        """Refuse work whose receipts no block could hold."""
        authority_set = self._chain.tip().authority_set
        if not authority_set.allows_coordinator(self._issuer.account):
            others = [member.url for member in authority_set.members if member.url]
            raise MarketError(
                "NODE_IS_FOLLOWER",
                "this node's key is not in the authority set, so its receipts would not count; ask "
                + (others[0] if others else "an authority"),
            )

    def _check_registration(self, registration: Registration) -> None:
        if registration.miner_id.startswith(ACCOUNT_PREFIX + "1"):
            raise MarketError(
                "VALIDATION_FAILED", "miner_id: must not look like an account; use public_key"
            )
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
            raise MarketError(
                "VALIDATION_FAILED", f"proof: expected a signature over {message!r}: {error}"
            ) from error

    def _lease(self, job: Job) -> Lease:
        assert job.lease_expires_at_ms is not None, "only a running job has a lease"
        interval_ms = self._settings.heartbeat_interval_ms if job.heartbeat else 0
        return Lease(
            attempt=job.attempt,
            expires_at_ms=job.lease_expires_at_ms,
            expires_in_ms=max(job.lease_expires_at_ms - self._clock_ms(), 0),
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
        end_attempt: Callable[[sqlite3.Connection, Job], None],
    ) -> Job:
        self._miner(caller, miner_id)

        def give_up(connection: sqlite3.Connection) -> Job:
            job = job_store.load_job(connection, parse_job_id(job_id))
            check_held(job, miner_id)
            end_attempt(connection, job)
            return job_store.load_job(connection, job.id)

        return await self._write(give_up, then=self.job_waiting.fire)

    def _repeated(self, job: Job, report: Report) -> ReceiptView:
        if job.result != report.result:
            raise MarketError(
                "JOB_RESULT_CONFLICT", f"job {job.job_id} was completed with another result"
            )
        assert job.receipt_id is not None, "a completed job has a receipt"
        receipt = self._views.receipt(job.receipt_id)
        assert receipt is not None, "a receipt is in the mempool or on the chain"
        return receipt


def _acts_for(caller: Caller, miner: Miner) -> bool:
    """A miner registered without a key is anybody's; else it answers to its key and to admins."""
    return caller.is_admin or not miner.owner or miner.owner == caller.key
