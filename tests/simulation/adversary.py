"""Lies: what Byzantine members do with what they know.

They equivocate, propose what is invalid, unjustified or of the wrong time, second every vote there
is, forge certificates, hand out forged final blocks, replay messages of other heights, and send
garbage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import msgspec

from consensus.messages import Message
from ledger.block import Block, VoteKind
from ledger.encoding import encode
from ledger.keys import KeyPair
from ledger.rules import CLOCK_DRIFT_MS
from ledger.vote import (
    QuorumCertificate,
    build_finality_certificate,
)
from tests.simulation.liar import Liar
from tests.simulation.machine import Machine, build_frame
from tests.simulation.material import (
    KEYS,
)
from tests.simulation.network import Network
from tests.simulation.spoiled import SPOILS

MAX_TICK_MS = 500


class Adversary(Liar):
    """Tells one lie after another, at whatever node."""

    def __init__(
        self, network: Network, liars: Sequence[int], only: frozenset[str] = frozenset()
    ) -> None:
        """`only` names the lies and spoiled blocks to tell; none means all."""
        super().__init__(network, liars)
        self._proposed: set[tuple[int, int]] = set()
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

    def start(self) -> None:
        self.network.later(self.random.randint(1, MAX_TICK_MS), self._tick)

    def _tick(self) -> None:
        victims = [m for m in self.list_honest() if m.engine is not None]
        if victims:
            victim = self.random.choice(victims)
            height = victim.engine._height
            turn = (height.height, height.view)
            if (
                height.proposer(height.view) in self.list_members(victim)
                and turn not in self._proposed
            ):
                self._proposed.add(turn)
                self.random.choice(self._proposals)(victim)
            else:
                self.random.choice(self._lies)(victim)
        self.network.later(self.random.randint(1, MAX_TICK_MS), self._tick)

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
        if proposer not in self.list_members(victim):
            return
        votes = [
            self.vote(victim, member, ours, "notarize", view, block.hash.hex())
            for member, ours in self.list_members(victim).items()
            if member == proposer or self.random.random() < self.zeal
        ]
        known = height.list_justification() if certificates is None else certificates
        self.tell(targets, self.build_message(victim, votes=votes, certificates=known, block=block))

    def _proposer(self, victim: Machine) -> KeyPair:
        height = victim.engine._height
        return self.list_members(victim).get(height.proposer(height.view), self.keys[0])

    def equivocate(self, victim: Machine) -> None:
        honest = self.list_honest()
        self.random.shuffle(honest)
        middle = self.random.randint(0, len(honest))
        first, second = (self.build(victim, self._proposer(victim)) for _ in range(2))
        self._propose(victim, first, honest[:middle])
        self._propose(victim, second, honest[middle:])
        if self.random.random() < 0.5:
            self._propose(victim, second, honest[:middle])

    def propose_in_secret(self, victim: Machine) -> None:
        """A valid proposal that only some get to see."""
        self._propose(victim, self.build(victim, self._proposer(victim)), self.choose_some())

    def propose_unjustified(self, victim: Machine) -> None:
        """A fresh block, in this view or a later one, without what would allow it."""
        height = victim.engine._height
        view = height.view + self.random.choice([0, len(victim.tip.authority_set.members)])
        some = height.list_justification()[: self.random.randint(0, 1)]
        block = self.build(victim, self._proposer(victim))
        self._propose(victim, block, self.choose_some(), view=view, certificates=some)

    def propose_out_of_turn(self, victim: Machine) -> None:
        """A later view that is ours, or the present one, which is another's."""
        members = self.list_members(victim)
        if not members:
            return
        height, member = victim.engine._height, min(members)
        block = self.build(victim, members[member])
        ahead = (member - height.proposer(height.view)) % len(victim.tip.authority_set.members)
        self._propose(victim, block, self.choose_some(), view=height.view + ahead)
        vote = self.vote(victim, member, members[member], "notarize", height.view, block.hash.hex())
        self.tell(self.choose_some(), self.build_message(victim, votes=[vote], block=block))

    def propose_at_wrong_time(self, victim: Machine) -> None:
        late_ms = self.random.choice([1, 1_000, 3_600_000])
        sign = self.random.choice([-1, 1])
        time_ms = victim.clock_ms + sign * (CLOCK_DRIFT_MS + self.network.max_skew_ms * 2 + late_ms)
        block = self.build(victim, self._proposer(victim), time_ms)
        self._propose(victim, block, self.list_honest())

    def propose_invalid(self, victim: Machine) -> None:
        block = self.build(victim, self._proposer(victim))
        spoil = self.random.choice(self._spoils)
        spoiled = spoil(self.random, victim, block, self.build_forger(victim))
        self._propose(victim, spoiled, self.list_honest())

    def stay_silent(self, victim: Machine) -> None:
        """Say nothing, when it is our turn too."""

    # Lies of other kinds

    def vote_for_everything(self, victim: Machine) -> None:
        """All votes that rules R1 and R2 forbid together, for every block of this view."""
        height = victim.engine._height
        for member, key in self.list_members(victim).items():
            votes = [self.vote(victim, member, key, "nullify", height.view, "")]
            for block_hash in list(height.blocks)[:2]:
                kinds: tuple[VoteKind, ...] = ("notarize", "finalize")
                for kind in kinds:
                    votes.append(self.vote(victim, member, key, kind, height.view, block_hash))
            for vote in votes:
                self.tell(self.choose_some(), self.build_message(victim, votes=[vote]))

    def impersonate(self, victim: Machine) -> None:
        """Votes of all other members for a block of ours, under signatures of ours."""
        height, key = victim.engine._height, self._proposer(victim)
        block = self.build(victim, key)
        kind: VoteKind = self.random.choice(("notarize", "nullify", "finalize"))
        named = "" if kind == "nullify" else block.hash.hex()
        votes = [
            self.vote(victim, member, key, kind, height.view, named)
            for member in range(len(victim.tip.authority_set.members))
        ]
        self.tell(self.choose_some(), self.build_message(victim, votes=votes, block=block))

    def forge_certificates(self, victim: Machine) -> None:
        """A forged certificate of some kind for a block of ours, and the block with it."""
        height, forger = victim.engine._height, self.build_forger(victim)
        kind: VoteKind = self.random.choice(("notarize", "nullify", "finalize"))
        block = self.build(victim, self._proposer(victim))
        forgeries = forger.list_forgeries(
            kind, height.view, block.hash.hex(), *self.split_heard(height.height)
        )
        for _, certificate in self._pick(list(forgeries)):
            self.network.counts.forged += 1
            raw = self.build_message(victim, certificates=[certificate], block=block)
            self.tell(self.choose_some()[:2], raw)

    def forge_final_block(self, victim: Machine) -> None:
        """A block under a forged certificate, in answer to no question."""
        height, forger = victim.engine._height, self.build_forger(victim)
        block = self.build(victim, self.random.choice([self._proposer(victim), KEYS[0]]))
        forgeries = forger.list_forgeries(
            "finalize", height.view, block.hash.hex(), *self.split_heard(height.height)
        )
        for _, certificate in self._pick(list(forgeries)):
            self.network.counts.forged += 1
            frame = build_frame(block, build_finality_certificate(certificate))
            self.deliver(victim, "receive_blocks", [frame])

    def _pick(
        self, forgeries: list[tuple[str, QuorumCertificate]]
    ) -> list[tuple[str, QuorumCertificate]]:
        return self.random.sample(forgeries, min(3, len(forgeries)))

    def replay(self, victim: Machine) -> None:
        """A message of the past, as it was or as if it were of this height or another chain."""
        if not self.old:
            return
        data = self.random.choice(self.old)
        message = msgspec.json.decode(data, type=Message)
        genesis, height = victim.tip.genesis_hash.hex(), victim.tip.height + 1
        changed = self.random.choice(
            [
                message,
                msgspec.structs.replace(message, genesis=genesis, height=height),
                msgspec.structs.replace(message, genesis=self.other_network.hex()),
                msgspec.structs.replace(message, height=height + 100),
            ]
        )
        self.tell(self.choose_some(), encode(changed))

    def send_garbage(self, victim: Machine) -> None:
        data = bytearray(self.random.choice(self.old) if self.old else b"{}")
        how = self.random.randint(0, 2)
        if how == 0:
            data = bytearray(self.random.randbytes(self.random.randint(0, 200)))
        elif how == 1:
            del data[self.random.randint(0, len(data)) :]
        else:
            data[self.random.randrange(len(data))] ^= self.random.randint(1, 255)
        self.tell([victim], bytes(data))
