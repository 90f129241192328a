"""Certificates that no quorum ever signed, in every way we could think of.

Each forgery would make a node that does not look at one particular thing believe in a quorum. The
forger has the keys of some members, hears all votes, owns the keys of members that left long ago,
and sees another network on which the very same members vote.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ledger.block import Tip, VoteKind
from ledger.keys import KeyPair
from ledger.vote import QuorumCertificate, Vote, cast_vote

Signed = tuple[int, str]


@dataclass(frozen=True, kw_only=True)
class Forger:
    """What is at hand for a forgery about the height after `tip`."""

    tip: Tip
    own: Mapping[int, KeyPair]
    """Keys of Byzantine members, by member index."""
    everybody: Sequence[KeyPair]
    """Keys of all members, only ever used to vote on the other network."""
    other_network: bytes
    """Its genesis hash."""
    former: Mapping[int, KeyPair]
    """Keys of members that left, by their index in the set they were in. They may be anybody's."""

    def sign(
        self, kind: VoteKind, view: int, block_hash: str, *, tip: Tip | None = None
    ) -> list[Signed]:
        """Vote with every key of ours."""
        return sign_all(self.own, tip or self.tip, kind, view, block_hash)

    def list_forgeries(
        self,
        kind: VoteKind,
        view: int,
        block_hash: str,
        heard: Sequence[Vote],
        earlier: Sequence[Vote] = (),
    ) -> Iterator[tuple[str, QuorumCertificate]]:
        """Return forged certificates of `kind` for a block, by what is wrong with them.

        `heard` are real votes of this height, `earlier` of the heights below.
        """
        quorum, count = self.tip.authority_set.quorum, len(self.tip.authority_set.members)
        named = "" if kind == "nullify" else block_hash
        own = self.sign(kind, view, named)

        def state(votes: Sequence[Signed]) -> QuorumCertificate:
            distinct = tuple(sorted(votes)[:count])
            return QuorumCertificate(kind=kind, view=view, block_hash=named, votes=distinct)

        def gather(*, real: list[Vote]) -> QuorumCertificate:
            votes = dict(own) | {v.member: v.sig for v in real if v.member not in self.own}
            return state(list(votes.items()))

        alike = [v for v in heard if (v.kind, v.view, v.block_hash) == (kind, view, named)]
        few = [v for v in alike if v.member not in self.own][: quorum - 1 - len(own)]
        yield "too few votes", gather(real=few)
        yield "no votes", state([])
        if own:
            yield "one vote many times", state(own[:1] * quorum)
            padded = [*own, *[(v.member, v.sig) for v in few]]
            yield "one vote twice", state([*padded, *own[:1] * (quorum - len(padded))])
            borrowed = [(i, own[0][1]) for i in range(quorum)]
            yield "one signature under every name", state(borrowed)
            yield (
                "members that do not exist",
                state([*own, *[(count + i, own[0][1]) for i in range(quorum)]]),
            )
        yield "votes of another kind", gather(real=[v for v in heard if v.block_hash == named])
        yield "votes for another block", gather(real=[v for v in heard if v.kind == kind])
        yield "votes of another view", gather(real=[v for v in heard if v.view != view])
        repeated = [v for v in earlier if v.kind == kind and v.view == view]
        yield "votes of another height", gather(real=repeated)
        yield "votes of another chain", state(self.sign_elsewhere(kind, view, named))
        if self.former:
            stale = dict(sign_all(self.former, self.tip, kind, view, named)) | dict(own)
            yield "a stale authority set", state(list(stale.items()))

    def sign_elsewhere(self, kind: VoteKind, view: int, block_hash: str) -> list[Signed]:
        """Return what the same members, honest ones too, said on the other network."""
        tip = replace(self.tip, genesis_hash=self.other_network)
        elsewhere = sign_all(dict(enumerate(self.everybody)), tip, kind, view, block_hash)
        return [*self.sign(kind, view, block_hash), *[s for s in elsewhere if s[0] not in self.own]]


def sign_all(
    keys: Mapping[int, KeyPair], tip: Tip, kind: VoteKind, view: int, block_hash: str
) -> list[Signed]:
    """Return the vote of each key, by ascending member index."""
    votes = (
        cast_vote(key, member=member, tip=tip, kind=kind, view=view, block_hash=block_hash)
        for member, key in sorted(keys.items())
    )
    return [(vote.member, vote.sig) for vote in votes]
