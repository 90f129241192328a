"""What the REST face needs from the node behind it.

`Market` takes every write and every private read; `node` fulfils it. `Views` and `Tree` are the
public reads of `ledger.views`. Refusals are `MarketError`s, whose code decides the HTTP status; a
full write queue is `ledger.store.writequeue.DatabaseBusyError`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Literal, Protocol

from ledger.audits import AuditTotals
from ledger.draws import AuditClaim, AuditReport, DrawnAudit
from ledger.events import EventType
from ledger.jobs import (
    Caller,
    Claim,
    Job,
    JobOrder,
    JobState,
    Lease,
    Miner,
    MinerStanding,
    Progress,
    Queue,
    Registration,
    Report,
    ServedModel,
    Submission,
)
from ledger.quotas import KeyStanding
from ledger.store.webhooks import Webhook
from ledger.tiles import TilePlace
from ledger.totals import Share
from ledger.views import (
    AuthoritiesView,
    BlockView,
    HeadView,
    ReceiptFilter,
    ReceiptView,
    StatementLineView,
    StatementView,
    StatsView,
    TransactionView,
)


class JobWatch(Protocol):
    """Waits for news of one job, or of blocks."""

    wants_text: bool
    """Whether text alone is news."""

    async def wait(self, timeout_s: float) -> bool:
        """Return once there is news since the last call, or after `timeout_s`.

        False at the end of the node.
        """


class Webhooks(Protocol):
    """The webhooks of a coordinator's clients."""

    async def create_webhook(
        self, caller: Caller, url: str, events: Sequence[EventType]
    ) -> tuple[Webhook, str]:
        """Store a webhook for the caller's jobs; returns it with its secret, for the only time.

        Raises MarketError VALIDATION_FAILED, WEBHOOK_LIMIT_REACHED.
        """

    def webhooks(self, caller: Caller, *, limit: int, before: int | None) -> Sequence[Webhook]:
        """Return the caller's webhooks, an admin everybody's, newest first, below a place."""

    def webhook(self, caller: Caller, webhook_id: str) -> Webhook:
        """Return a webhook. Raises MarketError WEBHOOK_NOT_FOUND, for those of others too."""

    async def delete_webhook(self, caller: Caller, webhook_id: str) -> None:
        """Forget a webhook, and what waits for it. Raises MarketError WEBHOOK_NOT_FOUND."""

    async def ping_webhook(self, caller: Caller, webhook_id: str) -> str:
        """Let a webhook hear a test event; returns its message id.

        Raises MarketError WEBHOOK_NOT_FOUND, WEBHOOK_DISABLED.
        """


class Market(Webhooks, Protocol):
    """The coordinator's job market."""

    def authenticate(self, secret: str) -> Caller | None:
        """Return whose API key this is, or None for an unknown or revoked one."""

    async def submit(
        self, caller: Caller, order: JobOrder, *, idempotency_key: str | None = None
    ) -> Job:
        """Store a pending job; it is durable when this returns."""

    async def submit_all(
        self, caller: Caller, orders: Sequence[JobOrder], *, idempotency_key: str | None = None
    ) -> Submission:
        """Store pending jobs, all or none; with a key, no others for the same orders.

        Raises MarketError IDEMPOTENCY_MISMATCH, QUOTA_EXCEEDED, RATE_LIMIT_EXCEEDED.
        """

    def key_standing(self, caller: Caller) -> KeyStanding:
        """Return what a key may submit, and what it has submitted."""

    def job(self, job_id: str) -> Job:
        """Return a job. Raises MarketError JOB_NOT_FOUND."""

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

        `before` and `after` are job ids. Raises MarketError VALIDATION_FAILED for an unknown one.
        """

    def count_jobs(self, *, owner: str | None, state: JobState | None) -> int:
        """Return how many jobs `jobs` would list in all."""

    def progress(self, job_id: str) -> Progress:
        """Return a job with its text so far. Raises MarketError JOB_NOT_FOUND."""

    def watch(self, job_id: str, *, text: bool = True) -> AbstractContextManager[JobWatch]:
        """Let the caller wait for news of a job; enter it before the job is read.

        Without `text` what its miner tells of its text is no news. Raises MarketError
        JOB_NOT_FOUND.
        """

    def watch_blocks(self) -> AbstractContextManager[JobWatch]:
        """Let the caller wait for new blocks; enter it before a receipt is read."""

    def receipt(self, receipt_id: str) -> ReceiptView | None:
        """Return a receipt, pending or final."""

    def models(self, default_model: str) -> Sequence[ServedModel]:
        """Return the models that active miners name; who takes any stands for `default_model`."""

    def serves(self, model: str) -> bool:
        """Tell whether an active miner takes jobs for a model."""

    def receipt_id(self, job: Job) -> str:
        """Return the id that the receipt of a job has, or will have if there is one."""

    def queue(self, job: Job) -> Queue:
        """Return where a pending job stands."""

    async def submit_transaction(self, envelope: bytes) -> TransactionView:
        """Let a change of the authority set, or evidence, wait for a block.

        Raises MarketError TRANSACTION_INVALID, TRANSACTION_TYPE_REFUSED, RATE_LIMIT_EXCEEDED.
        """

    async def cancel(self, caller: Caller, job_id: str) -> Job:
        """Cancel a pending or running job; a second time changes nothing."""

    async def available(
        self, caller: Caller, miner_id: str, wait_ms: int, models: Sequence[str] = ()
    ) -> Job | None:
        """Return the job that is next for this miner, waiting up to `wait_ms` for one.

        With `models` only jobs for these count, of those that the miner serves.
        """

    async def claim(self, caller: Caller, job_id: str, miner_id: str, *, heartbeat: bool) -> Claim:
        """Give the job to this miner, under a lease."""

    async def heartbeat(
        self, caller: Caller, job_id: str, miner_id: str, *, wait_ms: int = 0
    ) -> Lease:
        """Renew the lease; answer after `wait_ms`, or with a refusal once the job is lost."""

    async def tell(
        self, caller: Caller, job_id: str, miner_id: str, *, offset: int, text: str
    ) -> int:
        """Take a piece of a running job's answer; returns how many characters are known."""

    async def release(self, caller: Caller, job_id: str, miner_id: str) -> Job:
        """Put the job back at the head of the queue."""

    async def fail(
        self, caller: Caller, job_id: str, miner_id: str, *, reason: str, retryable: bool
    ) -> Job:
        """Give up an attempt, or the whole job."""

    async def complete(self, caller: Caller, job_id: str, report: Report) -> ReceiptView:
        """Store result and receipt in one transaction; the same report again is harmless."""

    async def find_audit(self, caller: Caller, miner_id: str, wait_ms: int) -> DrawnAudit | None:
        """Return an audit that this miner may do, waiting up to `wait_ms` for one."""

    async def claim_audit(self, caller: Caller, audit_id: str, miner_id: str) -> AuditClaim:
        """Give an audit to this miner, under a lease."""

    async def complete_audit(
        self, caller: Caller, audit_id: str, report: AuditReport
    ) -> TransactionView:
        """Let what an auditor found wait for a block; the same report again is harmless."""

    async def release_audit(self, caller: Caller, audit_id: str, miner_id: str) -> None:
        """Let somebody else do an audit."""

    def audit_totals(self, provider: str) -> AuditTotals:
        """Return what the audits of a provider come to."""

    async def register_miner(self, caller: Caller, registration: Registration) -> Miner:
        """Store or replace a miner's description."""

    async def miner_heartbeat(self, caller: Caller, miner_id: str) -> Miner:
        """Note that a miner is alive."""

    async def drain(self, caller: Caller, miner_id: str) -> MinerStanding:
        """Offer a miner nothing more; what it runs goes on. Registering again ends it."""

    async def deregister(self, caller: Caller, miner_id: str) -> None:
        """Forget a miner; what it runs goes back to the queue at once."""

    def miner(self, miner_id: str) -> MinerStanding:
        """Return what everybody may see of a miner. Raises MarketError MINER_NOT_FOUND."""

    def miners(self, *, after: str, limit: int) -> Sequence[MinerStanding]:
        """Return miners in the order of their names, above `after`."""

    def count_miners(self) -> int | None:
        """Return how many miners there are, None if there are too many to count."""


