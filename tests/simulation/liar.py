"""What all Byzantine members know together, and how they speak.

They hear everything, know every honest node's state and hold each other's keys. Their messages are
never lost and pass every partition.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable, Sequence

from consensus.messages import Message, build_message
from ledger.block import Block, VoteKind, hash_genesis
from ledger.encoding import encode
from ledger.keys import KeyPair
from ledger.rules import build_block
from ledger.vote import (
    QuorumCertificate,
    Vote,
    build_block_document,
    cast_vote,
)
from tests.simulation.forgery import Forger
from tests.simulation.machine import Machine
from tests.simulation.material import (
    KEY_OF,
    MAX_RECEIPTS,
    build_network_genesis,
    build_simulated_receipt,
)
from tests.simulation.network import Network

MAX_DELAY_MS = 30
MAX_HEARD_VOTES = 2_000
MAX_OLD_MESSAGES = 64
LIE_NUMBERS = range(40, MAX_RECEIPTS)
"""Receipts that only liars put into blocks."""


class Liar:
    """All Byzantine members of one network, acting as one."""

    def __init__(self, network: Network, liars: Sequence[int]) -> None:
        self.network = network
        self.random = random.Random(f"adversary {network.seed}")
        self.liars = list(liars)
        self.keys: list[KeyPair] = [key for i in liars if (key := network.keys[i]) is not None]
        self.zeal = self.random.choice([0.0, 0.3, 0.9])
        """How often they second the vote of another."""
        self.old: deque[bytes] = deque(maxlen=MAX_OLD_MESSAGES)
        """Messages of honest members, of whatever height."""
        members = network.genesis.authority_set.members
        self.other_network = hash_genesis(build_network_genesis(len(members), "another"))
        self._first_keys = [KEY_OF[member.account] for member in members]
        self._heard: dict[Vote, int] = {}
        """Votes of honest members and the height they are of."""
        network.overhear.append(self.overhear)

    # What they hear

    def overhear(self, machine: Machine, message: Message, data: bytes) -> None:
        self.old.append(data)
        if len(self._heard) > MAX_HEARD_VOTES:
            self._heard.clear()
        for vote in message.votes:
            self._heard[vote] = message.height
        if message.votes and self.random.random() < self.zeal:
            self._second(machine, message)

    def _second(self, machine: Machine, message: Message) -> None:
        """Vote as somebody else does, whatever else we voted for, and tell it alone or some."""
        votes = [
            self.vote(machine, member, key, vote.kind, vote.view, vote.block_hash)
            for member, key in self.list_members(machine).items()
            for vote in message.votes
        ]
        targets = self.choose_some() if self.random.random() < 0.3 else [machine]
        self.tell(targets, self.build_message(machine, votes=votes))

    def split_heard(self, height: int) -> tuple[list[Vote], list[Vote]]:
        """Return the votes of a height, and those of the heights below."""
        now = [vote for vote, of in self._heard.items() if of == height]
        return now, [vote for vote, of in self._heard.items() if of < height]

    # Whom and what we know

    def list_honest(self) -> list[Machine]:
        return [m for m in self.network.machines if m.index not in self.liars]

    def choose_some(self) -> list[Machine]:
        honest = self.list_honest()
        return self.random.sample(honest, self.random.randint(1, len(honest)))

    def list_members(self, machine: Machine) -> dict[int, KeyPair]:
        """Return our keys by their member index in the set that `machine` decides with."""
        found = {machine.tip.authority_set.index_of(key.account): key for key in self.keys}
        return {member: key for member, key in found.items() if member is not None}

    def vote(
        self, machine: Machine, member: int, key: KeyPair, kind: VoteKind, view: int, named: str
    ) -> Vote:
        return cast_vote(
            key, member=member, tip=machine.tip, kind=kind, view=view, block_hash=named
        )

    def build_forger(self, machine: Machine) -> Forger:
        return Forger(
            tip=machine.tip,
            own=self.list_members(machine),
            everybody=[KEY_OF[m.account] for m in machine.tip.authority_set.members],
            other_network=self.other_network,
            former=self.list_former(machine),
        )

    def list_former(self, machine: Machine) -> dict[int, KeyPair]:
        """Return the first set's keys, by their index in it, that nobody guards any more."""
        current = machine.tip.authority_set
        return {
            index: key
            for index, key in enumerate(self._first_keys)
            if current.index_of(key.account) is None
        }

    def build(self, machine: Machine, key: KeyPair, time_ms: int | None = None) -> Block:
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

    # Saying

    def build_message(
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

    def tell(self, targets: Iterable[Machine], data: bytes) -> None:
        for target in targets:
            self.deliver(target, "receive", self.keys[0].account, data)

    def deliver(self, target: Machine, method: str, *arguments: object) -> None:
        delay_ms = self.random.randint(1, MAX_DELAY_MS)
        self.network.later(
            delay_ms, self.network.deliver, self.liars[0], target.index, method, arguments
        )
