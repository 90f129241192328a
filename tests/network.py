"""A simulated network of the production engine: virtual clock, one seed, everything recorded.

Nodes are engines with a shell of a few lines. Their `votes.db` is a dictionary that refuses what
the schema refuses. After every `Persist` and `Send` the shell checks what must always hold:
durable votes never contradict each other, and nothing is said that is not durable.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from blake3 import blake3

from consensus.engine import Engine
from consensus.interface import (
    BlockBuilt,
    BuildBlock,
    Commit,
    Contradiction,
    Effect,
    Event,
    FetchBlocks,
    HeightOpened,
    MessageReceived,
    OfferBlock,
    Persist,
    Send,
    SetTimer,
    TimerFired,
    TransactionsWaiting,
)
from consensus.messages import Message, compute_max_message_bytes, parse_message
from ledger.authorities import Authority, AuthoritySet, hash_authority_set
from ledger.block import (
    Block,
    Certificate,
    Genesis,
    Header,
    Limits,
    Tip,
    advance_tip,
    build_genesis_tip,
    hash_header,
    verify_certificate,
)
from ledger.encoding import encode
from ledger.errors import InvalidBlockError
from ledger.keys import KeyPair
from ledger.vote import VoteRecord

CREATED_MS = 1_767_225_600_000


def build_keys(count: int) -> list[KeyPair]:
    return [KeyPair.from_seed(blake3(f"member {i}".encode()).digest()) for i in range(count)]


def build_tip(keys: Iterable[KeyPair], network: str = "simulated") -> Tip:
    members = tuple(
        Authority(account=key.account, name=f"member {i}", url="") for i, key in enumerate(keys)
    )
    return build_genesis_tip(
        Genesis(
            network=network,
            created_ms=CREATED_MS,
            authority_set=AuthoritySet(epoch=0, members=members),
            limits=Limits(),
            settlement="off_chain",
        )
    )


def build_bare_block(tip: Tip, proposer: KeyPair, *, salt: str = "") -> Block:
    """A block without transactions, which only `BareValidator` accepts; `salt` varies its hash."""
    set_hash = hash_authority_set(tip.authority_set).hex()
    header = Header(
        genesis=tip.genesis_hash.hex(),
        height=tip.height + 1,
        prev_hash=tip.hash.hex(),
        time_ms=tip.time_ms + 1,
        tree_size=tip.tree_size + 1,
        tree_root=blake3(salt.encode()).hexdigest(),
        set_hash=set_hash,
        next_set_hash=set_hash,
        proposer=proposer.account,
    )
    return Block(hash=hash_header(header), header=header, transactions=())


class BareValidator:
    """Checks the header's place in the chain. Remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[bytes, bool]] = []
        self.refused: set[bytes] = set()

    def validate(self, block: Block, tip: Tip, *, is_fresh: bool) -> None:
        self.asked.append((block.hash, is_fresh))
        header = block.header
        place = (header.genesis, header.height, header.prev_hash)
        if place != (tip.genesis_hash.hex(), tip.height + 1, tip.hash.hex()):
            raise InvalidBlockError("header: it does not extend the tip")
        if header.time_ms <= tip.time_ms or block.hash in self.refused:
            raise InvalidBlockError("header: refused")


@dataclass
class Disk:
    """What survives a crash: the chain, and votes under the rules of the schema."""

    tip: Tip
    chain: list[tuple[Block, Certificate]] = field(default_factory=list)
    records: dict[int, VoteRecord] = field(default_factory=dict)

    def record(self, added: VoteRecord) -> None:
        old = self.load(added.height)
        for vote in added.votes:
            kinds = {v.kind for v in old.votes if v.view == vote.view}
            assert vote.kind not in kinds, f"R1 broken: a second {vote}"
            assert not {vote.kind, *kinds} >= {"nullify", "finalize"}, f"R2 broken: {vote}"
        self.records[added.height] = VoteRecord(
            height=added.height,
            votes=old.votes + added.votes,
            blocks=old.blocks + added.blocks,
            certificates=old.certificates + added.certificates,
        )

    def load(self, height: int) -> VoteRecord:
        return self.records.get(height, VoteRecord(height=height))

    def apply(self, block: Block, certificate: Certificate) -> None:
        assert block.header.prev_hash == self.tip.hash.hex(), "fork"
        BareValidator().validate(block, self.tip, is_fresh=False)
        verify_certificate(certificate, header=block.header, authority_set=self.tip.authority_set)
        self.chain.append((block, certificate))
        self.tip = advance_tip(self.tip, block)


@dataclass
class Node:
    """An engine and its shell."""

    index: int
    """Its place in the network."""
    key: KeyPair | None
    member: int | None
    """Whom it votes as."""
    disk: Disk
    engine: Engine | None = None
    life: int = 0
    """Counts restarts, so that timers of an earlier life are lost."""


@dataclass
class Faults:
    """What the network does to messages and nodes; probabilities."""

    loss: float = 0.0
    duplication: float = 0.0
    crash: float = 0.0
    """Of a crash between any two effects."""
    max_delay_ms: int = 50