class Keys(Protocol):
    """Knows API keys."""

    def authenticate(self, secret: str) -> Caller | None:
        """Return whose API key this is, or None for an unknown or revoked one."""


class Views(Protocol):
    """The public reads. Short and synchronous; lists are newest first, below cursor `before`."""

    def head(self) -> HeadView:
        """Return where the chain stands."""

    def stats(self, now_ms: int) -> StatsView:
        """Return the network's figures."""

    def blocks(self, *, limit: int, before: int | None = None) -> list[BlockView]:
        """Return final blocks."""

    def transactions(self, *, limit: int, before: int | None = None) -> list[TransactionView]:
        """Return transactions, pending ones first."""

    def transaction(self, id_hex: str, /) -> TransactionView | None:
        """Return a transaction, final or pending."""

    def receipts(
        self, wanted: ReceiptFilter, /, *, limit: int, before: int | None = None
    ) -> list[ReceiptView]:
        """Return receipts, pending ones first."""

    def count_receipts(self, wanted: ReceiptFilter, /) -> int | None:
        """Return how many receipts `receipts` would list in all; None where that is not cheap."""

    def receipt(self, receipt_id: str, /) -> ReceiptView | None:
        """Return a receipt, final or pending."""

    def authorities(self) -> AuthoritiesView:
        """Return who seals the next block, the sets since genesis, and evidence."""

    def audits(
        self, receipt_id: str, /, *, limit: int, before: int | None = None
    ) -> list[TransactionView]:
        """Return audits of a receipt, pending ones first."""

    def provider_audits(
        self, provider: str, /, *, limit: int, before: int | None = None
    ) -> list[TransactionView]:
        """Return final audits of a provider's answers."""

    def audit_totals(self, provider: str, /) -> AuditTotals:
        """Return what the audits of a provider come to."""

    def bundle(self, receipt_id: str, /) -> bytes | None:
        """Return the canonical proof bundle of a final receipt."""

    def statement(self, account: str, /, *, from_ms: int, to_ms: int) -> StatementView:
        """Return an account's period and sums; not short, unlike the others."""

    def statement_lines(
        self, statement: StatementView, /, *, limit: int, after: int | None = None
    ) -> list[StatementLineView]:
        """Return lines above leaf `after`, oldest first."""

    def statement_shares(
        self,
        statement: StatementView,
        by: Literal["counterparty", "model"],
        /,
        *,
        limit: int,
        after: str = "",
    ) -> list[Share]:
        """Return totals of each model or counterparty with a name above `after`; not short."""

    def statement_bundle(self, account: str, /, *, from_ms: int, to_ms: int) -> bytes | None:
        """Return the canonical proof of all lines, None if there are none.

        Raises StatementTooLongError.
        """


class Tree(Protocol):
    """The public reads of the Merkle tree; None is what does not exist (yet)."""

    def tile(self, level: int, place: TilePlace, /) -> bytes | None:
        """Return the hashes of a tile."""

    def entries(self, place: TilePlace, /) -> bytes | None:
        """Return an entry bundle."""

    def consistency(self, from_size: int, to_size: int | None, /) -> bytes | None:
        """Return a consistency document; without `to_size` up to the newest tree."""
