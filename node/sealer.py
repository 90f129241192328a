"""The sealer: drives the consensus engine of one node, in a thread of its own.

It fills blocks from the mempool, carries out the engine's effects in their order, and tells when a
block is final. A vote is on disk before anything else happens with it; if the disk refuses one,
the node must stop.

Everything that changes the chain passes through this thread: blocks that the engine commits, and
blocks that a sync has verified. So the engine always decides the height after the tip.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import secrets
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from time import monotonic
from typing import Protocol

from consensus.engine import Engine
from consensus.interface import (
    BlockBuilt,
    BlockRefused,
    BuildBlock,
    Commit,
    Contradiction,
    Effect,
    Event,
    FetchBlocks,
    HeightOpened,
    MembersSilent,
    MessageReceived,
    Persist,
    Send,
    SetTimer,
    Timer,
    TimerFired,
    TimerKind,
    TransactionsWaiting,
)
from consensus.messages import Message, compute_max_message_bytes, parse_message
from ledger.block import Block, Tip
from ledger.errors import LedgerError, StoreError
from ledger.keys import KeyPair
from ledger.rules import CLOCK_DRIFT_MS, build_block, validate_time
from ledger.store.chain import ChainStore
from ledger.store.threadname import show_name
from ledger.store.votes import VoteStore
from ledger.store.writequeue import DatabaseBusyError
from ledger.vote import build_evidence
from node.mempool import Mempool

RETRY_S = 5.0
"""Pause after a block of our own could not be sealed."""
SURVEY_S = 1.0
"""How often it is asked which members are silent."""
REBROADCAST_JITTER = 0.25
"""Share of its delay by which a rebroadcast is moved, so that members do not speak in step."""
MAX_WAITING_WORK = 1024
"""Messages and synced batches that may wait for the thread."""
_JOIN_TIMEOUT_S = 30

logger = logging.getLogger(__name__)


class Peers(Protocol):
    """The other nodes, as the sealer needs them. No call waits or raises."""

    def broadcast(self, message: Message) -> None:
        """Send a message to every other member. It may get lost."""

    def fetch(self, height: int) -> None:
        """Have the final blocks up to `height` fetched, if somebody has them."""

    def list_silent(self, tip: Tip) -> frozenset[int]:
        """Return the members not heard for a while, none unless a quorum is heard."""


class Sealer:
    """Seals what waits into final blocks as long as it runs."""

    def __init__(
        self,
        *,
        chain: ChainStore,
        mempool: Mempool,
        votes: VoteStore,
        key: KeyPair,
        peers: Peers,
        clock_ms: Callable[[], int],
        batch_delay_ms: int,
        final: Callable[[int], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        """`final(height)` and `failed(error)` are called from the sealer's thread."""
        self._chain = chain
        self._mempool = mempool
        self._votes = votes
        self._key = key
        self._peers = peers
        self._clock_ms = clock_ms
        self._batch_delay_s = batch_delay_ms / 1000
        self._final = final
        self._failed = failed
        self._engine = Engine(key=key, validator=self)
        self._tip = chain.tip()
        self._is_open = False
        """False while our votes of the height after the tip are forgotten: then we only sync."""
        self._silent: frozenset[int] = frozenset()
        self._accused: set[tuple[int, str]] = set()
        """(epoch, account) of the members that this process has accused."""
        self._built = b""
        """Hash of the block that we built last."""
        self._events: deque[Event] = deque()
        self._timers: dict[TimerKind, tuple[float, Timer]] = {}
        self._retry_at: float | None = None
        self._collect_at: float | None = None
        self._survey_at = 0.0
        self._work: queue.Queue[Callable[[], None]] = queue.Queue(MAX_WAITING_WORK)
        self._is_kicked = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sealer", daemon=True)

    def start(self) -> None:
        """Begin: what an earlier run left open is finished first."""
        self.kick()
        self._thread.start()

    def kick(self) -> None:
        """Say that the mempool holds something. Any thread may."""
        if not self._is_kicked.is_set():
            self._is_kicked.set()
            self._wake()

    def receive(self, data: bytes) -> Future[None]:
        """Take the bytes of another member's message. The future tells when it is dealt with.

        It raises what is wrong with the message; a block in it that is not valid, too.

        Raises:
            DatabaseBusyError: too many messages wait.
        """
        return self._hand_in(lambda: self._receive(data))

    def adopt(self, append: Callable[[], None]) -> Future[None]:
        """Let `append` store verified blocks on the tip, in the sealer's thread.

        Raises:
            DatabaseBusyError: too much waits.
        """
        return self._hand_in(lambda: self._adopt(append))

    def repeat(self) -> None:
        """Say again soon what the others may lack of the open height. Any thread may."""
        with contextlib.suppress(queue.Full):  # it is said again in time anyway
            self._work.put_nowait(self._repeat)

    def stop(self) -> None:
        """Finish the block in hand and end the thread."""
        self._stopping.set()
        self._wake()
        if self._thread.is_alive():
            self._thread.join(_JOIN_TIMEOUT_S)

    def validate(self, block: Block, tip: Tip, *, is_fresh: bool) -> None:
        """Check a block for the engine (see `consensus.interface.BlockValidator`)."""
        if is_fresh:
            validate_time(block.header, now_ms=self._clock_ms())
        self._chain.validate(block, tip)

    # --- the thread -----------------------------------------------------------------------------

    def _run(self) -> None:
        show_name()
        try:
            self._open_height()
            while not self._stopping.is_set():
                self._carry_on()
                self._wait()
        except Exception as error:
            logger.exception("the sealer stops")
            self._failed(error)

    def _wake(self) -> None:
        with contextlib.suppress(queue.Full):  # then the thread is awake anyway
            self._work.put_nowait(lambda: None)

    def _hand_in(self, work: Callable[[], None]) -> Future[None]:
        future: Future[None] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                work()
            except LedgerError as error:
                future.set_exception(error)
                if isinstance(error, StoreError):
                    raise  # our disk, not the sender
            else:
                future.set_result(None)

        try:
            self._work.put_nowait(run)
        except queue.Full:
            raise DatabaseBusyError("consensus: too many messages wait") from None
        return future

    def _wait(self) -> None:
        """Sleep until somebody hands in work or a time is reached; queue what that gives."""
        now = monotonic()
        times = [deadline for deadline, _ in self._timers.values()]
        times += [t for t in (self._retry_at, self._collect_at) if t is not None]
        if self._is_networked():
            times.append(self._survey_at)
        with contextlib.suppress(queue.Empty):
            self._work.get(timeout=max(min(times) - now, 0) if times else None)()
        if self._is_kicked.is_set():
            self._is_kicked.clear()
            self._collect()
        self._note_times(monotonic())

    def _note_times(self, now: float) -> None:
        if self._collect_at is not None and now >= self._collect_at:
            self._collect_at = None
            self._note_waiting()
        if self._retry_at is not None and now >= self._retry_at:
            self._retry_at = None
            if self._is_open:
                self._note_waiting()
            else:
                self._fetch_forgotten()
        for kind, (deadline, timer) in list(self._timers.items()):
            if now >= deadline:
                del self._timers[kind]
                self._events.append(TimerFired(timer=timer))
        if now >= self._survey_at and self._is_networked():
            self._survey_at = now + SURVEY_S
            self._survey()

    def _carry_on(self) -> None:
        while self._events:
            self._step(self._events.popleft())

    def _step(self, event: Event) -> LedgerError | None:
        """Let the engine take one event; returns why it refused a block, if it did."""
        refusal = None
        if self._is_open or isinstance(event, HeightOpened):
            for effect in self._engine.step(event):
                self._execute(effect)
                if isinstance(effect, BlockRefused):
                    refusal = effect.error
        return refusal

    # --- what comes in --------------------------------------------------------------------------

    def _collect(self) -> None:
        """Give the first transaction some time to find company for its block.

        That a block has just been sealed is no reason not to: what a block costs, whatever it
        holds, is as much as twenty receipts in it.
        """
        if self._collect_at is None:
            self._collect_at = monotonic() + self._batch_delay_s

    def _receive(self, data: bytes) -> None:
        bound = compute_max_message_bytes(self._tip)
        message = parse_message(data, max_bytes=bound)
        self._carry_on()
        if refusal := self._step(MessageReceived(message=message)):
            raise refusal

    def _adopt(self, append: Callable[[], None]) -> None:
        append()
        height = self._chain.tip().height
        if height > self._tip.height:
            self._final(height)
            self._open_height()
            self._note_waiting()

    def _repeat(self) -> None:
        if running := self._timers.get(TimerKind.REBROADCAST):
            self._timers[TimerKind.REBROADCAST] = (monotonic(), running[1])

    def _survey(self) -> None:
        """Tell the engine whom not to wait for."""
        silent = self._peers.list_silent(self._tip)
        if silent != self._silent:
            self._silent = silent
            self._events.append(MembersSilent(members=silent))

    def _is_networked(self) -> bool:
        return len(self._tip.authority_set.members) > 1

    # --- what comes out -------------------------------------------------------------------------

    def _execute(self, effect: Effect) -> None:
        if isinstance(effect, Persist):
            self._votes.record(effect.record)
        elif isinstance(effect, Send):
            self._peers.broadcast(effect.message)
        elif isinstance(effect, BuildBlock):
            self._build(effect.tip)
        elif isinstance(effect, Commit):
            self._commit(effect)
        elif isinstance(effect, SetTimer):
            self._set_timer(effect)
        elif isinstance(effect, FetchBlocks):
            self._peers.fetch(effect.height)
        elif isinstance(effect, BlockRefused):
            self._note_refusal(effect)
        elif isinstance(effect, Contradiction):
            self._accuse(effect)
        # OfferBlock needs nothing: the answer to every message tells our height, so whoever is
        # behind fetches what it lacks.

    def _build(self, tip: Tip) -> None:
        block = self._fill_block(tip)
        if block is not None:
            self._built = block.hash
            self._events.append(BlockBuilt(block=block))
        else:
            self._open_height()

    def _set_timer(self, effect: SetTimer) -> None:
        timer, delay_s = effect.timer, effect.delay_ms / 1000
        if timer.kind is TimerKind.REBROADCAST:
            delay_s *= 1 + REBROADCAST_JITTER * (2 * secrets.randbelow(1000) / 1000 - 1)
        self._timers[timer.kind] = (monotonic() + delay_s, timer)

    def _note_refusal(self, effect: BlockRefused) -> None:
        if effect.block_hash != self._built.hex():
            logger.warning("proposed block %s is refused: %s", effect.block_hash, effect.error)
            return
        logger.error("block %s of our own was refused: %s", effect.block_hash, effect.error)
        self._open_height()
        if self._mempool.evict_invalid(self._tip):
            self._note_waiting()
        else:
            self._retry_at = monotonic() + RETRY_S

    def _commit(self, effect: Commit) -> None:
        block = effect.block
        self._chain.append(block, effect.certificate).result()
        self._mempool.remove([bytes(transaction.id) for transaction in block.transactions])
        logger.info(
            "block %d is final, %d transactions", block.header.height, len(block.transactions)
        )
        self._final(block.header.height)
        self._open_height()
        if self._batch_delay_s and not self._is_large(block):
            self._collect()
        else:
            self._note_waiting()

    def _is_large(self, block: Block) -> bool:
        """Tell whether a block was half full or more: then what waits has company enough."""
        limits = self._tip.limits
        size_bytes = sum(len(transaction.envelope) for transaction in block.transactions)
        return (
            2 * len(block.transactions) >= limits.max_block_transactions
            or 2 * size_bytes >= limits.max_block_bytes
        )

    def _open_height(self) -> None:
        """Start the height after the tip, or start it over: then the engine waits for no block.

        It lets view after view time out while it waits, and a height has a bounded number.
        """
        self._timers.pop(TimerKind.VIEW, None)
        self._tip = tip = self._chain.tip()
        remembered, was_open = self._votes.forgotten_below, self._is_open
        self._is_open = tip.height + 1 >= remembered
        if self._is_open:
            if not was_open:
                self._retry_at = None
            self._events.append(HeightOpened(tip=tip, record=self._votes.load(tip.height + 1)))
        else:
            logger.warning(
                "ledger.db ends at height %d, and our votes below %d are forgotten: no votes until "
                "the blocks in between are fetched",
                tip.height,
                remembered,
            )
            self._fetch_forgotten()

    def _fetch_forgotten(self) -> None:
        """Have the blocks fetched that we voted on; again later, as nobody may have them yet."""
        self._peers.fetch(self._votes.forgotten_below - 1)
        self._retry_at = monotonic() + RETRY_S

    def _note_waiting(self) -> None:
        if self._retry_at is not None or not self._mempool.choose(self._tip, limit=1):
            return
        behind_ms = self._tip.time_ms - self._clock_ms()
        if behind_ms >= CLOCK_DRIFT_MS:
            logger.error(
                "this machine's clock is %d s behind the newest block: set it. Until then nothing "
                "becomes final; what waits is kept",
                behind_ms // 1000,
            )
            self._retry_at = monotonic() + RETRY_S
            return
        self._events.append(TransactionsWaiting())

    def _accuse(self, effect: Contradiction) -> None:
        """Put a member's two votes before everybody, once for each member and set."""
        authority_set = self._tip.authority_set
        member = authority_set.members[effect.first.member]
        accusation = authority_set.epoch, member.account
        if accusation in self._accused or self._chain.is_accused(member.account):
            return
        self._accused = {*(a for a in self._accused if a[0] == authority_set.epoch), accusation}
        logger.error(
            "%s (%s) has signed two votes of height %d, view %d that contradict each other; the "
            "evidence goes into a block",
            member.name,
            member.account,
            self._tip.height + 1,
            effect.first.view,
        )
        evidence = build_evidence(effect.first, effect.second, self._tip)
        self._mempool.add_own(evidence, now_ms=self._clock_ms())
        self._note_waiting()

    def _fill_block(self, tip: Tip) -> Block | None:
        """Build a block of the oldest transactions that may stand in it."""
        with self._chain.database.snapshot():  # one look at the file, not one a receipt
            chosen = self._mempool.choose(tip)
            if not chosen:
                return None
            return build_block(
                tip,
                chosen,
                time_ms=self._clock_ms(),
                proposer=self._key.account,
                read=self._chain.read_node,
            )
