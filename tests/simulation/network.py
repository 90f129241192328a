"""The simulated world: one virtual clock, one queue of all that will happen, one seed, faults.

It checks at once what must always hold, and stops the history where it does not: an honest key
never contradicts itself in what it says, a height has one final block, and the time of a final
block is not ahead of the clocks.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NoReturn

from blake3 import blake3

from consensus.interface import Contradiction
from consensus.messages import Message
from ledger.block import Block, Certificate, Genesis
from ledger.encoding import encode
from ledger.errors import LedgerError
from ledger.keys import KeyPair
from ledger.payloads import AuditPayload, AuthoritySetPayload, ReceiptPayload
from ledger.rules import CLOCK_DRIFT_MS
from ledger.transaction import Transaction
from ledger.vote import Vote
from tests.builders import CREATED_MS
from tests.simulation.machine import Machine
from tests.simulation.material import list_simulated

MAX_SKEW_MS = 2_000
MAX_REPAIR_MS = 3_000
"""How long a node stays down at most."""
MAX_EVENTS = 200_000
"""Of one history; the busiest needs a tenth."""


class BrokenError(Exception):
    """Something that must always hold does not."""

    def __init__(self, rule: str, detail: str) -> None:
        super().__init__(f"{rule}: {detail}")
        self.rule = rule


@dataclass
class Faults:
    """What befalls messages and nodes; probabilities."""

    loss: float = 0.0
    duplication: float = 0.0
    crash: float = 0.0
    """Of a power cut before each effect and around each commit."""
    max_delay_ms: int = 50


@dataclass
class Counts:
    """What happened."""

    events: int = 0
    crashes: int = 0
    partitions: int = 0
    forged: int = 0
    refused: int = 0
    evidence: int = 0
    audits: int = 0
    set_changes: int = 0


@dataclass
class Network:
    """Nodes, and the one queue of everything that will happen to them."""

    genesis: Genesis
    keys: list[KeyPair | None]
    """One per node; a node without a key follows. Two nodes with one key do not know it."""
    seed: int = 0
    faults: Faults = field(default_factory=Faults)
    byzantine: frozenset[int] = frozenset()
    """Nodes whose key somebody else uses too, or that lie: nothing is demanded of them."""
    max_skew_ms: int = 0
    keeps_trace: bool = False
    now_ms: int = 0
    counts: Counts = field(default_factory=Counts)
    contradictions: list[Contradiction] = field(default_factory=list)
    finals: dict[int, bytes] = field(default_factory=dict)
    """The hash of every block that some node ever called final, by height."""
    granted: dict[bytes, Transaction] = field(default_factory=dict)
    """The changes of the authority set that somebody had the right to make, by their id."""
    trace: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.machines = [
            Machine(self, i, key, skew_ms=self.random.randint(-self.max_skew_ms, self.max_skew_ms))
            for i, key in enumerate(self.keys)
        ]
        self.sides = [0] * len(self.keys)
        """Where each node stands in the present partition: only nodes of one side meet."""
        self.gate: Callable[[int, int, str, tuple[Any, ...]], bool] | None = None
        """Lets a message of (source, sink, method, arguments) pass, in schedules."""
        self.overhear: list[Callable[[Machine, Message, bytes], None]] = []
        self._said: dict[tuple[str, int, int, str], str] = {}
        self._hash = blake3()
        self._queue: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._sequence = 0

    # Running

    def run(self, until_ms: int, is_done: Callable[[], bool] = lambda: False) -> None:
        while not is_done():
            if not self._queue or self._queue[0][0] > until_ms:
                self.now_ms = until_ms
                return
            self.now_ms, _, action, arguments = heapq.heappop(self._queue)
            self.counts.events += 1
            if self.counts.events > MAX_EVENTS:
                self.fail("stuck", "events without end")
            action(*arguments)

    def later(self, delay_ms: int, action: Callable[..., None], *arguments: object) -> None:
        self._sequence += 1
        heapq.heappush(self._queue, (self.now_ms + delay_ms, self._sequence, action, arguments))

    def chance(self, probability: float) -> bool:
        return probability > 0 and self.random.random() < probability

    def start(self, *indexes: int) -> None:
        """Boot these nodes, or all."""
        for machine in self.machines:
            if (not indexes or machine.index in indexes) and machine.engine is None:
                machine.boot()

    def plan_restart(self, machine: Machine) -> None:
        self.counts.crashes += 1
        life = machine.life
        self.later(self.random.randint(1, MAX_REPAIR_MS), self._restart, machine, life)

    def _restart(self, machine: Machine, life: int) -> None:
        if machine.life == life:
            self.log(f"{machine.index} restarts")
            machine.boot()

    def submit(self, transaction: Transaction, indexes: Iterable[int]) -> None:
        for index in indexes:
            self.machines[index].submit(transaction)

    # Messages

    def say(self, machine: Machine, message: Message, said: list[Vote]) -> None:
        """Carry a consensus message to every other member, and to whoever shares the key."""
        if machine.index not in self.byzantine:
            for vote in said:
                self._check_consistent(machine, message.height, vote)
        data = encode(message)
        self.log(f"{machine.index} says {blake3(data).hexdigest(length=6)} at {message.height}")
        accounts = {member.account for member in machine.tip.authority_set.members}
        for other in self.machines:
            if other is not machine and other.account in accounts:
                self.send(machine.index, other.index, "receive", machine.account, data)
        for listen in self.overhear:
            listen(machine, message, data)

    def _check_consistent(self, machine: Machine, height: int, vote: Vote) -> None:
        said, key = self._said, (machine.account, height, vote.view)
        if said.setdefault((*key, vote.kind), vote.block_hash) != vote.block_hash:
            self.fail("an honest member contradicts itself", f"R1: node {machine.index}, {vote}")
        if (*key, "nullify") in said and (*key, "finalize") in said:
            self.fail("an honest member contradicts itself", f"R2: node {machine.index}, {vote}")

    def send(self, source: int, sink: int, method: str, *arguments: object) -> None:
        if self.gate is not None and not self.gate(source, sink, method, arguments):
            return
        copies = 1 + self.chance(self.faults.duplication)
        for _ in range(copies):
            if self.sides[source] != self.sides[sink] or self.chance(self.faults.loss):
                continue
            delay_ms = self.random.randint(1, self.faults.max_delay_ms)
            self.later(delay_ms, self.deliver, source, sink, method, arguments)

    def deliver(self, source: int, sink: int, method: str, arguments: tuple[object, ...]) -> None:
        self.log(f"{sink} {method} from {source}")
        getattr(self.machines[sink], method)(source, *arguments)

    # Watching

    def log(self, text: str) -> None:
        line = f"{self.now_ms} {text}\n"
        self._hash.update(line.encode())
        if self.keeps_trace:
            self.trace.append(line)

    @property
    def trace_hash(self) -> str:
        return self._hash.hexdigest()

    def note_refused(self, machine: Machine, error: LedgerError) -> None:
        self.counts.refused += 1
        self.log(f"{machine.index} refuses: {error}")

    def note_final(self, machine: Machine, block: Block, certificate: Certificate) -> None:
        height = block.header.height
        self.log(
            f"{machine.index} has {height} final: {block.hash.hex()[:8]} by view {certificate.view}"
        )
        machine.final_height = height
        if height not in self.finals:
            self._check_time(block)
            self._check_transactions(block)
        if self.finals.setdefault(height, block.hash) != block.hash:
            self.fail("fork", f"at height {height}, node {machine.index}")

    def _check_time(self, block: Block) -> None:
        ahead_ms = block.header.time_ms - CREATED_MS - self.now_ms
        # A quorum holds it against its own clocks; a parent may push a child by its millisecond.
        if ahead_ms > CLOCK_DRIFT_MS + self.max_skew_ms:
            self.fail("a final block is ahead of the clocks", f"{ahead_ms} ms")

    def _check_transactions(self, block: Block) -> None:
        signed = list_simulated(self.genesis)
        for transaction in block.transactions:
            payload = transaction.payload
            if isinstance(payload, AuthoritySetPayload) and transaction.id not in self.granted:
                self.fail("a set nobody asked for", f"at height {block.header.height}")
            is_market = isinstance(payload, ReceiptPayload | AuditPayload)
            if is_market and transaction.envelope not in signed:
                self.fail("a receipt or audit nobody signed", f"at height {block.header.height}")

    def fail(self, rule: str, detail: str) -> NoReturn:
        raise BrokenError(rule, f"{detail}, at {self.now_ms} ms")
