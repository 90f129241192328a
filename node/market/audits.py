"""The auditors' part of the market: a share of completed jobs is replayed by somebody else.

An audit is drawn when a job is completed, by chance that no miner can foresee, and offered once the
receipt is final. The coordinator builds the transaction from its own records and what the auditor
measured, holds the auditor's signature against it, and signs that it drew the audit.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import replace

import msgspec

from ledger.audits import AuditTotals
from ledger.draws import (
    AUDIT_LEASE_MS,
    MAX_ROUNDS,
    AuditClaim,
    AuditReport,
    DrawnAudit,
    build_audit,
    check_claimable,
    check_held,
    list_measured,
    list_names,
    name_auditor,
    parse_audit_id,
)
from ledger.errors import InvalidTransactionError, MarketError
from ledger.hashing import decode_tokens
from ledger.jobs import Caller, Job, Lease, Miner, Report, build_job_id
from ledger.payloads import AuditPayload
from ledger.rules import verify_transaction
from ledger.store import draws
from ledger.store import jobs as job_store
from ledger.store.mempool import insert_transaction
from ledger.store.sessions import Connection
from ledger.transaction import Transaction, build_transaction
from ledger.views import TransactionView, view_pending
from node.market.miners import MAX_POLLS, MAX_POLLS_PER_MINER, MinerDesk, load_miner

_random = secrets.SystemRandom()
_ENTROPY_BYTES = 10


class AuditDesk(MinerDesk):
    """What auditors do, and how audits come about."""

    def _draw(
        self,
        connection: Connection,
        job: Job,
        report: Report,
        *,
        miner: Miner,
        caller: Caller,
        now_ms: int,
    ) -> None:
        """Draw, right after a job was completed, whether its answer is audited."""
        rate = self._settings.audit_rate
        if not report.output_token_ids or not rate or _random.random() >= rate:
            return
        place = job_store.find_place(connection, job.id)
        provider = list_names(
            miner_id=miner.miner_id,
            accounts=[job.provider, miner.account],
            keys=[job.claimed_by, miner.owner, caller.key],
        )
        audit = DrawnAudit(
            id=_build_audit_id(now_ms),
            job=place,
            receipt_id=self.receipt_id(job),
            model=job.order.model,
            state="pending",
            round=1,
            excluded=frozenset(provider),
            created_at_ms=now_ms,
        )
        draws.draw_audit(connection, audit)

    async def find_audit(self, caller: Caller, miner_id: str, wait_ms: int) -> DrawnAudit | None:
        """Return the audit that waits longest and that this miner may do, waiting for one."""
        miner = await self._seen(self._miner(caller, miner_id))
        polls = self._audit_polls
        if polls.total() >= MAX_POLLS or polls[miner_id] >= MAX_POLLS_PER_MINER:
            wait_ms = 0
        polls[miner_id] += 1
        try:
            return await self._wait_for_audit(caller, miner, wait_ms)
        finally:
            polls[miner_id] -= 1
            if not polls[miner_id]:
                del polls[miner_id]

    async def _wait_for_audit(
        self, caller: Caller, miner: Miner, wait_ms: int
    ) -> DrawnAudit | None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait_ms / 1000
        while True:
            miner = self._known_miner(miner.miner_id)
            names = name_auditor(miner, caller)
            audit = draws.find_open_audit(self._store.reader, miner, names)
            left_s = deadline - loop.time()
            if audit is not None or left_s <= 0 or self.feed.is_closing:
                return audit
            await self.audit_waiting.wait(left_s)

    async def claim_audit(self, caller: Caller, audit_id: str, miner_id: str) -> AuditClaim:
        """Give an audit to this miner, under a lease. The same miner again gets the same lease.

        Raises:
            MarketError: AUDIT_NOT_FOUND, AUDIT_ALREADY_CLAIMED, AUDIT_ALREADY_COMPLETED,
                AUDIT_EXPIRED, AUDIT_NOT_ELIGIBLE.
        """
        self._check_standing()
        await self._seen(self._miner(caller, miner_id))

        def claim(connection: Connection) -> tuple[DrawnAudit, Job]:
            miner = load_miner(connection, miner_id)
            audit = draws.load_audit(connection, parse_audit_id(audit_id))
            check_claimable(audit, miner, name_auditor(miner, caller))
            if audit.state == "pending":
                draws.claim_audit(
                    connection, audit, miner, lease_expires_at_ms=self._clock_ms() + AUDIT_LEASE_MS
                )
            audit = draws.load_audit(connection, audit.id)
            return audit, job_store.load_job_at(connection, audit.job)

        audit, job = await self._write(claim)
        receipt = self._views.receipt(audit.receipt_id)
        assert receipt is not None, "it is offered once its receipt is final"
        return AuditClaim(
            audit=audit,
            job=job,
            receipt=receipt.payload,
            coordinator=self._issuer.account,
            lease=self._audit_lease(audit),
        )

    async def release_audit(self, caller: Caller, audit_id: str, miner_id: str) -> None:
        """Give an audit back, for somebody else.

        Raises:
            MarketError: AUDIT_NOT_FOUND, AUDIT_LEASE_LOST, AUDIT_ALREADY_COMPLETED, AUDIT_EXPIRED.
        """
        self._miner(caller, miner_id)

        def release(connection: Connection) -> None:
            audit = draws.load_audit(connection, parse_audit_id(audit_id))
            check_held(audit, miner_id)
            draws.return_audit(connection, audit, now_ms=self._clock_ms())

        await self._write(release, then=self.audit_waiting.fire)

    async def complete_audit(
        self, caller: Caller, audit_id: str, report: AuditReport
    ) -> TransactionView:
        """Let what an auditor found wait for a block; the same report again is harmless.

        Raises:
            MarketError: AUDIT_NOT_FOUND, AUDIT_LEASE_LOST, AUDIT_ALREADY_COMPLETED, AUDIT_EXPIRED,
                AUDIT_MISMATCH, VALIDATION_FAILED.
        """
        miner = self._miner(caller, report.miner_id)
        audit = draws.load_audit(self._store.reader, parse_audit_id(audit_id))
        if audit.state == "done" and audit.miner_id == report.miner_id:
            return self._repeated_audit(audit, report)
        check_held(audit, report.miner_id)
        self._check_standing()
        job = job_store.load_job_at(self._store.reader, audit.job)
        now_ms = self._clock_ms()
        transaction = self._vouch(audit, job, report, now_ms)
        names = name_auditor(miner, caller)

        def complete(connection: Connection) -> int | None:
            now = draws.load_audit(connection, audit.id)
            if now.state == "done" and now.miner_id == report.miner_id:
                return None  # the same request was faster
            check_held(now, report.miner_id)
            draws.finish_audit(
                connection,
                now,
                transaction_id=bytes(transaction.id),
                verdict=report.verdict,
                now_ms=now_ms,
            )
            if report.verdict == "fail" and now.round < MAX_ROUNDS:
                draws.draw_audit(connection, _draw_again(now, names, now_ms))
            return insert_transaction(connection, transaction, now_ms=now_ms)

        def follow_up() -> None:
            self._receipt_waiting()
            self.audit_waiting.fire()

        seq = await self._write(complete, then=follow_up)
        if seq is None:
            return self._repeated_audit(draws.load_audit(self._store.reader, audit.id), report)
        return view_pending(transaction, seq=seq, received_at_ms=now_ms)

    def _vouch(self, audit: DrawnAudit, job: Job, report: AuditReport, now_ms: int) -> Transaction:
        """Rebuild what the auditor must have signed, sign it too, and check the whole."""
        payload = build_audit(
            audit,
            report,
            genesis_hash=self._genesis_hash,
            coordinator=self._issuer.account,
            answer_tokens=len(decode_tokens(job.output_token_ids or b"")),
            now_ms=now_ms,
        )
        signatures = [self._issuer.vouch(payload), report.signature]
        try:
            transaction = build_transaction(payload, signatures)
            verify_transaction(transaction, self._chain.tip())
            self._chain.is_due(transaction)
        except InvalidTransactionError as error:
            raise MarketError(
                "AUDIT_MISMATCH",
                f"{error}; sign the expected payload as auditor",
                expected=msgspec.to_builtins(payload),
            ) from error
        return transaction

    def _repeated_audit(self, audit: DrawnAudit, report: AuditReport) -> TransactionView:
        assert audit.transaction_id is not None, "a done audit has a transaction"
        known = self._views.transaction(audit.transaction_id.hex())
        payload = known.payload if known else None
        is_same = isinstance(payload, AuditPayload) and list_measured(payload) == list_measured(
            report
        )
        if known is None or not is_same:
            raise MarketError(
                "AUDIT_ALREADY_COMPLETED", f"{audit.audit_id} was completed with another report"
            )
        return known

    def _audit_lease(self, audit: DrawnAudit) -> Lease:
        assert audit.lease_expires_at_ms is not None, "only a running audit has a lease"
        left_ms = max(audit.lease_expires_at_ms - self._clock_ms(), 0)
        return Lease(
            attempt=audit.tries,
            expires_at_ms=audit.lease_expires_at_ms,
            expires_in_ms=left_ms,
            run_ends_in_ms=left_ms,
            heartbeat_interval_ms=0,
        )

    def _sweep_audits(self, connection: Connection, now_ms: int) -> bool:
        """Offer audits whose receipt is final, and end those whose time is over."""
        return draws.sweep_audits(
            connection,
            is_final=lambda receipt_id: self._chain.locate_receipt(receipt_id) is not None,
            now_ms=now_ms,
        )

    def audit_totals(self, provider: str) -> AuditTotals:
        """Return what the audits of a provider come to."""
        return self._views.audit_totals(provider)


def _build_audit_id(now_ms: int) -> bytes:
    return build_job_id(now_ms=now_ms, entropy=secrets.token_bytes(_ENTROPY_BYTES))


def _draw_again(failed: DrawnAudit, names: set[str], now_ms: int) -> DrawnAudit:
    """A second opinion, by somebody else."""
    return replace(
        failed,
        id=_build_audit_id(now_ms),
        state="pending",
        round=failed.round + 1,
        excluded=failed.excluded | names,
        created_at_ms=now_ms,
        is_offered=True,
    )
