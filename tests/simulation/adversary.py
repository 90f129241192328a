"""Byzantine members: they hear everything, know every honest node's state, and lie as they like.

Their messages are never lost and pass every partition. They equivocate, propose what is invalid,
unjustified or of the wrong time, second every vote there is, forge certificates, hand out forged
final blocks, replay messages of other heights, and send garbage.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence

import msgspec

from consensus.messages import Message, build_message
from ledger.block import Block, VoteKind, hash_genesis
from ledger.encoding import encode
from ledger.keys import KeyPair
from ledger.rules import CLOCK_DRIFT_MS, build_block
from ledger.vote import (
    QuorumCertificate,
    Vote,
    build_block_document,
    build_finality_certificate,
    cast_vote,
)
from tests.simulation.forgery import Forger
from tests.simulation.machine import Machine, build_frame
from tests.simulation.material import (
    KEY_OF,
    KEYS,
    MAX_RECEIPTS,
    build_network_genesis,
    build_simulated_receipt,
)
from tests.simulation.network import Network
from tests.simulation.spoiled import SPOILS

MAX_TICK_MS = 500
MAX_DELAY_MS = 30
MAX_HEARD_VOTES = 2_000
MAX_OLD_MESSAGES = 64
LIE_NUMBERS = range(40, MAX_RECEIPTS)
"""Receipts that only liars put into blocks."""


class Adversary:
    """All Byzantine members of one network, acting as one."""

    def __init__(
        self, network: Network, liars: Sequence[int], only: frozenset[str] = frozenset()
    ) -> None:
        """`only` names the lies and spoiled blocks to tell; none means all."""
        self.network = network
        self.random = random.Random(f"adversary {network.seed}")
        self.liars = list(liars)
        self.keys: list[KeyPair] = [key for i in liars if (key := network.keys[i]) is not None]
        self._zeal = self.random.choice([0.0, 0.3, 0.9])
        """How often it seconds the vote of another."""
        self._first_keys = [KEY_OF[m.account] for m in network.genesis.authority_set.members]
        self._heard: dict[Vote, int] = {}
        """Votes of honest members and the height they are of."""
        self._old: deque[bytes] = deque(maxlen=MAX_OLD_MESSAGES)
        self._proposed: set[tuple[int, int]] = set()
        self._other = hash_genesis(
            build_network_genesis(len(network.genesis.authority_set.members), "another")
        )
        network.overhear.append(self.overhear)
        self._lies: list[Callable[[Machine], None]] = [
            self.forge_certificates,
            self.forge_final_block,
            self.vote_for_everything,
            self.impersonate,
            self.replay,
            self.send_garbage,
            self.propose_out_of_turn,
        ]
        self._proposals: list[Callable[[Machine], None]] = [
            self.equivocate,
            self.equivocate,
            self.propose_invalid,
            self.propose_unjustified,
            self.propose_at_wrong_time,
            self.propose_in_secret,
            self.stay_silent,
        ]
        self._spoils = [spoil for spoil in SPOILS if not only or spoil.__name__ in only]
        if only:
            self._lies = [lie for lie in self._lies if lie.__name__ in only] or [self.stay_silent]
            self._proposals = [p for p in self._proposals if p.__name__ in only]
            self._proposals += [self.propose_invalid] * bool(self._spoils)
            self._proposals = self._proposals or [self.stay_silent]

    # Hearing

    def start(self) -> None:
        self.network.later(self.random.randint(1, MAX_TICK_MS), self._tick)

    def overhear(self, machine: Machine, message: Message, data: bytes) -> None:
        self._old.append(data)
        if len(self._heard) > MAX_HEARD_VOTES:
            self._heard.clear()
        for vote in message.votes:
            self._heard[vote] = message.height
        if message.votes and self.random.random() < self._zeal:
            self._second(machine, message)

    def _second(self, machine: Machine, message: Message) -> None:
        """Vote as somebody else does, whatever else we voted for, and tell it alone or some."""
        votes = [
            self._vote(machine, member, key, vote.kind, vote.view, vote.block_hash)
            for member, key in self._members(machine).items()
            for vote in message.votes
        ]
        targets = self._some() if self.random.random() < 0.3 else [machine]
        self._tell(targets, self._message(machine, votes=votes))

    def _tick(self) -> None:
        victims = [m for m in self._honest() if m.engine is not None]
        if victims:
            victim = self.random.choice(victims)
            height = victim.engine._height
            turn = (height.height, height.view)
            if height.proposer(height.view) in self._members(victim) and turn not in self._proposed:
                self._proposed.add(turn)
                self.random.choice(self._proposals)(victim)
            else:
                self.random.choice(self._lies)(victim)
        self.network.later(self.random.randint(1, MAX_TICK_MS), self._tick)

    # Whom and what we know

    def _honest(self) -> list[Machine]:
        return [m for m in self.network.machines if m.index not in self.liars]

    def _some(self) -> list[Machine]:
        honest = self._honest()
        return self.random.sample(honest, self.random.randint(1, len(honest)))

    def _members(self, machine: Machine) -> dict[int, KeyPair]:
        """Return our keys by their member index in the set that `machine` decides with."""
        found = {machine.tip.authority_set.index_of(key.account): key for key in self.keys}
        return {member: key for member, key in found.items() if member is not None}

    def _vote(
        self, machine: Machine, member: int, key: KeyPair, kind: VoteKind, view: int, named: str
    ) -> Vote:
        return cast_vote(
            key, member=member, tip=machine.tip, kind=kind, view=view, block_hash=named
        )

    def _forger(self, machine: Machine) -> Forger:
        return Forger(
            tip=machine.tip,
            own=self._members(machine),
            everybody=[KEY_OF[m.account] for m in machine.tip.authority_set.members],
            other_network=self._other,
            former=self._list_former(machine),
        )

    def _list_former(self, machine: Machine) -> dict[int, KeyPair]:
        """Return the first set's keys, by their index in it, that nobody guards any more."""
        current = machine.tip.authority_set
        return {
            index: key
            for index, key in enumerate(self._first_keys)
            if current.index_of(key.account) is None
        }

    def _build(self, machine: Machine, key: KeyPair, time_ms: int | None = None) -> Block:
        """Build a valid block that nobody else would build."""
        genesis = self.network.genesis
        receipt = build_simulated_receipt(genesis, self.random.choice(LIE_NUMBERS))
        return build_block(
            machine.tip,
            [receipt],
            time_ms=machine.clock_ms + self.random.randint(-50, 50) if time_ms is None else time_ms,
            proposer=key.account,
            read=machine.read_node,
        )

    # Proposals

    def _propose(
        self,
        victim: Machine,
        block: Block,
        targets: Iterable[Machine],
        *,
        view: int | None = None,
        certificates: Iterable[QuorumCertificate] | None = None,
    ) -> None:
        height = victim.engine._height
        view = height.view if view is None else view
        proposer = height.proposer(view)
        if proposer not in self._members(victim):
            return
        votes = [
            self._vote(victim, member, ours, "notarize", view, block.hash.hex())
            for member, ours in self._members(victim).items()
            if member == proposer or self.random.random() < self._zeal
        ]
        known = height.list_justification() if certificates is None else certificates
        self._tell(targets, self._message(victim, votes=votes, certificates=known, block=block))

    def _proposer(self, victim: Machine) -> KeyPair:
        height = victim.engine._height
        return self._members(victim).get(height.proposer(height.view), self.keys[0])

    def equivocate(self, victim: Machine) -> None:
        honest = self._honest()
        self.random.shuffle(honest)
        middle = self.random.randint(0, len(honest))
        first, second = (self._build(victim, self._proposer(victim)) for _ in range(2))
        self._propose(victim, first, honest[:middle])
        self._propose(victim, second, honest[middle:])
        if self.random.random() < 0.5:
            self._propose(victim, second, honest[:middle])

    def propose_in_secret(self, victim: Machine) -> None:
        """A valid proposal that only some get to see."""
        self._propose(victim, self._build(victim, self._proposer(victim)), self._some())

    def propose_unjustified(self, victim: Machine) -> None:
        """A fresh block, in this view or a later one, without what would allow it."""
        height = victim.engine._height
        view = height.view + self.random.choice([0, len(victim.tip.authority_set.members)])
        some = height.list_justification()[: self.random.randint(0, 1)]
        block = self._build(victim, self._proposer(victim))
        self._propose(victim, block, self._some(), view=view, certificates=some)

    def propose_out_of_turn(self, victim: Machine) -> None:
        """A later view that is ours, or the present one, which is another's."""
        members = self._members(victim)
        if not members:
            return
        height, member = victim.engine._height, min(members)
        block = self._build(victim, members[member])
        ahead = (member - height.proposer(height.view)) % len(victim.tip.authority_set.members)
        self._propose(victim, block, self._some(), view=height.view + ahead)
        vote = self._vote(
            victim, member, members[member], "notarize", height.view, block.hash.hex()
        )
        self._tell(self._some(), self._message(victim, votes=[vote], block=block))

    def propose_at_wrong_time(self, victim: Machine) -> None:
        late_ms = self.random.choice([1, 1_000, 3_600_000])
        sign = self.random.choice([-1, 1])
        time_ms = victim.clock_ms + sign * (CLOCK_DRIFT_MS + self.network.max_skew_ms * 2 + late_ms)
        block = self._build(victim, self._proposer(victim), time_ms)
        self._propose(victim, block, self._honest())

    def propose_invalid(self, victim: Machine) -> None:
        block = self._build(victim, self._proposer(victim))
        spoil = self.random.choice(self._spoils)
        spoiled = spoil(self.random, victim, block, self._forger(victim))
        self._propose(victim, spoiled, self._honest())

    def stay_silent(self, victim: Machine) -> None:
        """Say nothing, when it is our turn too."""

    # Lies of other kinds

    def vote_for_everything(self, victim: Machine) -> None:
        """All votes that rules R1 and R2 forbid together, for every block of this view."""
        height = victim.engine._height
        for member, key in self._members(victim).items():
            votes = [self._vote(victim, member, key, "nullify", height.view, "")]
            for block_hash in list(height.blocks)[:2]:
                kinds: tuple[VoteKind, ...] = ("notarize", "finalize")
                for kind in kinds:
                    votes.append(self._vote(victim, member, key, kind, height.view, block_hash))
            for vote in votes:
                self._tell(self._some(), self._message(victim, votes=[vote]))

    def impersonate(self, victim: Machine) -> None:
        """Votes of all other members for a block of ours, under signatures of ours."""
        height, key = victim.engine._height, self._proposer(victim)
        block = self._build(victim, key)
        kind: VoteKind = self.random.choice(("notarize", "nullify", "finalize"))
        named = "" if kind == "nullify" else block.hash.hex()
        votes = [
            self._vote(victim, member, key, kind, height.view, named)
            for member in range(len(victim.tip.authority_set.members))
        ]
        self._tell(self._some(), self._message(victim, votes=votes, block=block))

    def forge_certificates(self, victim: Machine) -> None:
        """A forged certificate of some kind for a block of ours, and the block with it."""
        height, forger = victim.engine._height, self._forger(victim)
        kind: VoteKind = self.random.choice(("notarize", "nullify", "finalize"))
        block = self._build(victim, self._proposer(victim))
        forgeries = forger.list_forgeries(
            kind, height.view, block.hash.hex(), *self._split_heard(height.height)
        )
        for _, certificate in self._pick(list(forgeries)):
            self.network.counts.forged += 1
            raw = self._message(victim, certificates=[certificate], block=block)
            self._tell(self._some()[:2], raw)

    def forge_final_block(self, victim: Machine) -> None:
        """A block under a forged certificate, in answer to no question."""
        height, forger = victim.engine._height, self._forger(victim)
        block = self._build(victim, self.random.choice([self._proposer(victim), KEYS[0]]))
        forgeries = forger.list_forgeries(
            "finalize", height.view, block.hash.hex(), *self._split_heard(height.height)
        )
        for _, certificate in self._pick(list(forgeries)):
            self.network.counts.forged += 1
            frame = build_frame(block, build_finality_certificate(certificate))
            self._deliver(victim, "receive_blocks", [frame])

    def _split_heard(self, height: int) -> tuple[list[Vote], list[Vote]]:
        """Return the votes of a height, and those of the heights below."""
        now = [vote for vote, of in self._heard.items() if of == height]
        return now, [vote for vote, of in self._heard.items() if of < height]

    def _pick(
        self, forgeries: list[tuple[str, QuorumCertificate]]
    ) -> list[tuple[str, QuorumCertificate]]:
        return self.random.sample(forgeries, min(3, len(forgeries)))

    def replay(self, victim: Machine) -> None:
        """A message of the past, as it was or as if it were of this height or another chain."""
        if not self._old:
            return
        data = self.random.choice(self._old)
        message = msgspec.json.decode(data, type=Message)
        genesis, height = victim.tip.genesis_hash.hex(), victim.tip.height + 1
        changed = self.random.choice(
            [
                message,
                msgspec.structs.replace(message, genesis=genesis, height=height),
                msgspec.structs.replace(message, genesis=self._other.hex()),
                msgspec.structs.replace(message, height=height + 100),
            ]
        )
        self._tell(self._some(), encode(changed))

    def send_garbage(self, victim: Machine) -> None:
        data = bytearray(self.random.choice(self._old) if self._old else b"{}")
        how = self.random.randint(0, 2)
        if how == 0:
            data = bytearray(self.random.randbytes(self.random.randint(0, 200)))
        elif how == 1:
            del data[self.random.randint(0, len(data)) :]
        else:
            data[self.random.randrange(len(data))] ^= self.random.randint(1, 255)
        self._tell([victim], bytes(data))

    # Saying

    def _message(
        self,
        machine: Machine,
        *,
        votes: Iterable[Vote] = (),
        certificates: Iterable[QuorumCertificate] = (),
        block: Block | None = None,
    ) -> bytes:
        document = None if block is None else build_block_document(block)
        return encode(
            build_message(machine.tip, votes=votes, certificates=certificates, block=document)
        )

    def _tell(self, targets: Iterable[Machine], data: bytes) -> None:
        for target in targets:
            self._deliver(target, "receive", self.keys[0].account, data)

    def _deliver(self, target: Machine, method: str, *arguments: object) -> None:
        delay_ms = self.random.randint(1, MAX_DELAY_MS)
        self.network.later(
            delay_ms, self.network.deliver, self.liars[0], target.index, method, arguments
        )