@dataclass
class Network:
    """Nodes, and the one queue of everything that will happen to them."""

    seed: int
    count: int
    clones: int = 0
    """Further nodes with the keys of the first members: each key votes twice, without knowing."""
    followers: int = 0
    faults: Faults = field(default_factory=Faults)
    target: int = 3
    """Heights that some node wants decided."""
    wanting: frozenset[int] = frozenset()
    """Nodes whose mempool holds the transactions; all if empty."""
    now_ms: int = 0
    contradictions: list[Contradiction] = field(default_factory=list)
    trace: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        keys = build_keys(self.count)
        tip = build_tip(keys)
        members = [*range(self.count), *range(self.clones), *[None] * self.followers]
        self.nodes = [
            Node(i, None if m is None else keys[m], m, Disk(tip)) for i, m in enumerate(members)
        ]
        self.cut: set[int] = set()
        self._queue: list[tuple[int, int, Callable[[], None]]] = []
        self._sequence = 0

    # Running

    def start(self, *indexes: int) -> None:
        for node in self.nodes:
            if not indexes or node.index in indexes:
                self.restart(node)

    def run(self, until_ms: int, is_done: Callable[[], bool] = lambda: False) -> None:
        while not is_done():
            if not self._queue or self._queue[0][0] > until_ms:
                self.now_ms = until_ms
                return
            self.now_ms, _, action = heapq.heappop(self._queue)
            action()

    def later(self, delay_ms: int, action: Callable[[], None]) -> None:
        self._sequence += 1
        heapq.heappush(self._queue, (self.now_ms + delay_ms, self._sequence, action))

    def restart(self, node: Node) -> None:
        node.life += 1
        node.engine = Engine(key=node.key, validator=BareValidator())
        self.open(node)

    def crash(self, node: Node) -> None:
        self.trace.append(f"{self.now_ms} {node.index} crashes")
        node.engine = None
        node.life += 1
        life = node.life
        self.later(
            self.random.randint(1, 3000),
            lambda: self.restart(node) if node.life == life else None,
        )

    def open(self, node: Node) -> None:
        tip = node.disk.tip
        self.step(node, HeightOpened(tip=tip, record=node.disk.load(tip.height + 1)))
        if tip.height < self.target and (not self.wanting or node.index in self.wanting):
            self.step(node, TransactionsWaiting())

    def step(self, node: Node, event: Event, sender: int | None = None) -> None:
        if node.engine is None:
            return
        life = node.life
        for effect in node.engine.step(event):
            if self.random.random() < self.faults.crash:
                self.crash(node)
            if node.life != life:
                return
            self.execute(node, effect, sender)

    # The shell

    def execute(self, node: Node, effect: Effect, sender: int | None) -> None:
        match effect:
            case Persist(record=record):
                node.disk.record(record)
            case Send(message=message):
                self.say(node, message)
            case BuildBlock(tip=tip, view=view):
                assert node.key is not None
                block = build_bare_block(tip, node.key, salt=f"{node.index} {view} {self.now_ms}")
                self.later_in_life(node, self.random.randint(0, 5), BlockBuilt(block=block))
            case SetTimer(timer=timer, delay_ms=delay_ms):
                self.later_in_life(node, delay_ms, TimerFired(timer=timer))
            case Commit(block=block, certificate=certificate):
                self.apply(node, block, certificate)
            case FetchBlocks() if sender is not None:
                self.sync(self.nodes[sender], node)
            case OfferBlock() if sender is not None:
                self.sync(node, self.nodes[sender])
            case Contradiction():
                self.contradictions.append(effect)

    def say(self, node: Node, message: Message) -> None:
        own = {v for v in message.votes if v.member == node.member}
        durable = set(node.disk.load(message.height).votes)
        assert own <= durable, "said before it was durable"
        data = encode(message)
        for other in self.nodes:
            if other is not node:
                self.send(node, other, lambda sink: self.receive(sink, node, data))

    def later_in_life(self, node: Node, delay_ms: int, event: Event) -> None:
        """Let an event reach a node, unless it crashes before."""
        life = node.life
        self.later(delay_ms, lambda: self.step(node, event) if life == node.life else None)

    def apply(self, node: Node, block: Block, certificate: Certificate) -> None:
        node.disk.apply(block, certificate)
        self.trace.append(
            f"{self.now_ms} {node.index} commits {block.header.height} {block.hash.hex()[:8]} "
            f"in view {certificate.view}"
        )
        self.open(node)

    def sync(self, source: Node, sink: Node) -> None:
        self.send(source, sink, lambda node: self.deliver_final(node, source))

    def deliver_final(self, node: Node, source: Node) -> None:
        """Hand over the one final block that `node` lacks, if `source` has it."""
        height = len(node.disk.chain)
        if node.engine is not None and len(source.disk.chain) > height:
            self.apply(node, *source.disk.chain[height])

    def send(self, source: Node, sink: Node, arrive: Callable[[Node], None]) -> None:
        copies = 1 + (self.random.random() < self.faults.duplication)
        for _ in range(copies):
            if {source.index, sink.index} & self.cut or self.random.random() < self.faults.loss:
                continue
            self.later(self.random.randint(1, self.faults.max_delay_ms), lambda: arrive(sink))

    def receive(self, node: Node, sender: Node, data: bytes) -> None:
        if node.engine is None:
            return
        bound = compute_max_message_bytes(node.disk.tip)
        message = parse_message(data, max_bytes=bound)
        self.step(node, MessageReceived(message=message), sender.index)

    # Judging

    def heights(self) -> list[int]:
        return [len(node.disk.chain) for node in self.nodes]

    def check_no_fork(self) -> None:
        chains = [[block.hash for block, _ in node.disk.chain] for node in self.nodes]
        longest = max(chains, key=len)
        for chain in chains:
            assert chain == longest[: len(chain)], f"seed {self.seed}: fork"

    def describe(self) -> str:
        return "\n".join([f"seed {self.seed}, heights {self.heights()}", *self.trace[-30:]])


def memoize(function: Callable[..., Any]) -> Callable[..., Any]:
    """Remember successes of a pure function: the simulated nodes all verify the same bytes."""
    seen: set[Any] = set()

    def verify(*args: Any) -> None:
        if args not in seen:
            function(*args)
            seen.add(args)

    return verify
