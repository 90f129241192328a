"""A stage for schedules: a small network, and a script that plays some of its members."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from consensus.messages import Message, build_message
from ledger.block import Block, VoteKind
from ledger.encoding import encode
from ledger.rules import build_block
from ledger.vote import (
    QuorumCertificate,
    Vote,
    build_block_document,
    cast_vote,
)
from tests.builders import build_change_payload, sign_change
from tests.simulation.judge import judge
from tests.simulation.machine import Machine
from tests.simulation.material import (
    KEY_OF,
    KEYS,
    build_network_genesis,
    build_set,
    build_simulated_receipt,
    cheap_repetition,
    parse_message_once,
)
from tests.simulation.network import Faults, Network

CALM = Faults(max_delay_ms=10)
SOON_MS = 5_000
LONG_MS = 60_000
PROMPT_MS = 500
"""Well below the shortest view."""


class Stage:
    """A network, none of its nodes booted yet. Whom the script plays, it never boots."""

    def __init__(
        self,
        *,
        count: int = 4,
        spares: int = 0,
        followers: int = 0,
        byzantine: Iterable[int] = (),
    ) -> None:
        self.network = Network(
            genesis=build_network_genesis(count),
            keys=[*KEYS[: count + spares], *[None] * followers],
            faults=CALM,
            byzantine=frozenset(byzantine),
        )
        self.nodes = self.network.machines
        self._receipts = 0

    def submit(self, *indexes: int) -> None:
        """Give one receipt to these nodes, or to all."""
        receipt = build_simulated_receipt(self.network.genesis, self._receipts)
        self._receipts += 1
        self.network.submit(receipt, indexes or range(len(self.nodes)))

    def change(self, members: Sequence[int]) -> None:
        """Let everybody, old and new, sign the set of these nodes, and give it to all."""
        tip = self.nodes[members[0]].tip
        current = [KEY_OF[m.account] for m in tip.authority_set.members]
        keys = [KEYS[i] for i in members]
        following = build_set(keys, epoch=tip.authority_set.epoch + 1)
        change = sign_change(build_change_payload(tip, following), [*current, *keys])
        self.network.granted[change.id] = change
        self.network.submit(change, range(len(self.nodes)))

    def heights(self) -> list[int]:
        return [node.tip.height for node in self.nodes]

    def run(self, duration_ms: int, is_done: Callable[[], bool] = lambda: False) -> None:
        self.network.run(self.network.now_ms + duration_ms, is_done)

    def reach(self, height: int, *indexes: int, within_ms: int = LONG_MS) -> None:
        """Run until these nodes, or all, have the height final."""
        nodes = [self.nodes[i] for i in indexes or range(len(self.nodes))]
        self.run(within_ms, lambda: all(node.tip.height >= height for node in nodes))
        if any(node.tip.height < height for node in nodes):
            self.network.fail(
                "stuck", f"expected height {height} in {within_ms} ms, got {self.heights()}"
            )

    def pass_only(
        self, gate: Callable[[int, int, Message], bool] | None, *, sync: bool = False
    ) -> None:
        """Let only these consensus messages of (source, sink) pass; None lifts the gate."""

        def judge_message(source: int, sink: int, method: str, arguments: tuple) -> bool:
            if method != "receive":
                return sync
            assert gate is not None
            return gate(source, sink, parse(arguments[1]))

        self.network.gate = None if gate is None else judge_message

    def vote(self, member: int, kind: VoteKind, view: int, block: Block | None = None) -> Vote:
        """Vote at height 1 as a member that the script plays."""
        return cast_vote(
            KEYS[member],
            member=member,
            tip=self.nodes[0].tip if self.nodes[0].tip.height == 0 else self.nodes[1].tip,
            kind=kind,
            view=view,
            block_hash="" if block is None else block.hash.hex(),
        )

    def build(self, proposer: int, at: Machine) -> Block:
        """Build a block that no other proposal at the tip of `at` is equal to."""
        self._receipts += 1
        return build_block(
            at.tip,
            [build_simulated_receipt(self.network.genesis, self._receipts)],
            time_ms=at.clock_ms,
            proposer=KEYS[proposer].account,
            read=at.read_node,
        )

    def tell(
        self,
        source: int,
        sinks: Iterable[int],
        *votes: Vote,
        certificates: Iterable[QuorumCertificate] = (),
        block: Block | None = None,
    ) -> None:
        """Say something at height 1 as a member that the script plays."""
        genesis_tip = next(node.tip for node in self.nodes if node.tip.height == 0)
        document = None if block is None else build_block_document(block)
        message = build_message(genesis_tip, votes=votes, certificates=certificates, block=document)
        for sink in sinks:
            arguments = (KEYS[source].account, encode(message))
            self.network.later(1, self.network.deliver, source, sink, "receive", arguments)

    def agree(self, member: int) -> None:
        """From now on this member, which the script plays, votes as anybody else does.

        It says nothing for a block of view 0.
        """

        def second(machine: Machine, message: Message, data: bytes) -> None:
            del data
            if message.height == 1 and machine.tip.height == 0:
                votes = {
                    (v.kind, v.view, v.block_hash): cast_vote(
                        KEYS[member],
                        member=member,
                        tip=machine.tip,
                        kind=v.kind,
                        view=v.view,
                        block_hash=v.block_hash,
                    )
                    for v in message.votes
                    if v.view > 0 or v.kind == "nullify"
                }
                self.tell(member, [n.index for n in self.nodes if n.engine], *votes.values())

        self.network.overhear.append(second)

    def finish(self) -> None:
        """Join everybody that is honest again; they must agree and go on."""
        network = self.network
        network.gate, network.sides = None, [0] * len(self.nodes)
        honest = [n.index for n in self.nodes if n.index not in network.byzantine]
        network.start(*honest)
        height = max(self.heights()) + 1
        self.submit()
        self.reach(height, *honest)
        judge(network)


def parse(data: bytes) -> Message:
    return parse_message_once(data, max_bytes=1 << 20)


def scheduled(
    play: Callable[[Stage], None], *, to_the_end: bool = True, **setting: object
) -> Callable[[], None]:
    """Return a schedule: set the stage, play, and let all end well unless members are missing."""

    def run() -> None:
        with cheap_repetition():
            stage = Stage(**setting)
            play(stage)
            if to_the_end:
                stage.finish()

    return run


def state(
    kind: VoteKind, view: int, block: Block | None, votes: Sequence[Vote]
) -> QuorumCertificate:
    """Return a certificate of whatever votes these are."""
    return QuorumCertificate(
        kind=kind,
        view=view,
        block_hash="" if block is None else block.hash.hex(),
        votes=tuple(sorted((vote.member, vote.sig) for vote in votes)),
    )


def is_of_finality(message: Message) -> bool:
    """Tell whether anything in a message helps to make a block of view 0 final."""
    said = [*message.votes, *message.certificates]
    return any(item.kind == "finalize" and item.view == 0 for item in said)


def has_votes(message: Message, kind: VoteKind) -> bool:
    return any(vote.kind == kind for vote in message.votes)
