"""What all parts of the market share: node.db, the chain, the clock, durable writes."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

from ledger.errors import MarketError
from ledger.hashing import build_receipt_id
from ledger.jobs import Caller, Job, Prices, parse_job_id
from ledger.keys import KeyPair
from ledger.store import jobs as job_store
from ledger.store.chain import ChainStore
from ledger.store.known import KnownRows
from ledger.store.marketstore import MarketStore, NewsKind
from ledger.store.sessions import Connection
from ledger.store.webhooks import has_webhooks
from ledger.views import LedgerViews
from node import apikeys
from node.issuer import ReceiptIssuer
from node.market.feed import BLOCKS, JobFeed
from node.market.kept import KeptJobs
from node.randomness import RandomPool
from node.signal import Latch, Signal
from node.webhooks.guard import Reach

T = TypeVar("T")

JobEvent = Literal["submitted", "claimed", "completed", "failed", "cancelled", "requeued"]
JOB_EVENTS: tuple[JobEvent, ...] = get_args(JobEvent)
FAILURES = ("miner_error", "max_attempts", "execution_timeout", "queue_timeout")
"""Why a job fails."""
Moved = Callable[[JobEvent, str], None]
"""Is told of each durable transition of a job and why it happened, from the writer's thread."""


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
    """Of keys that have no limit of their own."""
    text_retention_ms: int = 7 * 86_400_000
    """How long texts of ended jobs are kept; 0 is for ever."""
    audit_rate: float = 0.0
    """Share of the completed jobs whose answers are replayed by somebody else."""
    webhook_reach: Reach = "public"
    """Where webhooks may lead."""


def ignore_move(_event: JobEvent, _reason: str) -> None:
    """Count nothing."""


class Desk:
    """The base of every part: what they share, who waits included."""

    def __init__(
        self,
        *,
        chain: ChainStore,
        store: MarketStore,
        key: KeyPair,
        settings: MarketSettings,
        clock_ms: Callable[[], int],
        receipt_waiting: Callable[[], None],
        moved: Moved = ignore_move,
    ) -> None:
        self._chain = chain
        self._store = store
        self._issuer = ReceiptIssuer(chain=chain, key=key, max_run_ms=settings.execution_timeout_ms)
        self._settings = settings
        self._clock_ms = clock_ms
        self._receipt_waiting = receipt_waiting
        self._moved = moved
        self._moves: list[tuple[JobEvent, str]] = []
        """Of the write that the writer's thread does now."""
        self._genesis_hash = chain.tip().genesis_hash
        self._views = LedgerViews(chain, store)
        self._known = KnownRows(store)
        self._random = RandomPool()
        self._polls: Counter[str] = Counter()
        self._audit_polls: Counter[str] = Counter()
        self._beats: Counter[bytes] = Counter()
        self.job_waiting = Signal()
        self.audit_waiting = Signal()
        self.feed = JobFeed()
        self._offers = KeptJobs()
        """Pending jobs that nobody has claimed yet."""
        self._claims = KeptJobs()
        """Running ones."""
        self.events_waiting = Latch()
        self._has_webhooks = has_webhooks(store.reader)
        self._wakes: dict[NewsKind, Callable[[], None]] = {
            "job_waiting": self.job_waiting.fire,
            "audit_waiting": self.audit_waiting.fire,
            "transaction_waiting": receipt_waiting,
            "event_waiting": self._note_events,
            "anything": self.feed.note_all,
        }

    def bind(self) -> None:
        """Let news reach those who wait in the running loop."""
        self.job_waiting.bind()
        self.audit_waiting.bind()
        self.feed.bind()
        self._store.listen(self._hear)

    def _hear(self, news: NewsKind, job_id: bytes) -> None:
        """Wake who waits here for what another process has stored; from any thread."""
        if news == "job_changed":
            self.feed.note(job_id)
        elif news == "attempt_ended":
            self.feed.end(job_id)
        else:
            for kind, wake in self._wakes.items():
                if news in (kind, "anything"):
                    wake()

    def _note_events(self) -> None:
        # What has webhooks may have been stored by another process.
        self._has_webhooks = True
        self.events_waiting.set()

    def close(self) -> None:
        """Answer everybody who waits for a job, now and later."""
        self.feed.close()
        self.job_waiting.fire()
        self.audit_waiting.fire()

    def note_block(self) -> None:
        """Say that a block is final, from any thread."""
        self.feed.note(BLOCKS)

    def authenticate(self, secret: str) -> Caller | None:
        """Return whose API key this is, or None for an unknown or revoked one."""
        return apikeys.authenticate(self._known.find_key, secret, genesis_hash=self._genesis_hash)

    def job(self, job_id: str) -> Job:
        """Return a job. Raises MarketError JOB_NOT_FOUND."""
        return job_store.load_job(self._store.reader, parse_job_id(job_id))

    def receipt_id(self, job: Job) -> str:
        """Return the id that the receipt of a job has, or will have if there is one."""
        return build_receipt_id(
            genesis=self._genesis_hash.hex(), coordinator=self._issuer.account, job_id=job.job_id
        )

    async def _write(
        self, work: Callable[[Connection], T], *, then: Callable[[], None] | None = None
    ) -> T:
        """Do it durably. `then` follows if it was done, though nobody may wait for the answer."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()
        moves: list[tuple[JobEvent, str]] = []

        def run(connection: Connection) -> T:
            moves.clear()  # it may run twice
            self._moves = moves
            return work(connection)

        def follow(result: T, error: Exception | None) -> None:
            if not answer.done():
                _settle(answer, result, error)
            # A refused write changed nothing: who may not end a job must not end its text either.
            if error is None:
                self._tell_moves(moves)
                if then is not None:
                    then()

        self._store.send(run, follow, loop.call_soon_threadsafe)
        return await answer

    def _move(self, event: JobEvent, reason: str = "") -> None:
        """Note, inside a write, that a job changes; it counts once that is durable."""
        self._moves.append((event, reason))

    def _tell_moves(self, moves: list[tuple[JobEvent, str]]) -> None:
        for event, reason in moves:
            self._moved(event, reason)

    def _end(self, job_id: str) -> None:
        """Tell who waits that an attempt is over."""
        if name := parse_job_id(job_id):
            self._end_attempt(name)
        self.note_events()

    def _end_attempt(self, job_id: bytes) -> None:
        self._offers.forget(job_id)
        self._claims.forget(job_id)
        self.feed.end(job_id)

    def note_events(self) -> None:
        """Say, from any thread, that webhooks may have something to hear."""
        if self._has_webhooks:
            self.events_waiting.set()

    def _check_standing(self) -> None:
        """Refuse work whose receipts no block could hold."""
        authority_set = self._chain.recent_tip().authority_set
        if not authority_set.allows_coordinator(self._issuer.account):
            others = [member.url for member in authority_set.members if member.url]
            raise MarketError(
                "NODE_IS_FOLLOWER",
                "this node's key is not in the authority set, so its receipts would not count; ask "
                + (others[0] if others else "an authority"),
            )


def _settle(answer: asyncio.Future[T], result: T, error: Exception | None) -> None:
    if error is None:
        answer.set_result(result)
    else:
        answer.set_exception(error)
