"""What turns the production engine into a node: a disk, a clock, a mempool, and promises.

The shell executes the engine's effects as `node/sealer.py` does, without threads and sockets, in
the same order, and stops at a power cut wherever that strikes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

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
    OfferBlock,
    Persist,
    Send,
    SetTimer,
    TimerFired,
    TimerKind,
    TransactionsWaiting,
)
from consensus.messages import Message, compute_max_message_bytes
from consensus.presence import Presence
from ledger import rules
from ledger.block import Block, Certificate, Tip
from ledger.errors import LedgerError, StoreError
from ledger.keys import KeyPair
from ledger.payloads import find_receipt_id
from ledger.rules import build_block
from ledger.selection import choose_transactions
from ledger.store import chain
from ledger.store.chain import load_block, load_tip, read_node
from ledger.store.votes import VoteStore
from ledger.transaction import Transaction
from ledger.vote import Vote, VoteRecord, build_evidence
from tests.builders import CREATED_MS
from tests.simulation.disk import Disk, Moment, PowerCutError

if TYPE_CHECKING:
    from tests.simulation.network import Network

POLL_MS = 2_000
"""How often a follower asks somebody for what it lacks."""


class Shell(ABC):
    """A node without what it says to others about final blocks; see `machine.py`."""

    def __init__(
        self, network: Network, index: int, key: KeyPair | None, *, skew_ms: int = 0
    ) -> None:
        self.network = network
        self.index = index
        self.key = key
        self.account = key.account if key is not None else ""
        self.skew_ms = skew_ms
        self.disk = Disk(network.genesis, self.account)
        self.mempool: dict[bytes, Transaction] = {}
        """Part of `node.db`: what was accepted survives."""
        self.tip: Tip = load_tip(self.disk.ledger)
        self.engine: Engine | None = None
        self.final_height = 0
        """The highest it ever called final."""
        self.life = 0
        """Counts restarts, so that timers of an earlier life are lost."""

    # Life and death

    def boot(self) -> None:
        self.life += 1
        self._events: deque[tuple[Event, int | None]] = deque()
        self._is_stepping = False
        try:
            self._votes: VoteStore | None = self.disk.boot()
        except StoreError as error:
            self.network.fail("a node does not start again", f"node {self.index}: {error}")
        self._durable = VoteRecord(height=0)
        self._presence = Presence()
        self._silent: frozenset[int] = frozenset()
        self._accused: set[str] = set()
        self._served: dict[int, bytes] = {}
        self.engine = Engine(key=self.key, validator=self)
        self._note_stored()
        self.open()
        self.later(self.network.random.randint(1, POLL_MS), self.poll)

    def _note_stored(self) -> None:
        """A block that was committed right before a power cut is final, though nobody was told."""
        for height in range(self.final_height + 1, load_tip(self.disk.ledger).height + 1):
            found = load_block(self.disk.ledger, height)
            assert found is not None
            self.network.note_final(self, *found)

    def power_off(self, reason: str) -> None:
        self.network.log(f"{self.index} crashes {reason}")
        self.engine = None
        self.life += 1

    def later(self, delay_ms: int, action: Callable[..., None], *arguments: object) -> None:
        """Do something unless this life ends before."""
        self.network.later(delay_ms, self._if_alive, self.life, action, arguments)

    def _if_alive(
        self, life: int, action: Callable[..., None], arguments: tuple[object, ...]
    ) -> None:
        if life == self.life:
            action(*arguments)

    @property
    def clock_ms(self) -> int:
        return CREATED_MS + self.network.now_ms + self.skew_ms

    # Events

    def open(self) -> None:
        """Start the height after the tip."""
        self.tip = load_tip(self.disk.ledger)
        height = self.tip.height + 1
        record = VoteRecord(height=height) if self._votes is None else self._votes.load(height)
        self._durable = record
        self._bound = compute_max_message_bytes(self.tip)
        self.step(HeightOpened(tip=self.tip, record=record))
        if self._choose(self.tip):
            self.step(TransactionsWaiting())

    def submit(self, transaction: Transaction) -> None:
        """Accept a transaction, whether the node is up or a client tries again later."""
        if not self._is_final(transaction):
            self.mempool[transaction.id] = transaction
            self.step(TransactionsWaiting())

    def _is_final(self, transaction: Transaction) -> bool:
        receipt_id = find_receipt_id(transaction.payload)
        return chain.contains(self.disk.ledger, transaction.id, receipt_id)

    def step(self, event: Event, sender: int | None = None) -> None:
        """Queue an event, and work the queue off unless that is being done already."""
        if self.engine is None:
            return
        self._events.append((event, sender))
        if self._is_stepping:
            return
        self._is_stepping = True
        life = self.life
        try:
            while self._events and life == self.life:
                self._take(*self._events.popleft())
        except PowerCutError as cut:
            self.power_off(str(cut))
            self.network.plan_restart(self)
        finally:
            if life == self.life:
                self._is_stepping = False

    def _take(self, event: Event, sender: int | None) -> None:
        assert self.engine is not None
        try:
            effects = self.engine.step(event)
        except AssertionError as error:
            self.network.fail("the engine finds a bug of its own", str(error))
        except LedgerError as error:
            if not isinstance(event, MessageReceived):
                self.network.fail("the engine refuses its shell", f"{event}: {error}")
            self.network.note_refused(self, error)
            return
        for effect in effects:
            if self.network.chance(self.network.faults.crash):
                raise PowerCutError(f"before {type(effect).__name__}")
            self._execute(effect, sender)

    # Effects

    def _execute(  # noqa: C901, PLR0912 - one case per effect
        self, effect: Effect, sender: int | None
    ) -> None:
        match effect:
            case Persist(record=record):
                self._persist(record)
            case Send(message=message):
                self._say(message)
            case BuildBlock(tip=tip):
                if block := self.fill_block(tip):
                    delay_ms = self.network.random.randint(0, 5)
                    self.later(delay_ms, self._take_built, block)
                else:
                    self.open()
            case SetTimer(timer=timer, delay_ms=delay_ms):
                if timer.kind is TimerKind.HEARTBEAT:
                    self._note_silent()
                self.later(delay_ms, self.step, TimerFired(timer=timer))
            case Commit(block=block, certificate=certificate):
                self._append(block, certificate)
            case FetchBlocks():
                if sender is not None:
                    self.ask(sender)
            case OfferBlock():
                if sender is not None:
                    # In production the answer to any message tells this.
                    self.network.send(self.index, sender, "receive_height", self.tip.height)
            case BlockRefused(error=error):
                if sender is None:
                    self.network.fail("an honest proposal is refused", str(error))
                self.network.note_refused(self, error)
            case Contradiction():
                self._accuse(effect)

    def _persist(self, record: VoteRecord) -> None:
        if self._votes is None or self.disk.votes is None:
            raise AssertionError("a node without a key persists nothing")
        self.disk.votes.cut = self._draw_cut()
        try:
            self._votes.record(record)
        except StoreError as error:
            self.network.fail("votes.db refused", f"node {self.index}: {error}")
        self._durable = VoteRecord(
            height=record.height,
            votes=self._durable.votes + record.votes,
            blocks=self._durable.blocks + record.blocks,
            certificates=self._durable.certificates + record.certificates,
        )

    def _accuse(self, contradiction: Contradiction) -> None:
        """Put evidence into the mempool, once per member: one proof is enough."""
        self.network.contradictions.append(contradiction)
        accused = self.tip.authority_set.members[contradiction.first.member].account
        if accused not in self._accused:
            self._accused.add(accused)
            evidence = build_evidence(contradiction.first, contradiction.second, self.tip)
            self.submit(evidence)

    def _draw_cut(self) -> Moment | None:
        if not self.network.chance(self.network.faults.crash):
            return None
        return self.network.random.choice(list(Moment))

    def _say(self, message: Message) -> None:
        own = self.tip.authority_set.index_of(self.account)
        said = [vote for vote in message.votes if vote.member == own]
        for vote in said:
            self._check_durable(vote)
        self.network.say(self, message, said)

    def _check_durable(self, vote: Vote) -> None:
        """What is said must be on disk, and what it rests on too (R3, R4)."""
        durable = self._durable
        if vote not in durable.votes:
            self.network.fail("said before durable", f"node {self.index}: {vote}")
        if self.index in self.network.byzantine:
            return  # it adopts the votes of its clone, and rests on what that one has
        bodies = {block.hash.hex() for block in durable.blocks}
        if vote.block_hash and vote.block_hash not in bodies:
            self.network.fail("voted without the body on disk", f"node {self.index}: {vote}")
        proofs = {(c.kind, c.view, c.block_hash) for c in durable.certificates}
        if vote.kind == "finalize" and ("notarize", vote.view, vote.block_hash) not in proofs:
            self.network.fail("finalized what is not notarized", f"node {self.index}: {vote}")

    def _choose(self, tip: Tip) -> tuple[Transaction, ...]:
        """Return what may stand in the next block; forget what no block may hold."""
        # A power cut between a block's commit and this leaves final transactions behind.
        waiting = [t for t in self.mempool.values() if not self._is_final(t)]
        due = [t for t in waiting if chain.is_due(self.disk.ledger, t)]
        selection = choose_transactions(due, tip)
        invalid = {transaction.id for transaction, _ in selection.invalid}
        self.mempool = {t.id: t for t in waiting if t.id not in invalid}
        return selection.chosen

    def fill_block(self, tip: Tip) -> Block | None:
        chosen = self._choose(tip)
        if not chosen:
            return None
        return build_block(
            tip,
            chosen,
            time_ms=self.clock_ms,
            proposer=self.account,
            read=self.read_node,
        )

    def _take_built(self, block: Block) -> None:
        """Answer the engine, unless the block was built for a height that is over by now."""
        if block.header.prev_hash == self.tip.hash.hex():
            self.step(BlockBuilt(block=block))

    def read_node(self, level: int, index: int) -> bytes:
        return read_node(self.disk.ledger, level, index)

    def validate(self, block: Block, tip: Tip, *, is_fresh: bool) -> None:
        """Check a block for the engine (see `consensus.interface.BlockValidator`)."""
        if is_fresh:
            rules.validate_time(block.header, now_ms=self.clock_ms)
        chain.validate_next_block(self.disk.ledger, block, tip)

    def _append(self, block: Block, certificate: Certificate) -> None:
        self.disk.ledger.cut = self._draw_cut()
        try:
            self.disk.append(block, certificate)
        except LedgerError as error:
            self.network.fail("the ledger refuses a final block", f"node {self.index}: {error}")
        self._move_on(block, certificate)

    def _move_on(self, block: Block, certificate: Certificate) -> None:
        for transaction in block.transactions:
            self.mempool.pop(transaction.id, None)
        self.network.note_final(self, block, certificate)
        self.open()

    def _note_silent(self) -> None:
        silent = self._presence.list_silent(
            self.tip.authority_set, self.account, now_ms=self.network.now_ms
        )
        if silent != self._silent:
            self._silent = silent
            self.step(MembersSilent(members=silent))

    @abstractmethod
    def ask(self, other: int) -> None:
        """Ask another node for the blocks after our tip."""

    @abstractmethod
    def poll(self) -> None:
        """Begin to ask from time to time."""
