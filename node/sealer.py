"""The sealer: drives the consensus engine of one authority, in a thread of its own.

It fills blocks from the mempool, carries out the engine's effects in their order, and tells when a
block is final. A vote is on disk before anything else happens with it; if the disk refuses one,
the node must stop.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from time import monotonic

from consensus.engine import Engine
from consensus.interface import (
    BlockBuilt,
    BlockRefused,
    BuildBlock,
    Commit,
    Effect,
    Event,
    HeightOpened,
    Persist,
    SetTimer,
    Timer,
    TimerFired,
    TimerKind,
    TransactionsWaiting,
)
from ledger.block import Block, Tip
from ledger.errors import LedgerError, StoreError
from ledger.keys import KeyPair
from ledger.rules import CLOCK_DRIFT_MS, build_block, validate_time, verify_transaction
from ledger.store.chain import ChainStore
from ledger.store.database import Database, DatabaseBusyError
from ledger.store.mempool import list_mempool, remove_from_mempool
from ledger.store.votes import VoteStore
from ledger.transaction import Transaction, parse_transaction

RETRY_S = 5.0
"""Pause after a block of our own could not be sealed."""
_JOIN_TIMEOUT_S = 30

logger = logging.getLogger(__name__)


class Sealer:
    """Seals the mempool into final blocks as long as it runs."""

    def __init__(
        self,
        *,
        chain: ChainStore,
        market: Database,
        votes: VoteStore,
        key: KeyPair,
        clock_ms: Callable[[], int],
        batch_delay_ms: int,
        final: Callable[[int], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        """`final(height)` and `failed(error)` are called from the sealer's thread.

        Raises:
            StoreError: this release cannot seal for this network.
        """
        members = chain.tip().authority_set.members
        if [member.account for member in members] != [key.account]:
            raise StoreError(
                "this release seals for networks whose one authority is this node: expected "
                f"authority {key.account}, genesis names {[member.name for member in members]}"
            )
        self._chain = chain
        self._market = market
        self._votes = votes
        self._key = key
        self._clock_ms = clock_ms
        self._batch_delay_s = batch_delay_ms / 1000
        self._final = final
        self._failed = failed
        self._engine = Engine(key=key, validator=self)
        self._events: deque[Event] = deque()
        self._timers: dict[TimerKind, tuple[float, Timer]] = {}
        self._retry_at: float | None = None
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sealer", daemon=True)

    def start(self) -> None:
        """Begin: what an earlier run left open is finished first."""
        self._wake.set()
        self._thread.start()

    def kick(self) -> None:
        """Say that the mempool holds something. Any thread may."""
        self._wake.set()

    def stop(self) -> None:
        """Finish the block in hand and end the thread."""
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(_JOIN_TIMEOUT_S)

    def validate(self, block: Block, tip: Tip, *, is_fresh: bool) -> None:
        """Check a block for the engine (see `consensus.interface.BlockValidator`)."""
        if is_fresh:
            validate_time(block.header, now_ms=self._clock_ms())
        self._chain.validate(block, tip)

    def _run(self) -> None:
        try:
            self._open_height()
            while not self._stopping.is_set():
                self._carry_on()
                self._wait()
        except Exception as error:
            logger.exception("the sealer stops")
            self._failed(error)

    def _wait(self) -> None:
        """Sleep until there is something to seal or a timer ends, then queue its event."""
        deadlines = [deadline for deadline, _ in self._timers.values()]
        if self._retry_at is not None:
            deadlines.append(self._retry_at)
        timeout = max(min(deadlines) - monotonic(), 0) if deadlines else None
        if self._wake.wait(timeout):
            self._wake.clear()
            self._stopping.wait(self._batch_delay_s)
            self._note_waiting()
        now = monotonic()
        if self._retry_at is not None and now >= self._retry_at:
            self._retry_at = None
            self._note_waiting()
        for kind, (deadline, timer) in list(self._timers.items()):
            if now >= deadline:
                del self._timers[kind]
                self._events.append(TimerFired(timer=timer))

    def _carry_on(self) -> None:
        while self._events:
            for effect in self._engine.step(self._events.popleft()):
                self._execute(effect)

    def _execute(self, effect: Effect) -> None:
        if isinstance(effect, Persist):
            self._votes.record(effect.record)
        elif isinstance(effect, BuildBlock):
            block = self._fill_block(effect.tip)
            if block is not None:
                self._events.append(BlockBuilt(block=block))
            else:
                self._open_height()
        elif isinstance(effect, Commit):
            self._commit(effect)
        elif isinstance(effect, SetTimer):
            timer = effect.timer
            self._timers[timer.kind] = (monotonic() + effect.delay_ms / 1000, timer)
        elif isinstance(effect, BlockRefused):
            logger.error("block %s of our own was refused: %s", effect.block_hash, effect.error)
            self._open_height()
            if self._evict_invalid():
                self._note_waiting()
            else:
                self._retry_at = monotonic() + RETRY_S
        # What is left are messages to other members, and a network of one has none.

    def _commit(self, effect: Commit) -> None:
        block = effect.block
        self._chain.append(block, effect.certificate).result()
        ids = [bytes(transaction.id) for transaction in block.transactions]
        self._forget(ids)
        logger.info("block %d is final, %d transactions", block.header.height, len(ids))
        self._final(block.header.height)
        self._open_height()
        self._note_waiting()

    def _open_height(self) -> None:
        """Start the height after the tip, or start it over: then the engine waits for no block.

        It lets view after view time out while it waits, and a height has a bounded number.
        """
        self._timers.pop(TimerKind.VIEW, None)
        tip = self._chain.tip()
        self._events.append(HeightOpened(tip=tip, record=self._votes.load(tip.height + 1)))

    def _note_waiting(self) -> None:
        if self._retry_at is not None or not self._waiting(limit=1):
            return
        tip = self._chain.tip()
        behind_ms = tip.time_ms - self._clock_ms()
        if behind_ms >= CLOCK_DRIFT_MS:
            logger.error(
                "this machine's clock is %d s behind the newest block: set it. Until then nothing "
                "becomes final; what waits is kept",
                behind_ms // 1000,
            )
            self._retry_at = monotonic() + RETRY_S
            return
        self._events.append(TransactionsWaiting())

    def _fill_block(self, tip: Tip) -> Block | None:
        """Build a block of the oldest transactions that fit and are not final yet."""
        chosen: list[Transaction] = []
        size_bytes = 0
        for transaction in self._waiting(tip.limits.max_block_transactions):
            size_bytes += len(transaction.envelope)
            if size_bytes > tip.limits.max_block_bytes:
                break
            chosen.append(transaction)
        if not chosen:
            return None
        return build_block(
            tip,
            chosen,
            time_ms=self._clock_ms(),
            proposer=self._key.account,
            read=self._chain.read_node,
        )

    def _waiting(self, limit: int) -> list[Transaction]:
        """Return the oldest transactions that are not final yet, none only if there are none."""
        waiting: list[Transaction] = []
        leaving: list[bytes] = []
        seq = 0
        while len(waiting) < limit:
            page = list_mempool(self._market.reader, limit=limit - len(waiting), after=seq)
            if not page:
                break
            for _, transaction_id, receipt_id, envelope in page:
                if self._chain.contains(transaction_id, receipt_id):
                    leaving.append(transaction_id)  # a crash between the two commits left it behind
                    continue
                try:
                    waiting.append(parse_transaction(envelope))
                except LedgerError as error:
                    _log_eviction(transaction_id, envelope, error)
                    leaving.append(transaction_id)
            seq = page[-1][0]
        if leaving:
            self._forget(leaving)
        return waiting

    def _forget(self, ids: list[bytes]) -> bool:
        """Remove transactions from the mempool; what stays is skipped and removed another time."""
        try:
            self._market.write(lambda c: remove_from_mempool(c, ids)).result()
        except DatabaseBusyError as error:
            logger.warning("%s: %d transactions stay in the mempool for now", error, len(ids))
            return False
        return True

    def _evict_invalid(self) -> bool:
        """Take out of the mempool what no block may hold. Returns whether anything left it."""
        tip = self._chain.tip()
        invalid = []
        for transaction in self._waiting(tip.limits.max_block_transactions):
            try:
                verify_transaction(transaction, tip)
            except LedgerError as error:
                _log_eviction(bytes(transaction.id), transaction.envelope, error)
                invalid.append(bytes(transaction.id))
        return bool(invalid) and self._forget(invalid)


def _log_eviction(transaction_id: bytes, envelope: bytes, error: LedgerError) -> None:
    # Envelopes are public, so the log may keep what the mempool gives up.
    logger.error(
        "transaction %s can never be final and leaves the mempool: %s: %s",
        transaction_id.hex(),
        error,
        envelope.decode(errors="replace"),
    )
